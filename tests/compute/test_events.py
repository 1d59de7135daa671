from __future__ import annotations

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveEvent, without_repeats

from headrace.catalog.definitions import Column, Source
from headrace.compute.columns import typed_column
from headrace.compute.events import Deduplicator, parse_entries
from headrace.dtypes import DType
from headrace.stores.stream import Entry, pack_offset

SOURCE = Source(
    "payments",
    (
        Column("id", DType.STRING),
        Column("n", DType.INT64),
        Column("amount", DType.FLOAT64),
        Column("ts", DType.TIMESTAMP),
    ),
    timestamp="ts",
    event_id="id",
)
NOW = pack_offset("1700000000000-0")
TS = "2023-11-14T22:00:00Z"


def ndjson(*rows: object, offset: int = NOW) -> Entry:
    lines = [row if isinstance(row, bytes) else orjson.dumps(row) for row in rows]
    return Entry(offset, "ndjson", len(lines), len(lines), b"\n".join(lines))


def test_one_poisonous_row_costs_one_row() -> None:
    good = {"id": "a", "n": 1, "amount": 2, "ts": TS}
    bad = [
        b"{",
        b"[1]",
        {**good, "n": 1.5},
        {**good, "n": True},
        {**good, "amount": "1"},
        {**good, "ts": None},
        {"id": "x"},
    ]
    batch = parse_entries(SOURCE, 0, [ndjson(good, *bad, good)], "wall", None)
    assert batch.index.tolist() == [0, 8] and batch.table["amount"].to_pylist() == [2.0, 2.0]
    assert [letter.index for letter in batch.dead] == [1, 2, 3, 4, 5, 6, 7]
    assert batch.dead[0].payload == b"{" and "JSON object" in batch.dead[0].reason
    assert batch.dead[2].reason == "n must be int64, got 1.5"
    assert "no event time" in batch.dead[5].reason
    assert batch.end.index == 8 and batch.end.total == 9


def test_an_event_too_far_ahead_is_refused_under_the_wall_clock_only() -> None:
    row = {"id": "a", "ts": "2023-11-15T22:00:00Z"}
    assert "after arrival" in parse_entries(SOURCE, 0, [ndjson(row)], "wall", None).dead[0].reason
    assert not parse_entries(SOURCE, 0, [ndjson(row)], "event", None).dead


def test_formats_give_the_same_events() -> None:
    rows = [{"id": "a", "n": 1, "amount": 1.5, "ts": TS}, {"id": "b", "n": None, "amount": None, "ts": TS}]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    table = pa.table({**columns, "ts": pa.array([1_700_000_000_000_000] * 2, pa.timestamp("us"))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    entries = [
        ndjson(*rows),
        Entry(NOW, "columns", 2, 2, orjson.dumps(columns)),
        Entry(NOW, "arrow", 2, 2, sink.getvalue().to_pybytes()),
    ]
    tables = [parse_entries(SOURCE, 0, [entry], "wall", None).table for entry in entries]
    assert tables[0].equals(tables[1])
    assert tables[2].drop_columns("ts").equals(tables[0].drop_columns("ts"))


def test_under_the_event_clock_arrival_is_the_running_maximum() -> None:
    rows = [{"id": str(i), "ts": f"2023-01-01T00:00:0{s}Z"} for i, s in enumerate([3, 1, 5])]
    batch = parse_entries(SOURCE, 0, [ndjson(*rows)], "event", None)
    seconds = ((batch.arrival_us - batch.event_time_us.min()) // 1_000_000).tolist()
    assert seconds == [2, 2, 4] and batch.watermark_us == batch.event_time_us.max()


IDS = st.sampled_from(["a", "b", "c", None])


@given(st.lists(st.tuples(IDS, st.integers(0, 15)), max_size=30), st.integers(1, 5), st.integers(0, 10))
@settings(deadline=None)
def test_repeats_equal_the_loop(pushes: list[tuple[str | None, int]], batch_size: int, remembered: int) -> None:
    minute = 60_000
    now, entries, events = 1_700_000_000_000, [], []
    for i, (event_id, gap) in enumerate(pushes):
        now += gap * minute
        offset = pack_offset(f"{now}-{i}")
        entries.append(ndjson({"id": event_id, "ts": TS}, offset=offset))
        events.append(NaiveEvent("k", 0, (0, offset, 0), event_id=event_id, arrival_us=now * 1000))
    marker, kept = Deduplicator(SOURCE), []
    marker.remember([e.event_id for e in events[:remembered]], [e.arrival_us for e in events[:remembered]])
    entries, due = entries[remembered:], without_repeats(events, SOURCE.dedup_horizon_us)
    for start in range(0, len(entries), batch_size):
        batch = parse_entries(SOURCE, 0, entries[start : start + batch_size], "wall", None)
        marker.mark(batch)
        kept += batch.offset[~batch.is_repeat].tolist()
    assert kept == [event.position[1] for event in due if event in events[remembered:]]


FORMS = ["2013-01-01", "2013-01-01T05", "2013-01-01 05:06", "2013-01-01T05:06:07.5", "2013-01-01T05:06:07+01:00"]
FORMS += [
    "2013-01-01T05:06:07Z",
    "2013-01-01T05:06:07.123456Z",
    "2013-01-01T05:06:07.123456789Z",
    "2013-01-01T05:06+0100",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_timestamp_reads_the_same_alone_and_among_others(form: str) -> None:
    column = Column("ts", DType.TIMESTAMP)
    alone, refused = typed_column([form], column)
    assert not refused
    among, _ = typed_column([form, "nonsense", "2013-01-01T00:00:00.1234567+02:00"], column)
    assert alone[0] == among[0]


def test_whole_floats_are_integers_and_big_integers_floats() -> None:
    assert typed_column([1.0, 2, float("nan"), None], Column("n", DType.INT64))[0].to_pylist() == [1, 2, None, None]
    assert typed_column([2**53 + 1, 0.5], Column("x", DType.FLOAT64))[0].to_pylist() == [float(2**53), 0.5]
    array, bad = typed_column([1e39, 1.0], Column("x", DType.FLOAT32))
    assert array.to_pylist() == [None, 1.0] and bad == {0: "x must be float32, got 1e+39: out of range"}
    array, bad = typed_column([float("inf")], Column("x", DType.FLOAT64))
    assert array.to_pylist() == [None] and "infinities" in bad[0]
    assert set(typed_column([2**31, 1], Column("n", DType.INT32))[1]) == {0}
