"""A view of request data and outputs of every type, beside wire_repo: Feast's own type inference refuses it."""

from __future__ import annotations

from typing import Any

from definitions import every
from feast import FeatureService, Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float32, Int32, String, UnixTimestamp

more = RequestSource(
    name="more",
    schema=[
        Field(name="when", dtype=UnixTimestamp),
        Field(name="flag", dtype=Bool),
        Field(name="tag", dtype=String),
        Field(name="small", dtype=Int32),
        Field(name="real", dtype=Float32),
    ],
)


@on_demand_feature_view(
    sources=[every, more],
    schema=[
        Field(name="later", dtype=Bool),
        Field(name="label", dtype=String),
        Field(name="next", dtype=Int32),
        Field(name="half", dtype=Float32),
        Field(name="moment", dtype=UnixTimestamp),
    ],
    mode="python",
    singleton=True,
)
def by_row(inputs: dict[str, Any]) -> dict[str, Any]:
    small, real, when = inputs["small"], inputs["real"], inputs["when"]
    return {
        "later": None if when is None or inputs["a_time"] is None else when > inputs["a_time"],
        "label": f"{inputs['tag']}:{inputs['flag']}",
        "next": None if small is None else small + 1,
        "half": None if real is None else real / 2,
        "moment": when or inputs["a_time"],
    }


rowed_v1 = FeatureService(name="rowed_v1", features=[by_row])
