from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import redis
from shop import Live, now

from headrace.stores.connection import open_store
from headrace.stores.stream import EventStream

ARROW = {"content-type": "application/vnd.apache.arrow.stream"}


def arrow_stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def test_the_three_formats_give_the_same_feature(live: Live) -> None:
    row = {"id": ["j"], "card_id": ["json"], "shop_id": [None], "amount": [1.5], "ts": [now(-5)], "more": ["x"]}
    reply = live.post("/push", {"push_source_name": "payments", "df": row, "to": "online_and_offline"})
    assert reply["accepted"] == 1
    live.push([{"id": "n", "card_id": "ndjson", "amount": 1.5, "ts": now(-5)}])
    table = pa.table({"id": ["a"], "card_id": ["arrow"], "amount": [1.5], "ts": [now(-5)]})
    table = table.set_column(3, "ts", table["ts"].cast(pa.timestamp("us", "UTC")))
    pushed = live.http.post("/push", params={"source": "payments"}, content=arrow_stream(table), headers=ARROW)
    assert pushed.json()["accepted"] == 1
    live.wait_until_applied()
    assert live.look_up(["json", "ndjson", "arrow"])["sum_1h"] == [1.5, 1.5, 1.5]


def test_the_position_is_that_of_the_last_event_and_becomes_applied_and_archived(live: Live) -> None:
    rows = [{"id": f"pos{i}", "card_id": "pos", "amount": i, "ts": now(-5)} for i in range(3)]
    position = live.push(rows)["position"]
    assert position["0"].endswith("-2")
    live.wait_until_applied("archived")
    streams = live.wait_until_applied()
    assert streams["payments"]["head"] == streams["payments"]["archived"] == position
    assert streams["payments"]["lag"] == 0
    assert streams["payments"]["watermark"] >= now(-3600)


def test_a_bad_event_is_taken_and_the_good_ones_around_it_count(live: Live) -> None:
    good = [{"id": f"good{i}", "card_id": "good", "amount": 1, "ts": now(-5)} for i in range(2)]
    assert live.push([good[0], {"id": "bad", "card_id": "good", "amount": "x", "ts": now()}, good[1]])["accepted"] == 3
    live.wait_until_applied()
    assert live.look_up(["good"])["count_1h"] == [2]


def test_a_repeat_counts_once_and_lines_may_be_blank(live: Live) -> None:
    row = {"id": "again", "card_id": "again", "amount": 1, "ts": now(-5)}
    live.push([row])
    live.push([row])
    body = b'\n\n  \n{"id":"again2","card_id":"again","amount":1,"ts":"%s"}\n\n' % now(-5).encode()
    headers = {"content-type": "application/x-ndjson; charset=utf-8"}
    reply = live.http.post("/push", params={"source": "payments"}, content=body, headers=headers)
    assert reply.json()["accepted"] == 1
    live.wait_until_applied()
    assert live.look_up(["again"])["count_1h"] == [2]


def test_nothing_is_accepted_of_nothing(live: Live) -> None:
    assert live.push([]) == {"accepted": 0, "position": {}}
    empty: dict[str, Any] = {"push_source_name": "payments", "df": {}}
    assert live.post("/push", empty) == {"accepted": 0, "position": {}}
    assert live.post("/push", {**empty, "df": {"id": [], "ts": []}}) == {"accepted": 0, "position": {}}


def test_an_event_s_partition_hangs_on_its_id_in_every_format(live: Live) -> None:
    ids, moment = list(range(20)), now(-5)
    pushed = live.post("/push", {"push_source_name": "clicks", "df": {"id": ids, "ts": [moment] * 20}})
    live.push([{"id": i, "ts": moment} for i in ids], "clicks")
    table = pa.table({"id": ids, "ts": pa.array([moment] * 20).cast(pa.timestamp("us", "UTC"))})
    live.http.post("/push", params={"source": "clicks"}, content=arrow_stream(table), headers=ARROW)
    assert set(pushed["position"]) == {"0", "1", "2"}
    with open_store(live.settings) as store:
        heads = [EventStream(store, "shop").head("clicks", partition) for partition in range(3)]
    assert [head.total == 3 * head.count for head in heads if head] == [True] * 3
    assert sum(head.total for head in heads if head) == 60


def test_a_large_push_becomes_several_entries(live: Live) -> None:
    rows = [{"id": f"L{i}", "card_id": "L", "ts": now(-5)} for i in range(12_000)]
    before = live.wait_until_applied()["payments"]["head"]
    assert live.push(rows)["accepted"] == 12_000
    assert live.http.get("/streams").json()["payments"]["head"] != before
    live.wait_until_applied()
    assert live.look_up(["L"])["count_1h"] == [12_000]


