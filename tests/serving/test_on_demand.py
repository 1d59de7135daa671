"""On-demand features: request data is typed and checked, and a lookup gives what a training set gives."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa
import pytest
from shop import Live

from headrace.client import FeatureClient
from headrace.read.training_set import training_set

BOTH_LANES = True
MOMENT = datetime(2026, 6, 1, 12, 0, 0, 123_456, tzinfo=UTC)
DRIVERS = [1, 2, 3, 4, 99, None]
ASKED: dict[str, Any] = {
    "driver_id": DRIVERS,
    "amount": [2.0, 3, None, 0.5, 1e300, -1.0],
    "count": [2, 3, 4, 5, -(2**62), 7],
}
ROWED: dict[str, Any] = {
    "driver_id": DRIVERS,
    "when": [MOMENT, None, datetime(1960, 1, 1, tzinfo=UTC), MOMENT, None, MOMENT],
    "flag": [True, False, None, True, False, True],
    "tag": ["ü", "", None, "a", "b", "c"],
    "small": [2**31 - 2, -(2**31), 0, None, 1, 2],
    "real": [0.1, 3.5, None, -0.25, 1.0, 0.0],
}
TYPES = {
    "driver_id": pa.int64(),
    "amount": pa.float64(),
    "count": pa.int64(),
    "when": pa.timestamp("us", "UTC"),
    "flag": pa.bool_(),
    "tag": pa.string(),
    "small": pa.int32(),
    "real": pa.float32(),
}


@pytest.mark.parametrize("rows", [1, 2, 6], ids=["one row", "few", "many"])
@pytest.mark.parametrize(("service", "asked"), [("asked_v1", ASKED), ("rowed_v1", ROWED)], ids=["frames", "rows"])
def test_a_lookup_gives_what_a_training_set_gives(wire: Live, service: str, asked: dict[str, Any], rows: int) -> None:
    asked = {name: values[-rows:] for name, values in asked.items()}
    wire.wait_until_applied("archived")
    now = datetime.now(UTC)
    labels = pa.table({name: pa.array(values, TYPES[name]) for name, values in asked.items()})
    labels = labels.append_column("event_timestamp", pa.array([now] * len(labels), pa.timestamp("us", "UTC")))
    trained = training_set(service, labels, settings=wire.settings).to_arrow()
    with FeatureClient(wire.url) as client:
        served = client.get(service, asked, as_of=now)
    table = served.to_arrow()
    for name in served.features:
        assert table[name].type == trained[name].type
        assert table[name].to_pylist() == trained[name].to_pylist()
    assert len(served) == len(asked["driver_id"])


def test_every_mode_computes_from_typed_request_data(wire: Live) -> None:
    with FeatureClient(wire.url) as client:
        rowed = client.get("rowed_v1", ROWED).to_dict()
        asked = client.get("asked_v1", {name: values[:2] for name, values in ASKED.items()}).to_dict()
    assert rowed["later"] == [True, None, False, None, None, None]
    assert rowed["label"][:3] == ["ü:True", ":False", "None:None"]
    assert rowed["next"] == [2**31 - 1, -(2**31) + 1, 1, None, 2, 3]
    assert rowed["half"] == [0.05000000074505806, 1.75, None, -0.125, 0.5, 0.0]
    assert rowed["moment"][:2] == [MOMENT, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)]
    assert (asked["text"], asked["even"]) == (["Köln 😀/2", "/3"], [True, False])
    assert asked["ratio"] == [20.0, 3 / 1e300]


WRONG = [
    ("amount", "much", "amount must be float64, got 'much'"),
    ("amount", True, "amount must be float64, got True"),
    ("count", 1.5, "count must be int64, got 1.5"),
    ("count", 2**63, "count must be int64"),
    ("count", "1", "count must be int64, got '1'"),
    ("small", 2**31, "small must be int32"),
    ("flag", 1, "flag must be bool, got 1"),
    ("tag", 1, "tag must be string, got 1"),
    ("tag", ["a"], "tag must be string, got a list"),
    ("when", "soon", "when must be timestamp, got 'soon'"),
    ("when", 1_356_998_400, "when must be timestamp"),
    ("real", 1e39, "real must be float32"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=[f"{name} {value}" for name, value, _ in WRONG])
def test_request_data_of_another_type_is_told_its_row(wire: Live, name: str, value: Any, message: str) -> None:
    service, asked = ("asked_v1", ASKED) if name in ASKED else ("rowed_v1", ROWED)
    entities = {key: [values[0], values[1]] for key, values in asked.items()}
    entities[name][1] = value
    body = (
        orjson.dumps({"feature_service": service, "entities": entities})
        if value != 2**63
        else (
            orjson.dumps({"feature_service": service, "entities": {**entities, name: [0, 9]}}).replace(
                b"9]", b"%d]" % 2**63
            )
        )
    )
    reply = wire.http.post("/get-online-features", content=body)
    assert reply.status_code == 422
    assert f"row 1: {message}" in orjson.loads(reply.json())["message"]


def test_a_function_that_fails_on_a_row_is_the_caller_s_to_change(wire: Live) -> None:
    """by_lists adds up what it is given, and a null amount is nothing to add: the row reads null, its neighbour not."""
    entities = {"driver_id": [1, 1], "amount": [None, 2.0], "count": [2, 2]}
    body = {"features": ["by_lists:total", "by_lists:even"], "entities": entities}
    reply = wire.post("/get-online-features", body)
    assert [result["values"] for result in reply["results"][1:]] == [[None, 4.1], [None, True]]
