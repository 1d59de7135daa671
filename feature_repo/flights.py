"""Will a flight from New York arrive more than 15 minutes late? Features as they stand at its scheduled departure.

Three streams (departures, arrivals, weather) and one table (aircraft). All times are UTC; demo/data.py says how they
come from the local clock times of the raw data.
"""

from datetime import timedelta

import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String, UnixTimestamp

from headrace.define import events, stream_view, windows

airport = Entity(name="airport", join_keys=["origin"], value_type=ValueType.STRING)
carrier = Entity(name="carrier", join_keys=["carrier"], value_type=ValueType.STRING)
aircraft = Entity(name="aircraft", join_keys=["tailnum"], value_type=ValueType.STRING)

departures = events(
    "departures",
    time="departed_at",  # the actual departure; a cancelled flight's scheduled one
    id="flight_id",
    columns={
        "flight_id": "string",
        "origin": "string",
        "carrier": "string",
        "tailnum": "string",  # unknown for some cancelled flights
        "dest": "string",
        "departed_at": "timestamp",
        "dep_delay": "double",  # minutes, early is negative; null when cancelled
        "cancelled": "long",  # 1 or 0
    },
)

arrivals = events(
    "arrivals",
    time="arrived_at",
    id="flight_id",
    columns={
        "flight_id": "string",
        "origin": "string",
        "carrier": "string",
        "tailnum": "string",
        "dest": "string",
        "arrived_at": "timestamp",
        "arr_delay": "double",  # minutes, early is negative
    },
)

weather = events(
    "weather",
    time="observed_at",
    id="observation_id",
    columns={
        "observation_id": "string",
        "origin": "string",
        "observed_at": "timestamp",
        "temp": "double",  # Fahrenheit, as dewp
        "dewp": "double",
        "humid": "double",  # per cent
        "wind_dir": "double",  # degrees
        "wind_speed": "double",  # miles per hour, as wind_gust
        "wind_gust": "double",
        "precip": "double",  # inches
        "pressure": "double",  # millibars
        "visib": "double",  # miles
    },
)

registry = FileSource(name="registry", path="data/aircraft.parquet", timestamp_field="known_since")

origin_departures = stream_view(
    "origin_departures",
    airport,
    departures,
    windows("*", ["count"], over=["1h", "3h", "24h"]),
    windows("dep_delay", ["mean", "max"], over=["1h", "3h", "24h"]),
    windows("cancelled", ["sum"], over=["1h", "3h", "24h"]),
)

carrier_departures = stream_view(
    "carrier_departures",
    carrier,
    departures,
    windows("*", ["count"], over=["3h", "24h"]),
    windows("dep_delay", ["mean"], over=["3h", "24h"]),
)

aircraft_arrivals = stream_view(
    "aircraft_arrivals",
    aircraft,
    arrivals,
    windows("arr_delay", ["last"], over=["24h"]),
    windows("dest", ["last"], over=["24h"]),
    windows("arrived_at", ["last"], over=["24h"]),
    windows("*", ["count"], over=["24h"]),
    windows("arr_delay", ["mean"], over=["24h"]),
)

airport_weather = FeatureView(
    name="airport_weather",
    entities=[airport],
    source=weather,
    ttl=timedelta(hours=3),
    schema=[
        Field(name="temp", dtype=Float64),
        Field(name="dewp", dtype=Float64),
        Field(name="humid", dtype=Float64),
        Field(name="wind_dir", dtype=Float64),
        Field(name="wind_speed", dtype=Float64),
        Field(name="wind_gust", dtype=Float64),
        Field(name="precip", dtype=Float64),
        Field(name="pressure", dtype=Float64),
        Field(name="visib", dtype=Float64),
    ],
)

aircraft_profile = FeatureView(
    name="aircraft_profile",
    entities=[aircraft],
    source=registry,
    ttl=timedelta(0),  # never too old
    schema=[
        Field(name="built", dtype=Int64),
        Field(name="manufacturer", dtype=String),
        Field(name="model", dtype=String),
        Field(name="engines", dtype=Int64),
        Field(name="seats", dtype=Int64),
        Field(name="engine", dtype=String),
    ],
)

flight = RequestSource(
    name="flight",
    schema=[Field(name="scheduled_departure", dtype=UnixTimestamp), Field(name="miles", dtype=Float64)],
)


@on_demand_feature_view(
    sources=[flight, aircraft_arrivals[["last_arrived_at_24h"]]],
    schema=[
        Field(name="hours_since_last_arrival", dtype=Float64),
        Field(name="hour_of_day", dtype=Int64),
        Field(name="weekday", dtype=Int64),
        Field(name="distance", dtype=Float64),
    ],
    mode="pandas",
)
def flight_context(inputs: pd.DataFrame) -> pd.DataFrame:
    """Travel follows the local clock, so hour and weekday are New York's."""
    scheduled = pd.to_datetime(inputs["scheduled_departure"], utc=True)
    landed = pd.to_datetime(inputs["last_arrived_at_24h"], utc=True)
    local = scheduled.dt.tz_convert("America/New_York")
    return pd.DataFrame(
        {
            "hours_since_last_arrival": (scheduled - landed).dt.total_seconds() / 3600,
            "hour_of_day": local.dt.hour.astype("Int64"),
            "weekday": local.dt.dayofweek.astype("Int64"),
            "distance": inputs["miles"].astype("float64"),
        }
    )


flight_static_v1 = FeatureService(
    name="flight_static_v1", features=[aircraft_profile, flight_context[["hour_of_day", "weekday", "distance"]]]
)
flight_weather_v1 = FeatureService(
    name="flight_weather_v1",
    features=[airport_weather, aircraft_profile, flight_context[["hour_of_day", "weekday", "distance"]]],
)
flight_delay_v1 = FeatureService(
    name="flight_delay_v1",
    features=[
        origin_departures,
        carrier_departures,
        aircraft_arrivals[["last_arr_delay_24h", "last_dest_24h", "count_24h", "mean_arr_delay_24h"]],
        airport_weather,
        aircraft_profile,
        flight_context,
    ],
)