DF = {"id": ["1"], "card_id": ["a"], "amount": [1], "ts": ["2026-01-01T00:00:00Z"]}
WRONG: list[tuple[str, Any, int, str]] = [
    ("unknown source", {"push_source_name": "nope", "df": DF}, 404, "no source 'nope'"),
    ("to offline", {"push_source_name": "payments", "df": DF, "to": "offline"}, 422, "online or online_and_offline"),
    ("unequal columns", {"push_source_name": "payments", "df": {**DF, "id": ["1", "2"]}}, 422, "equal lengths"),
    ("no list", {"push_source_name": "payments", "df": {"id": 1}}, 422, "list"),
    ("no event time", {"push_source_name": "payments", "df": {"id": ["1"]}}, 422, "event time in 'ts'"),
    ("no source", {"df": DF}, 422, "push_source_name"),
]


@pytest.mark.parametrize(("body", "status", "message"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_wrong_push_is_told_why(live: Live, body: Any, status: int, message: str) -> None:
    assert message in live.post("/push", body, status)


@pytest.mark.parametrize(
    ("kind", "source", "body", "status"),
    [
        ("text/csv", "payments", b"a,b", 415),
        ("application/x-ndjson", None, b"{}", 422),
        ("application/x-ndjson", "nope", b"{}", 404),
        (ARROW["content-type"], "payments", b"nonsense", 422),
        (ARROW["content-type"], "payments", arrow_stream(pa.table({"id": ["a"]})), 422),
        (
            ARROW["content-type"],
            "payments",
            arrow_stream(pa.table({"ts": pa.array([2**62], pa.timestamp("us", "UTC"))})),
            422,
        ),
        ("application/json", None, b"{", 422),
    ],
)
def test_a_raw_push_that_nobody_can_read_is_refused(
    live: Live, kind: str, source: str | None, body: bytes, status: int
) -> None:
    params = {"source": source} if source else {}
    assert live.http.post("/push", params=params, content=body, headers={"content-type": kind}).status_code == status


def row(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"card_id": "w", "limit": 10, "city": "Ulm", "vip": True, "since": None}
    return values | {"event_timestamp": "2026-01-01T00:00:00", "created": None} | changes


def write(live: Live, *rows: dict[str, Any], status: int = 200, view: str = "profile") -> Any:
    df = {name: [row[name] for row in rows] for name in rows[0]}
    body = {"feature_view_name": view, "df": df, "allow_registry_cache": False}
    return live.post("/write-to-online-store", body, status)


def test_rows_written_directly_are_served_the_newest_winning(live: Live) -> None:
    write(live, row(event_timestamp=now(-5)[:-1], limit=20), row(event_timestamp=now(-60)[:-1], limit=10))
    write(live, row(event_timestamp=now(-30)[:-1], limit=15))
    write(live, row(card_id="old", event_timestamp="2020-01-01T00:00:00"))
    write(live, row(card_id="sdk", event_timestamp=now(-5)[:-1], since=1_356_998_400))
    live.wait_until_applied()
    seen = live.look_up(["w", "old", "sdk"])
    assert seen["limit"] == [20, None, 10]
    assert seen["since"] == [None, None, "2013-01-01T00:00:00Z"]


def test_nan_as_python_writes_it_is_null(live: Live) -> None:
    text = (
        '{"feature_view_name": "profile", "df": {"card_id": ["nan"], "limit": [NaN], "city": [null], "vip": [null], '
        '"since": [null], "event_timestamp": ["%s"], "created": [null]}}'
    )
    assert live.http.post("/write-to-online-store", content=text % now(-5)[:-1]).status_code == 200
    live.wait_until_applied()
    assert live.look_up(["nan"])["limit"] == [None]


def test_rows_that_cannot_be_written_are_told_why(live: Live) -> None:
    assert "takes no rows" in write(live, row(), view="card_spend", status=422)
    assert "on-demand view" in write(live, row(), view="share", status=422)
    assert "no feature view" in write(live, row(), view="nope", status=404)
    assert "missing: card_id" in write(live, {"limit": 1, "city": "", "vip": True, "since": None}, status=422)
    assert "limit must be float32" in write(live, row(limit="x"), status=422)
    assert "row 0 has none" in write(live, row(event_timestamp=None), status=422)
    assert "outside the years" in write(live, row(since=2**60), status=422)


def test_a_store_that_is_down_is_503_with_retry_after(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(*args: Any) -> None:
        raise redis.ConnectionError("gone")

    monkeypatch.setattr("headrace.stores.appends.append_async", gone)
    reply = live.http.post("/push", json={"push_source_name": "payments", "df": DF})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")


def test_a_defect_is_a_plain_500_without_a_trace(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*args: Any) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("headrace.stores.appends.append_async", broken)
    reply = live.http.post("/push", json={"push_source_name": "payments", "df": DF})
    assert reply.status_code == 500
    assert "secret" not in reply.text
