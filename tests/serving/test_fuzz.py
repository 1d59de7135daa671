"""Requests that nobody meant: a 4xx with a message or an answer, never a 5xx, never a hang; and the next is served."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pyarrow as pa
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance
from shop import Live, now

FEATURES, PUSH, WRITE, PREDICT = "/get-online-features", "/push", "/write-to-online-store", "/predict"
ARROW, NDJSON = "application/vnd.apache.arrow.stream", "application/x-ndjson"
TOLD = {200, 404, 409, 413, 415, 422}

some = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def api(live: Live) -> Any:
    return schemathesis.openapi.from_url(f"{live.url}/openapi.json")


OPERATIONS = {
    ("get", "/health"),
    ("get", "/metrics"),
    ("get", "/ready"),
    ("get", "/streams"),
    ("post", FEATURES),
    ("post", PREDICT),
    ("post", PUSH),
    ("post", WRITE),
}


def test_the_description_names_every_operation(api: Any) -> None:
    found = {(each.ok().method, each.ok().path) for each in api.get_all_operations()}
    assert found == OPERATIONS


@pytest.mark.parametrize(("method", "path"), sorted(OPERATIONS))
@pytest.mark.parametrize("mode", GenerationMode)
def test_replies_are_as_described_to_requests_as_described_and_to_others(
    api: Any, method: str, path: str, mode: GenerationMode
) -> None:
    """Statuses, content types, headers and bodies of replies; what the description forbids is refused. Names that are
    made up are not there, so valid bodies need not succeed."""
    operation = api[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(some, max_examples=20)
    def ask(case: Any) -> None:
        case.call_and_validate(excluded_checks=[positive_data_acceptance], timeout=10)

    try:
        ask()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE and method == "get"  # it takes nothing that could be wrong


def send(live: Live, path: str, body: bytes, kind: str = "application/json", **params: str) -> None:
    reply = live.http.post(path, content=body, params=params, headers={"content-type": kind}, timeout=10)
    assert reply.status_code in TOLD, (reply.status_code, reply.text, body)
    if reply.status_code != 200:
        assert set(orjson.loads(reply.json())) >= {"module", "class", "message"}


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        [2**63, -(2**63) - 1, 1e308, "NaN", "a", now(), "9999-12-31T23:59:59.999999Z", "\ud800", "\0", "{}"]
    )
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
columns = st.lists(values, max_size=5) | values
names = st.sampled_from(
    ["card_id", "amount", "id", "ts", "shop_id", "limit", "city", "vip", "since", "event_timestamp"]
)
frames = st.dictionaries(names | st.text(max_size=5), columns, max_size=6)
references = st.sampled_from(["card_spend:count_1h", "profile:city", "share:share", "profile:", ":", "nope:x", "a:b:c"])
lookups = st.fixed_dictionaries(
    {},
    optional={
        "entities": frames | st.fixed_dictionaries({"card_id": st.lists(values, min_size=1, max_size=3)}) | values,
        "feature_service": st.sampled_from(["card_v1", "share_v1", "nope"]) | values,
        "features": st.lists(references | values, max_size=3) | values,
        "full_feature_names": st.booleans() | values,
        "as_of": st.sampled_from([now(60), "2013-01-01", "0001-01-01T00:00:00Z"]) | values,
        "model": values,
    },
)
pushes = st.fixed_dictionaries(
    {},
    optional={
        "push_source_name": st.sampled_from(["payments", "clicks", "nope"]) | values,
        "feature_view_name": st.sampled_from(["profile", "card_spend", "share"]) | values,
        "df": frames,
        "to": st.sampled_from(["online", "offline", "online_and_offline"]) | values,
    },
)


def text_of(value: Any) -> bytes:
    """JSON as Python writes it, with NaN, infinities and lone surrogates."""
    return json.dumps(value).encode()


@given(body=lookups | values)
@some
def test_lookups_of_anything(live: Live, body: Any) -> None:
    send(live, FEATURES, text_of(body))
    send(live, FEATURES, text_of(body), metadata="full", timestamps="rfc3339")


@given(keys=st.lists(scalars, min_size=1, max_size=6), amounts=st.lists(scalars, min_size=6, max_size=6))
@some
def test_lookups_of_any_keys(live: Live, keys: list[Any], amounts: list[Any]) -> None:
    for service, entities in (
        ("card_v1", {"card_id": keys}),
        ("share_v1", {"card_id": ["a"] * len(keys), "amount": amounts[: len(keys)]}),
    ):
        send(live, FEATURES, text_of({"feature_service": service, "entities": entities}))


@given(body=pushes | values, path=st.sampled_from([PUSH, WRITE, PREDICT]))
@some
def test_pushes_and_writes_of_anything(live: Live, body: Any, path: str) -> None:
    send(live, path, text_of(body))


@given(body=st.binary(max_size=200), path=st.sampled_from([FEATURES, PUSH, WRITE, PREDICT]))
@some
def test_bytes_that_are_no_json(live: Live, body: bytes, path: str) -> None:
    send(live, path, body)


@given(
    lines=st.lists(st.binary(max_size=60) | frames.map(text_of), max_size=5),
    source=st.sampled_from(["payments", "clicks"]),
)
@some
def test_lines_of_anything(live: Live, lines: list[bytes], source: str) -> None:
    send(live, PUSH, b"\n".join(lines), NDJSON, source=source)


def stream_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


WHOLE = stream_of(pa.table({"id": ["1", "2"], "card_id": ["a", None], "amount": [1.5, 2.0], "ts": [now(), now()]}))


@given(data=st.data())
@some
def test_arrow_with_bytes_changed_or_cut(live: Live, data: st.DataObject) -> None:
    body = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    send(live, PUSH, bytes(body[: data.draw(st.integers(0, len(body)))]), ARROW, source="payments")


def test_whatever_was_pushed_the_next_event_counts(live: Live) -> None:
    live.push([{"id": "after the storm", "card_id": "calm", "amount": 1, "ts": now(-5)}])
    live.wait_until_applied()
    live.wait_until_applied("archived")
    assert live.look_up(["calm"])["count_1h"] == [1]
