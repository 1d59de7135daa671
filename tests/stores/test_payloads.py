from __future__ import annotations

from dataclasses import replace

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
