"""Views of every type, with one entity and with two, services and on-demand views: what Feast's server and ours are
asked about in test_wire.py."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp

from headrace.define import events, stream_view, windows

driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.STRING)

TYPES = {
    "a_int32": (Int32, "int"),
    "a_int64": (Int64, "bigint"),
    "a_float32": (Float32, "float"),
    "a_float64": (Float64, "double"),
    "a_bool": (Bool, "boolean"),
    "a_string": (String, "string"),
    "a_time": (UnixTimestamp, "timestamp"),
}


def pushed(name: str, keys: str, columns: dict[str, str]) -> PushSource:
    ddl = ", ".join([keys, *(f"{column} {kind}" for column, kind in columns.items()), "event_timestamp timestamp"])
    batch = FileSource(name=f"{name}_batch", path=f"{name}.parquet", timestamp_field="event_timestamp")
    return PushSource(name=name, batch_source=batch, tags={"schema": ddl})


every = FeatureView(
    name="every",
    entities=[driver],
    ttl=timedelta(0),
    schema=[Field(name="driver_id", dtype=Int64), *(Field(name=n, dtype=kind) for n, (kind, _) in TYPES.items())],
    source=pushed("every_rows", "driver_id bigint", {name: ddl for name, (_, ddl) in TYPES.items()}),
)
brief = FeatureView(
    name="brief",
    entities=[driver],
    ttl=timedelta(hours=1),
    schema=[Field(name="driver_id", dtype=Int64), Field(name="speed", dtype=Float64)],
    source=pushed("brief_rows", "driver_id bigint", {"speed": "double"}),
)
pair = FeatureView(
    name="pair",
    entities=[driver, customer],
    ttl=timedelta(days=36_500),
    schema=[
        Field(name="driver_id", dtype=Int64),
        Field(name="customer_id", dtype=String),
        Field(name="trips", dtype=Int64),
    ],
    source=pushed("pair_rows", "driver_id bigint, customer_id string", {"trips": "bigint"}),
)

readings = events(
    "readings",
    time="ts",
    columns={
        "driver_id": "bigint",
        "n": "bigint",
        "x": "double",
        "flag": "boolean",
        "word": "string",
        "moment": "timestamp",
        "ts": "timestamp",
    },
)
lists = stream_view(
    "lists",
    driver,
    readings,
    *(windows(column, ["last_3"]) for column in ("n", "x", "flag", "word", "moment")),
)

ask = RequestSource(name="ask", schema=[Field(name="amount", dtype=Float64), Field(name="count", dtype=Int64)])


@on_demand_feature_view(
    sources=[every, ask],
    schema=[Field(name="ratio", dtype=Float64), Field(name="text", dtype=String)],
    mode="pandas",
)
def by_frame(inputs: pd.DataFrame) -> pd.DataFrame:
    out = pd.DataFrame()
    out["ratio"] = inputs["amount"] / inputs["a_float64"]
    out["text"] = inputs["a_string"].fillna("none") + "/" + inputs["count"].astype(str)
    return out


@on_demand_feature_view(
    sources=[every, ask],
    schema=[Field(name="total", dtype=Float64), Field(name="even", dtype=Bool)],
    mode="python",
)
def by_lists(inputs: dict[str, Any]) -> dict[str, Any]:
    pairs = zip(inputs["amount"], inputs["count"], strict=True)
    total = [None if x is None else x + a * c for x, (a, c) in zip(inputs["a_float64"], pairs, strict=True)]
    return {"total": total, "even": [c % 2 == 0 for c in inputs["count"]]}


typed_v1 = FeatureService(name="typed_v1", features=[every])
mixed_v1 = FeatureService(
    name="mixed_v1", features=[every[["a_string", "a_int64"]], brief, pair.with_name("couple")[["trips"]]]
)
asked_v1 = FeatureService(name="asked_v1", features=[every[["a_float64"]], by_frame, by_lists])
