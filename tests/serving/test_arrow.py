"""Replies as Arrow: the same answer as in JSON, for those who ask for it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa
import pytest
from shop import Live, now

from headrace.dtypes import DType, arrow_type
from headrace.moments import rfc3339

ARROW = "application/vnd.apache.arrow.stream"
BOTH_LANES = True
BODY = {"feature_service": "card_v1", "entities": {"card_id": ["arrow", "new", None]}}


@pytest.fixture(scope="module", autouse=True)
def held(live: Live) -> None:
    live.push([{"id": "ar1", "card_id": "arrow", "amount": 2.5, "ts": now(-5)}])
    df = {"card_id": ["arrow"], "limit": [0.1], "city": ["Ü"], "vip": [None], "since": ["2020-01-02T03:04:05.678901Z"]}
    live.post("/write-to-online-store", {"feature_view_name": "profile", "df": {**df, "event_timestamp": [now(-5)]}})
    live.wait_until_applied()


def ask(live: Live, body: Any = BODY, accept: str = ARROW, status: int = 200, **params: str) -> Any:
    reply = live.http.post("/get-online-features", json=body, params=params, headers={"accept": accept})
    assert reply.status_code == status, reply.text
    return reply


def batch_of(reply: Any) -> pa.RecordBatch:
    assert reply.headers["content-type"] == ARROW
    with pa.ipc.open_stream(reply.content) as stream:
        batches = list(stream)
    assert len(batches) == 1
    batches[0].validate(full=True)
    return batches[0]


def as_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return rfc3339(round((value - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6))
    return value


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_arrow_holds_what_json_says(live: Live, rows: int) -> None:
    cards = (["arrow", "new", None] * 7)[:rows]
    body = {**BODY, "entities": {"card_id": cards}, "as_of": now(60), "full_feature_names": True}
    batch = batch_of(ask(live, body))
    reply = live.post("/get-online-features", body, timestamps="rfc3339")
    names = reply["metadata"]["feature_names"]
    assert batch.schema.names[: len(names)] == names
    for name, result in zip(names, reply["results"], strict=True):
        assert [as_json(value) for value in batch.column(name).to_pylist()] == result["values"]
        field = batch.schema.field(name)
        if name == "card_id":
            assert not field.metadata
            continue
        view = field.metadata[b"view"].decode()
        times = batch.column(f"{view}:event_timestamp").to_pylist()
        assert [as_json(time) or rfc3339(0) for time in times] == result["event_timestamps"]
        statuses = batch.schema.metadata[b"statuses"].decode().split(",")
        codes = batch.column(f"{view}:status").to_pylist()
        nulls = batch.column(name).is_null().to_pylist()
        told = [statuses[1] if null and code == 0 else statuses[code] for null, code in zip(nulls, codes, strict=True)]
        assert told == result["statuses"]
    assert {as_json(t) for t in batch.column(":t").to_pylist()} == {body["as_of"]}


def test_columns_have_the_declared_types_even_where_all_is_null(live: Live) -> None:
    schema = batch_of(ask(live, {**BODY, "entities": {"card_id": [None]}})).schema
    declared = {"count_1h": DType.INT64, "limit": DType.FLOAT32, "city": DType.STRING, "since": DType.TIMESTAMP}
    assert {name: schema.field(name).type for name in declared} == {n: arrow_type(d) for n, d in declared.items()}
    assert schema.metadata[b"catalog_version"] == b"1" and b"metadata" not in schema.metadata


def test_on_demand_features_are_a_view_of_their_own(live: Live) -> None:
    body = {"feature_service": "share_v1", "entities": {"card_id": ["arrow"], "amount": [5.0]}}
    batch = batch_of(ask(live, body))
    assert batch.schema.names == ["card_id", "share", "share:status", "share:event_timestamp", ":t"]
    assert batch.to_pylist()[0] | {":t": None} == {
        "card_id": "arrow",
        "share": 2.0,
        "share:status": 0,
        "share:event_timestamp": None,
        ":t": None,
    }


def test_full_metadata_stands_in_the_schema(live: Live) -> None:
    body = {**BODY, "as_of": now(60)}
    held = orjson.loads(batch_of(ask(live, body, metadata="full")).schema.metadata[b"metadata"])
    told = live.post("/get-online-features", body, metadata="full")["metadata"]
    assert held == {name: value for name, value in told.items() if name != "feature_names"}
    assert set(held["views"]["card_spend"]) == {"positions", "watermark", "warming", "tier", "age_s"}


@pytest.mark.parametrize(
    ("accept", "arrow"),
    [
        (ARROW, True),
        (ARROW.upper(), True),
        (f"{ARROW}, application/json;q=0.5", True),
        (f"application/json;q=0.9, {ARROW};q=0.1", False),
        (f"{ARROW};q=0", False),
        (f"{ARROW};q=x", False),
        ("application/json", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_arrow_is_for_those_who_ask_for_it(live: Live, accept: str, arrow: bool) -> None:
    assert (ask(live, accept=accept).headers["content-type"] == ARROW) is arrow


def test_errors_stay_json(live: Live) -> None:
    reply = ask(live, {**BODY, "feature_service": "nope"}, status=404)
    assert reply.headers["content-type"] == "application/json"
    assert orjson.loads(reply.json())["error"] == "UnknownNameError"
