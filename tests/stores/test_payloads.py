from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa
import pytest

from headrace.catalog.definitions import Column, Source
from headrace.compute.events import parse_entries
from headrace.dtypes import DType
from headrace.errors import RequestError
from headrace.stores import payloads
from headrace.stores.payloads import Batch, arrow_batches, column_batches, ndjson_batches
from headrace.stores.stream import Entry

ONE = Source("s", (Column("id", DType.STRING), Column("ts", DType.TIMESTAMP)), "ts", event_id="id")
MANY = replace(ONE, partitions=4)
WITHOUT_ID = replace(MANY, event_id=None)
ROWS = [{"id": f"e{i}", "ts": "2026-01-01T00:00:00Z"} for i in range(103)]
COLUMNS = {"id": [row["id"] for row in ROWS], "ts": [row["ts"] for row in ROWS]}
LINES = b"\n".join(map(orjson.dumps, ROWS))


def arrow_body() -> bytes:
    table = pa.table({"id": COLUMNS["id"], "ts": pa.array(COLUMNS["ts"]).cast(pa.timestamp("us", "UTC"))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def ids(source: Source, batches: list[Batch]) -> dict[int, list[str]]:
    """The ids that a reader of the stream finds, by partition, in order."""
    found: dict[int, list[str]] = {}
    for offset, batch in enumerate(batches, start=1):
        entry = Entry(offset, batch.format, batch.count, batch.count, batch.payload)
        parsed = parse_entries(source, batch.partition, [entry], "event", None)
        assert len(parsed) == batch.count
        found.setdefault(batch.partition, []).extend(parsed.table["id"].to_pylist())
    return found


@pytest.mark.parametrize("source", [ONE, MANY], ids=["one partition", "four"])
def test_every_format_sends_an_event_to_the_same_place_in_the_same_order(source: Source) -> None:
    by_columns = ids(source, column_batches(source, COLUMNS))
    assert by_columns == ids(source, ndjson_batches(source, LINES)) == ids(source, arrow_batches(source, arrow_body()))
    assert len(by_columns) == source.partitions
    assert sorted(event_id for found in by_columns.values() for event_id in found) == sorted(COLUMNS["id"])


@pytest.mark.parametrize(("events", "size"), [(10, 4 << 20), (5_000, 300), (7, 200), (5_000, 1)])
def test_entries_are_split_by_events_and_by_bytes(monkeypatch: pytest.MonkeyPatch, events: int, size: int) -> None:
    monkeypatch.setattr(payloads, "ENTRY_EVENTS", events)
    monkeypatch.setattr(payloads, "ENTRY_BYTES", size)
    for batches in (column_batches(ONE, COLUMNS), ndjson_batches(ONE, LINES), arrow_batches(ONE, arrow_body())):
        assert len(batches) >= 5
        assert max(batch.count for batch in batches) <= events
        assert ids(ONE, batches) == {0: COLUMNS["id"]}
    for batches in (column_batches(ONE, COLUMNS), ndjson_batches(ONE, LINES)):
        assert all(batch.count == 1 or len(batch.payload) <= size for batch in batches)


def test_without_an_id_a_retried_push_lands_where_the_first_went() -> None:
    first, again = (column_batches(WITHOUT_ID, COLUMNS) for _ in range(2))
    assert first == again
    assert len({batch.partition for batch in first}) == 4


def test_a_line_that_is_no_event_still_has_a_partition() -> None:
    batches = ndjson_batches(MANY, b'nonsense\n[1]\n{"id": null}\n\n{"id": {"a": 1}}')
    assert sum(batch.count for batch in batches) == 4


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": "a", "ts": []}, "'id' is not"),
        ({"id": ["a"], "ts": []}, "equal lengths"),
        ({"id": ["a"]}, "event time in 'ts'"),
        ({"id": [2**70], "ts": [None]}, "plain JSON"),
        ({"id": ["\ud800"], "ts": [None]}, "plain JSON"),
    ],
)
def test_columns_that_no_reader_could_take_apart_are_refused(columns: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        column_batches(ONE, columns)


def test_columns_that_the_source_does_not_have_are_left_behind() -> None:
    (batch,) = column_batches(ONE, {"id": ["a"], "ts": [None], "more": [1]})
    assert orjson.loads(batch.payload) == {"id": ["a"], "ts": [None]}
    assert column_batches(ONE, {}) == column_batches(ONE, {"id": []}) == ndjson_batches(ONE, b" \n\n") == []


def arrow(**columns: Any) -> bytes:
    table = pa.table({**columns, "ts": ["2013-05-01T00:00:00Z"] * len(next(iter(columns.values())))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def read(source: Source, batches: list[Batch]) -> tuple[list[Any], dict[str, int]]:
    """(the ids that a reader finds, in the order of text; how often each reason for a dead letter)."""
    found: list[Any] = []
    reasons: dict[str, int] = {}
    for offset, batch in enumerate(batches, start=1):
        entry = Entry(offset, batch.format, batch.count, batch.count, batch.payload)
        parsed = parse_entries(source, batch.partition, [entry], "event", None)
        found += parsed.table["id"].to_pylist()
        for letter in parsed.dead:
            reasons[letter.reason] = reasons.get(letter.reason, 0) + 1
    return sorted(found, key=str), reasons


NUMBERED = replace(ONE, columns=(Column("id", DType.INT64), Column("ts", DType.TIMESTAMP)))
KINDS: dict[str, tuple[Source, Any]] = {
    "infinities": (NUMBERED, pa.array([1.0, float("inf"), float("-inf"), float("nan"), 2.5])),
    "binary": (ONE, pa.array([b"\xff", b"a", None])),
    "decimals": (NUMBERED, pa.array([Decimal("1.5"), Decimal("2")])),
    "string views": (ONE, pa.array(["a", "b", None, "a long one, past the inlined bytes"], pa.string_view())),
    "run ends": (ONE, pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["a", "b"]))),
    "dictionary": (ONE, pa.array(["a", "b", "a"]).dictionary_encode()),
    "nested": (ONE, pa.array([[{"a": 1}], None, []])),
    "nested views": (ONE, pa.array([["a"], ["b"]], pa.list_(pa.string_view()))),
    "durations": (NUMBERED, pa.array([1, 2, None], pa.duration("s"))),
    "nothing": (ONE, pa.nulls(3)),
}


@pytest.mark.parametrize(("source", "ids"), KINDS.values(), ids=KINDS)
def test_what_becomes_of_an_arrow_value_does_not_depend_on_the_number_of_partitions(source: Source, ids: Any) -> None:
    body, many = arrow(id=ids), replace(source, partitions=4)
    one = read(source, arrow_batches(source, body))
    assert read(many, arrow_batches(many, body)) == one
    assert len(one[0]) + sum(one[1].values()) == len(ids)


def test_pieces_of_a_column_of_string_views_hold_their_own_rows_alone() -> None:
    body = arrow(id=pa.array([f"{i:_>40}" for i in range(12_000)], pa.string_view()))
    batches = arrow_batches(ONE, body)
    assert len(batches) == 3
    assert sum(len(batch.payload) for batch in batches) < 2 * len(body)


@pytest.mark.parametrize("depth", [253, 254, 255, 300, 1_000])
@pytest.mark.parametrize("source", [ONE, MANY], ids=["one partition", "four"])
def test_an_id_nested_however_deep_is_a_dead_letter_wherever_it_lands(source: Source, depth: int) -> None:
    line = b'{"id":%s,"ts":"2013-05-01T00:00:00Z"}' % (b"[" * depth + b"]" * depth)
    good = b'{"id":"a","ts":"2013-05-01T00:00:00Z"}'
    found, reasons = read(source, ndjson_batches(source, line + b"\n" + good))
    assert (found, reasons) == (["a"], {"id must be string, got a list": 1})


def test_columns_with_an_id_that_utf_8_cannot_hold_are_refused_in_any_partition() -> None:
    with pytest.raises(RequestError, match="plain JSON"):
        column_batches(MANY, {"id": ["\ud800"], "ts": [None]})


def test_equal_numbers_are_equal_ids_in_every_format() -> None:
    source = replace(NUMBERED, partitions=64)
    for number in (1, -7, 0, 2**53):
        moment = "2013-05-01T00:00:00Z"
        batches = [
            *ndjson_batches(source, b'{"id":%d,"ts":"%s"}\n{"id":%d.0,"ts":1}' % (number, moment.encode(), number)),
            *column_batches(source, {"id": [number, float(number)], "ts": [moment, moment]}),
            *arrow_batches(source, arrow(id=[number])),
            *arrow_batches(source, arrow(id=[float(number)])),
        ]
        assert len({batch.partition for batch in batches}) == 1


def test_a_byte_order_mark_is_no_part_of_the_first_event() -> None:
    body = b'\xef\xbb\xbf{"id":"a","ts":"2013-05-01T00:00:00Z"}\r\n{"id":"b","ts":"2013-05-01T00:00:00Z"}\r\n'
    assert read(ONE, ndjson_batches(ONE, body)) == read(MANY, ndjson_batches(MANY, body)) == (["a", "b"], {})
    assert ndjson_batches(ONE, b"\xef\xbb\xbf") == []
