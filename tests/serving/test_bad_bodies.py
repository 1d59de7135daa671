"""Bodies, moments and senders that break things: a 4xx with a message, never a 500, and the good beside the bad."""

from __future__ import annotations

import socket
import time
from typing import Any

import orjson
import pytest
from shop import Live, now

from serving.errors import error_response

BOTH_LANES = True
FEATURES = "/get-online-features"
FULL = {"metadata": "full"}
CARD = b'"entities":{"card_id":["a"]}'
NDJSON = {"content-type": "application/x-ndjson"}


def refused(live: Live, path: str, body: bytes, status: int = 422, **params: Any) -> str:
    """The message of a refusal."""
    reply = live.http.post(path, content=body, params=params)
    assert reply.status_code == status, reply.text
    message: str = orjson.loads(reply.json())["message"]
    return message


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize("depth", [250, 600, 1_000])
def test_an_entity_value_nested_however_deep_is_told_its_type(live: Live, depth: int) -> None:
    body = b'{"feature_service":"card_v1","entities":{"card_id":[%s]}}' % nested(depth)
    assert "card_id must be string, got a list" in refused(live, FEATURES, body)


@pytest.mark.parametrize("depth", [250, 600, 990])
def test_a_written_value_nested_however_deep_is_told_its_type(live: Live, depth: int) -> None:
    row = b'"card_id":["a"],"limit":[1],"vip":[null],"since":[null],"event_timestamp":["2013-05-01"]'
    body = b'{"feature_view_name":"profile","df":{%s,"city":[%s]}}' % (row, nested(depth))
    assert "city must be string, got a list" in refused(live, "/write-to-online-store", body)


def test_a_line_nested_however_deep_is_a_dead_letter_and_its_neighbours_arrive(live: Live) -> None:
    def line(event_id: bytes, amount: bytes) -> bytes:
        return b'{"id":"%s","card_id":"deep","amount":%s,"ts":"%s"}' % (event_id, amount, now(-5).encode())

    body = b"\n".join([line(b"d1", b"1"), line(b"d2", nested(1_000)), line(b"d3", b"2")])
    reply = live.http.post("/push", params={"source": "payments"}, content=body, headers=NDJSON)
    assert reply.json()["accepted"] == 3
    live.wait_until_applied()
    live.wait_until_applied("archived")
    assert live.look_up(["deep"])["count_1h"] == [2]


@pytest.mark.parametrize("depth", [254, 255, 300, 1_000])
def test_an_id_nested_however_deep_is_taken_by_a_source_of_many_partitions(live: Live, depth: int) -> None:
    body = b'{"id":%s,"ts":"2013-05-01"}' % nested(depth)
    reply = live.http.post("/push", params={"source": "clicks"}, content=body, headers=NDJSON)
    assert (reply.status_code, reply.json()["accepted"]) == (200, 1)


SURROGATES = {
    "entity name": (FEATURES, b'{"feature_service":"card_v1","entities":{"card_id":["a"],"\\ud800":[NaN]}}'),
    "entity value": (FEATURES, b'{"feature_service":"card_v1","entities":{"card_id":["\\ud800",NaN]}}'),
    "service": (FEATURES, b'{"feature_service":"\\ud800","entities":{"card_id":["a",NaN]}}'),
    "field": (FEATURES, b'{"\\ud800":1,"feature_service":"card_v1","entities":{"card_id":["a",NaN]}}'),
    "feature": (FEATURES, b'{"features":["\\ud800:x"],"entities":{"card_id":["a",NaN]}}'),
    "id of one partition": ("/push", b'{"push_source_name":"payments","df":{"id":["\\ud800"],"ts":[NaN]}}'),
    "id of many": ("/push", b'{"push_source_name":"clicks","df":{"id":["\\ud800"],"ts":[NaN]}}'),
    "written": ("/write-to-online-store", b'{"feature_view_name":"profile","df":{"city":["\\ud800"],"limit":[NaN]}}'),
    "model": ("/predict", b'{"model":"\\ud800","entities":{"card_id":[NaN]}}'),
}


@pytest.mark.parametrize(("path", "body"), SURROGATES.values(), ids=SURROGATES)
def test_half_a_surrogate_pair_is_refused_beside_a_nan_as_without_one(live: Live, path: str, body: bytes) -> None:
    for text in (body, body.replace(b"NaN", b"null")):
        assert "surrogate" in refused(live, path, text)


def test_what_python_writes_is_still_read(live: Live) -> None:
    body = b'{"feature_service":"share_v1","entities":{"card_id":["\\ud83d\\ude00","b"],"amount":[NaN,2]}}'
    reply = live.http.post(FEATURES, content=body)
    assert reply.status_code == 200 and reply.json()["results"][0]["values"] == ["😀", "b"]


def test_an_error_s_message_may_hold_what_utf_8_cannot() -> None:
    assert b"ud800" in error_response(422, "got \ud800").body


@pytest.mark.parametrize(
    "moment",
    ["9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00", "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", ""],
)
def test_an_as_of_outside_the_years_is_refused(live: Live, moment: str) -> None:
    body = orjson.dumps({"feature_service": "card_v1", "entities": {"card_id": ["a"]}, "as_of": moment})
    for params in ({}, FULL):
        assert "as_of must be timestamp" in refused(live, FEATURES, body, **params)


def write(live: Live, card: str, status: int = 200, **fields: Any) -> None:
    row = {"limit": 1.5, "city": "x", "vip": True, "since": None, "event_timestamp": now(-5)} | fields
    df = {"card_id": [card], **{name: [value] for name, value in row.items()}}
    live.post("/write-to-online-store", {"feature_view_name": "profile", "df": df}, status)


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59-01:00", "0000-05-05T00:00:00Z", 253_402_300_800, -(2**62)])
@pytest.mark.parametrize("column", ["since", "event_timestamp", "created"])
def test_a_written_time_outside_the_years_is_refused(live: Live, column: str, moment: str | int) -> None:
    write(live, "outside", 422, **{column: moment})


def test_the_last_moment_and_the_first_are_written_and_read(live: Live) -> None:
    last, first = "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z"
    write(live, "last", since=last)
    write(live, "first", since=first)
    live.wait_until_applied()
    assert live.look_up(["last", "first"])["since"] == [last, first]


def test_a_caller_who_leaves_is_no_failure_of_ours(live: Live) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    for path in ("/push", FEATURES):
        with socket.create_connection((host, int(port))) as caller:
            caller.sendall(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: 200\r\n\r\n{}" % path.encode())
            time.sleep(0.1)
    deadline = time.monotonic() + 10
    counted = [f'headrace_requests_total{{route="{path}",status="499"}} 1.0' for path in ("/push", FEATURES)]
    while not all(line in (text := live.http.get("/metrics").text) for line in counted):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    assert f'route="{FEATURES}",status="500"' not in text


def test_a_byte_order_mark_before_the_first_line_costs_no_event(live: Live) -> None:
    lines = [{"id": f"bom{i}", "card_id": "bom", "amount": 1, "ts": now(-5)} for i in range(2)]
    body = b"\xef\xbb\xbf" + b"\r\n".join(map(orjson.dumps, lines))
    live.http.post("/push", params={"source": "payments"}, content=body, headers=NDJSON).raise_for_status()
    live.wait_until_applied()
    assert live.look_up(["bom"])["count_1h"] == [2]
