"""The fast ways of reading entries against `read_rows`, which says what an event is."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pyarrow as pa
import pytest

from headrace.catalog.definitions import Column, Source
from headrace.catalog.expectations import parse_expectations
from headrace.compute import events, fast_parse
from headrace.compute.columns import typed_array, typed_column
from headrace.compute.events import EventBatch, parse_entries
from headrace.compute.fast_parse import typed_rows
from headrace.compute.row_reader import read_rows
from headrace.compute.typed_rows import TypedRows
from headrace.dtypes import DType
from headrace.stores.stream import Entry, pack_offset

COLUMNS = (
    Column("s", DType.STRING),
    Column("i", DType.INT64),
    Column("j", DType.INT32),
    Column("f", DType.FLOAT64),
    Column("g", DType.FLOAT32),
    Column("b", DType.BOOL),
    Column("ts", DType.TIMESTAMP),
)
SOURCE = Source("odd", COLUMNS, "ts")
NOW_MS = 1_700_000_000_000
TS = "2023-11-14T22:00:00Z"
ROW = {"s": "a", "i": 1, "j": 2, "f": 0.5, "g": 1.5, "b": True, "ts": TS}
FAST = dict(fast_parse._READERS)


@pytest.fixture(autouse=True)
def ways_taken(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Every batch tries the fast way, however small; how often one was gone to its end."""
    taken = {"fast": 0, "slow": 0}

    def counted(read: fast_parse.Reader) -> fast_parse.Reader:
        def reading(source: Source, entries: Sequence[Entry]) -> TypedRows | None:
            rows = read(source, entries)
            taken["slow" if rows is None else "fast"] += 1
            return rows

        return reading

    monkeypatch.setattr(fast_parse, "LEAST_WORK", {"ndjson": 0, "arrow": 0})
    monkeypatch.setattr(fast_parse, "_READERS", {name: counted(read) for name, read in FAST.items()})
    return taken


def entry(payload: bytes, count: int, number: int = 0, format: str = "ndjson", catalog: int = 0) -> Entry:
    return Entry(pack_offset(f"{NOW_MS}-{number}"), format, count, 0, payload, catalog)  # type: ignore[arg-type]


def lines(*rows: Any) -> Entry:
    written = [row if isinstance(row, bytes) else orjson.dumps(row) for row in rows]
    return entry(b"\n".join(written), len(written))


def bits(array: pa.Array) -> list[Any]:
    """The values, floats with their sign of zero."""
    return [str(value) if isinstance(value, float) else value for value in array.to_pylist()]


def described(rows: TypedRows) -> dict[str, Any]:
    return {
        "columns": {name: (array.type, bits(array)) for name, array in rows.columns.items()},
        "refused": rows.refused,
        "payloads": [rows.payload(row) for row in range(len(rows.offset))],
        "places": (rows.offset.dtype, rows.index.dtype, rows.offset.tolist(), rows.index.tolist()),
    }


def assert_the_same(source: Source, entries: Sequence[Entry]) -> None:
    assert described(typed_rows(source, entries)) == described(read_rows(source, entries)), entries


def whole(batch: EventBatch) -> tuple[Any, ...]:
    arrays = (batch.event_time_us, batch.arrival_us, batch.offset, batch.index, batch.is_repeat, batch.watermarks_us)
    return (
        batch.table.schema,
        {name: bits(batch.table[name]) for name in batch.table.column_names},
        [(array.dtype, array.tolist()) for array in arrays],
        batch.dead,
        batch.end,
        batch.unexpected,
        batch.before_us,
        batch.partition,
    )


NUMBERS = re.findall(
    r"\S+",
    """
    1 0 -1 -0 -0.0 0.0 1.0 2.5 1e5 1E5 1e+5 1e-5 -1e-5 0e0 -0e5 1e400 -1e400 1e-400 0e400 1.8e308 100e307
    1.7976931348623157e308 1.7976931348623159e308 123456789012345678901234567890e290 4.9e-324 2e-324
    1e999999999999 1e0000000001 01 -01 00 +1 1. .5 - 1e 1e+ 0x1 1_0 1f 0b1 2147483647 2147483648 -2147483648
    -2147483649 9007199254740993 9223372036854775807 9223372036854775808 -9223372036854775808
    -9223372036854775809 18446744073709551615 18446744073709551616 3.4028234663852886e38 3.4028235e38 3.5e38
    0.1 0.30000000000000004 123456789.123456789123456789 NaN -NaN nan NAN Inf -Inf inf Infinity -Infinity
    Infinit InfinityX 1e99 1e100
    """,
)
NUMBERS += ["1" + "0" * 308, "1" + "0" * 309, "2" + "0" * 308, "9" * 250 + "e58", "9" * 199 + "e99", "9" * 400 + ".5"]
NUMBERS += ["0." + "0" * 400 + "1e405", "1" + "0" * 400 + "e-300", "-" + "9" * 400]
STRINGS = [rb"", rb"a", rb"1", rb"\u0000", rb"\ud800", rb"\udc00", rb"\ud800\ud800", rb"\ud83d\ude00", rb"\ude00\ud83d"]
STRINGS += [rb"\\ud83d\udc00", rb"\ud83d\\ude00", rb"\uD83Dx", rb"\u12", rb"\x", rb"\/", rb"\"", rb"\\", b"\\", rb"\n"]
STRINGS += [b"\x00", b"\x01", b"\x1f", b"\x7f", b"\t", b"\r", b"\\\x00", b"\xff", b"\xed\xa0\x80", b"\xc0\x80"]
STRINGS += [
    b"\xf4\x90\x80\x80",
    b"\xf0\x9f\x98\x80",
    b"\xe2\x80\xa8",
    b"\xc3",
    b"NaN",
    b", Inf]",
    b": 1e400",
    b"}{",
    b"},{",
]
TIMES = [b"2013-01-01", b"2013-01-01T05", b"2013-01-01 05:06", b"2013-01-01T05:06:07.5", b"2013-01-01T05:06:07+01:00"]
TIMES += [b"2013-01-01T05:06:07Z", b"2013-01-01T05:06:07.123456789Z", b"2013-01-01T05:06+0100", b"0000-01-01T00:00:00Z"]
TIMES += [b"0001-01-01", b"9999-12-31T23:59:59-00:01", b"2013-02-30", b"2013-01-01T24:00:00", b"2013-01-01T05:06:60Z"]
TIMES += [
    b"0001-01-01T00:00:00+00:01",
    b"0000-12-31T23:30:00-01:00",
    b" 2013-01-01",
    b"20130101",
    b"2013-W01-1",
    b"2013-01-01T05:06:07z",
    b"nonsense",
]
STRINGS += TIMES
WORDS = [
    b"true",
    b"false",
    b"null",
    b"True",
    b"TRUE",
    b"nul",
    b"Null",
    b"nullnull",
    b"true1",
    b"undefined",
    b"'a'",
    b"",
]
WORDS += [
    b"1 2",
    b'"a""b"',
    b"/*c*/1",
    b"1/*c*/",
    b"1//",
    b"\x0c1",
    b"\x0b1",
    b"\xc2\xa01",
    b"\xef\xbb\xbf1",
    b"\x00",
    b"1\x00",
]
NESTED = [
    b"[]",
    b"{}",
    b"[1,]",
    b'{"a":1,}',
    b"[1 2]",
    b"[,]",
    b'{"a":1,"a":2}',
    b'{"a"}',
    b"{1:2}",
    b"[NaN]",
    b"[1.8e308]",
]
NESTED += [
    b'{"a":{"b":[1,{"c":null}]}}',
    b'{"a":-Inf}',
    b'{"a":"\\udc00"}',
    b'{"\\udc00":1}',
    b"[01]",
    b"[[]",
    b"[}",
    b'{"s":1}',
]
NESTED += [b"[" * n + b"]" * n for n in (999, 1_022, 1_023, 1_024, 1_100)]
NESTED += [b'{"a":' * n + b"1" + b"}" * n for n in (1_022, 1_023, 1_024)]
VALUES: list[bytes] = [word.encode() for word in NUMBERS] + [b'"%s"' % word for word in STRINGS] + WORDS + NESTED
NAMES = [b'"%s"' % column.name.encode() for column in COLUMNS] + [b'"u"', b'""', rb'"\u0073"', b"s", b"'s'", b'"\xff"']


@pytest.mark.parametrize("name", NAMES)
def test_any_token_reads_the_same_in_any_column(name: bytes) -> None:
    for value in VALUES:
        assert_the_same(SOURCE, [lines(b"{%s:%s}" % (name, value), b'{"ts":"%s"}' % TS.encode())])


LINES = [
    b"{}",
    b"{ }",
    b" {}",
    b"{} ",
    b"{}\r",
    b"\r{}",
    b"{},",
    b"{};",
    b"{}]",
    b"{}}",
    b"{{}",
    b"{}{}",
    b"{} {}",
    b"[{}]",
]
LINES += [
    b"",
    b" ",
    b"\x00",
    b"{}\x00",
    b"\x00{}",
    b"{}\x00{}",
    b"null",
    b"1",
    b"x",
    b"{",
    b"}",
    b'{"s":{}',
    b"\xef\xbb\xbf{}",
]
LINES += [
    b'{"s":"a","s":"b"}',
    rb'{"s":"a","\u0073":"b"}',
    b'{"i":null,"i":1}',
    b'{"u":1,"u":2}',
    b'{"s":"a",}',
    b'{,"i":1}',
]
LINES += [
    b'{"s" "a"}',
    b'{"i":1 "f":2}',
    b'{"i":1,,"f":2}',
    b'{"u":[{}',
    b'{"u":"}',
    b'{"":1}',
    b'"}',
    b'{"b":1}}',
    b"{}\xc2\x85",
]


@pytest.mark.parametrize("line", LINES)
def test_any_line_reads_the_same_among_others(line: bytes) -> None:
    good = orjson.dumps(ROW)
    for payload in (line, line + b"\n" + good, good + b"\n" + line, b"\n".join([good, line, good, line, line, good])):
        for count in {payload.count(b"\n") + 1, len([one for one in payload.split(b"\n") if one.strip()])}:
            assert_the_same(SOURCE, [entry(payload, count), lines(ROW)])


@pytest.mark.parametrize("counts", [(1, 3), (3, 1), (0, 4), (4, 0), (2, 2), (-1, 5)], ids=str)
def test_entries_that_state_other_counts_than_they_hold_read_the_same(counts: tuple[int, int]) -> None:
    payload = lines(ROW, ROW).payload
    assert_the_same(SOURCE, [entry(payload, count, number) for number, count in enumerate(counts)])
    assert_the_same(SOURCE, [entry(orjson.dumps(ROW), count, number) for number, count in enumerate((0, 2))])


def test_a_row_wrong_in_two_columns_has_the_reason_of_the_first(ways_taken: dict[str, int]) -> None:
    batch = [lines(ROW, {**ROW, "g": 3.5e38, "ts": "x"}, {**ROW, "ts": "y"})]
    assert_the_same(SOURCE, batch)
    assert ways_taken["fast"] and typed_rows(SOURCE, batch).refused[1].startswith("g must be float32")


@pytest.mark.parametrize("zones", [["Z"], [""], ["Z", ""], ["+01:00", "", "Z"]], ids=str)
def test_bad_times_among_many_read_the_same(zones: list[str]) -> None:
    times: list[str | None] = [f"2023-11-14T22:00:{i % 60:02}{zones[i % len(zones)]}" for i in range(3_000)]
    times[:2], times[1_000], times[2_999] = [None, "2023-11-14"], "nonsense", "0000-01-01"
    column = SOURCE.column("ts")
    typed, refused = typed_array(pa.array(times), column)
    assert (typed, refused) == typed_column(times, column) and set(refused) == {1_000, 2_999}


def random_value(chance: random.Random) -> bytes:
    if chance.random() < 0.2:
        some = [random_value(chance) for _ in range(chance.randrange(3))]
        if chance.random() < 0.5:
            return b"[%s]" % b",".join(some)
        return b"{%s}" % b",".join(b"%s:%s" % (chance.choice(NAMES), value) for value in some)
    return chance.choice(VALUES[:-8])


FITTING: dict[DType, Callable[[random.Random], Any]] = {
    DType.STRING: lambda chance: "".join(chance.choices('ab"\\/é😀\u2028\n\x00 {}[]:,', k=chance.randrange(6))),
    DType.INT64: lambda chance: chance.choice([0, -1, 2**63 - 1, -(2**63), chance.randrange(10**6)]),
    DType.INT32: lambda chance: chance.choice([0, 2**31 - 1, -(2**31), chance.randrange(10**6)]),
    DType.FLOAT64: lambda chance: chance.choice([0.1, 1e308, 5e-324, 2**53 + 1, 2**64 - 1, chance.gauss(0, 1e9)]),
    DType.FLOAT32: lambda chance: chance.choice([0.1, 3.4e38, 1e-45, 16_777_217, chance.gauss(0, 1)]),
    DType.BOOL: lambda chance: chance.random() < 0.5,
    DType.TIMESTAMP: lambda chance: chance.choice([TS, "2023-11-14T21:00:00.123456789+01:00", "2023-11-14T21:00:00"]),
}


def random_row(chance: random.Random) -> bytes:
    fields = {c.name: FITTING[c.dtype](chance) for c in COLUMNS if chance.random() < 0.8}
    fields |= {name: None for name in fields if chance.random() < 0.1}
    fields |= {"u": [1, {"a": "b"}]} if chance.random() < 0.1 else {}
    return orjson.dumps(dict(chance.sample(list(fields.items()), len(fields))))


def mutated(chance: random.Random, row: bytes) -> bytes:
    at, kind = chance.randrange(len(row) + 1), chance.random()
    if kind < 0.3:
        return row[:at] + chance.choice([b"\x00", b"\n", b'"', b"\\", b",", b"{", b"}", b"-", b"\xff", b" "]) + row[at:]
    if kind < 0.5:
        return row[:at] + row[at + 1 + chance.randrange(3) :]
    extra = b"%s:%s" % (chance.choice(NAMES), random_value(chance))
    return row[:-1] + (b"," if len(row) > 2 else b"") + extra + b"}"


@pytest.mark.parametrize("seed", range(10))
def test_random_batches_read_the_same(seed: int, ways_taken: dict[str, int]) -> None:
    chance = random.Random(seed)
    for _ in range(120):
        batch = []
        for number in range(chance.randrange(1, 6)):
            rows = [random_row(chance) for _ in range(chance.randrange(1, 5))]
            rows = [mutated(chance, row) if chance.random() < 0.08 else row for row in rows]
            batch.append(entry(b"\n".join(rows), len(rows) + (chance.random() < 0.02), number))
        assert_the_same(SOURCE, batch)
    assert min(ways_taken.values()) > 50


@pytest.mark.parametrize("clock", ["wall", "event"])
@pytest.mark.parametrize("watermark_us", [None, NOW_MS * 1_000 - 10_000_000])
def test_what_becomes_of_a_batch_is_the_same(
    clock: str, watermark_us: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {"i": ["not_null", "between(0, 900)"], "s": ["is_in(['a', 'b']): drop"], "f": ["between(0, 50): warn"]}
    expected = parse_expectations({**rules, "ts": ["max_lateness('20m')"]}, COLUMNS, "ts", "odd")
    source = replace(SOURCE, expectations=expected, event_id="s")
    chance = random.Random(5)
    batch = []
    for number in range(40):
        rows = [dict(ROW, i=chance.randrange(1_000), f=chance.random() * 60) for _ in range(5)]
        for row in rows:
            row["ts"] = chance.choice([TS, "2023-11-14T22:30:00Z", "2023-11-15T22:00:00Z", "0000-01-01", None, "x"])
            row["s"] = chance.choice(["a", "b", "c", None])
        batch.append(replace(lines(*rows, *[b"{"] * (number % 20 == 7)), offset=pack_offset(f"{NOW_MS}-{number}")))
    fast = whole(parse_entries(source, 0, batch, clock, watermark_us))
    monkeypatch.setattr(events, "typed_rows", read_rows)
    assert fast == whole(parse_entries(source, 0, batch, clock, watermark_us))
    assert {letter.reason.split()[0] for letter in fast[3]} >= {"expected", "no", "not", "ts"}


def test_one_bad_entry_leaves_the_fast_way_to_the_others(
    ways_taken: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [replace(lines(ROW, ROW), offset=pack_offset(f"{NOW_MS}-{number}")) for number in range(400)]
    batch[123] = replace(lines(ROW, {**ROW, "i": "x"}), offset=batch[123].offset)
    read_slowly: list[int] = []

    def counted(source: Source, entries: Sequence[Entry]) -> TypedRows:
        read_slowly.append(len(entries))
        return read_rows(source, entries)

    monkeypatch.setattr(fast_parse, "read_rows", counted)
    rows = typed_rows(SOURCE, batch)
    assert read_slowly == [1] and rows.refused == {247: "i must be int64, got 'x'"}
    assert ways_taken["slow"] == 4  # all, a sixteenth, a part of that, the entry


def test_a_batch_of_bad_entries_is_not_divided_to_the_end(ways_taken: dict[str, int]) -> None:
    batch = [replace(lines({**ROW, "i": "x"}), offset=pack_offset(f"{NOW_MS}-{number}")) for number in range(1_000)]
    assert len(typed_rows(SOURCE, batch).refused) == 1_000
    assert ways_taken == {"fast": 0, "slow": 1 + fast_parse.WAYS}


def test_a_column_that_came_later_is_null_in_older_entries() -> None:
    source = replace(SOURCE, added=(("i", 3), ("ts", 2)))
    batch = [entry(lines(ROW, ROW).payload, 2, number, catalog=catalog) for number, catalog in enumerate([0, 1, 2, 3])]
    assert_the_same(source, batch)
    assert typed_rows(source, batch).columns["i"].null_count == 4
    assert_the_same(source, [entry(lines({**ROW, "i": "x"}).payload, 1, n, catalog=c) for n, c in enumerate([1, 3])])
    assert_the_same(source, [replace(one, format="arrow", payload=ipc(pa.table(TABLE)), count=3) for one in batch])


def test_many_entries_that_cannot_be_read_cost_each_its_own() -> None:
    batch = [entry(b"junk", 2, number, format) for number, format in enumerate(["arrow", "columns", "csv"] * 20)]
    rows = typed_rows(SOURCE, [*batch, lines(ROW)])
    assert set(rows.refused) == set(range(120)) and all("cannot be read" in why for why in rows.refused.values())
    assert rows.payload(2) == b"junk" and rows.payload(3) == b"" and rows.payload(120) == orjson.dumps(ROW)


@pytest.mark.parametrize(
    "payload", [b'{"s":"ab"}', b'{"s":{"a":1,"b":2}}', b'{"s":["a"]}', b"[]", b"null", b'{"s":5}', b"{"]
)
def test_columns_that_are_no_lists_of_the_stated_length_cost_their_entry(payload: bytes) -> None:
    rows = read_rows(SOURCE, [entry(payload, 2, 0, "columns"), lines(ROW)])
    assert set(rows.refused) == {0, 1} and "cannot be read" in rows.refused[0]
    assert [rows.payload(row) for row in range(3)] == [payload, b"", orjson.dumps(ROW)]


def ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    written: bytes = sink.getvalue().to_pybytes()
    return written


MOMENTS = pa.array([1_700_000_000_123_456, None, -1])
TABLE: dict[str, Any] = {
    "s": ["a", None, "é"],
    "i": pa.array([1, None, -(2**63)]),
    "j": pa.array([1, None, 2**31 - 1], pa.int32()),
    "f": [0.1, None, -0.0],
    "g": pa.array([0.1, None, 3.4e38], pa.float32()),
    "b": [True, None, False],
    "ts": MOMENTS.cast(pa.timestamp("us", "UTC")),
}
BROKEN_TEXT = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"]).buffers())


def arrow_columns() -> Iterator[tuple[str, Any]]:
    """Columns that may stand in for those of TABLE, odd ones among them."""
    for kind in (pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.int64(), pa.uint64(), pa.float32(), pa.float64()):
        for name in "sijfgb":
            yield name, pa.array([1, None, 7], kind)
    for name in "sijfgb":
        yield name, pa.array([2**53 + 1, None, 2**63 - 1])
        yield name, pa.array([2**64 - 1, None, 2**31], pa.uint64())
        yield name, pa.nulls(3)
        yield name, pa.array([True, None, False])
    for name in "ijfg":
        for odd in (float("nan"), float("inf"), 1e39, 0.5, -0.0, 2.0**63):
            yield name, pa.array([1.0, odd, None])
        yield name, pa.array([1, 2, None], pa.float16())
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()), pa.binary()):
        yield "s", pa.array(["a", None, "b"], kind)
        yield "ts", pa.array([TS, None, "2013-01-01"], pa.string()).cast(kind)
        yield "ts", pa.array(["x", None, "2013-01-01T00:00:00+01:00"], pa.string()).cast(kind)
    yield from (("s", BROKEN_TEXT), ("u", BROKEN_TEXT), ("ts", pa.array([1, 2, 3])), ("u", pa.array([[1], None, []])))
    for unit in ("s", "ms", "us", "ns"):
        for zone in (None, "UTC", "+01:00", "Europe/Amsterdam", "Nowhere/Else"):
            for times in (
                [1_700_000_000, None, -1],
                [2**62, 0, 1],
                [-(2**63), 0, 1],
                [-62_135_596_800, 253_402_300_799, 0],
                [1 - 2**63, 2**63 - 1, None],
            ):
                for name in ("ts", "u"):
                    yield name, pa.array(times).cast(pa.timestamp(unit, zone))
    yield "u", pa.array([2**31 - 1, 0, None], pa.int32()).cast(pa.date32())
    yield "u", pa.array([2**62, 0, None]).cast(pa.duration("us"))


def test_arrow_columns_of_any_type_read_the_same(ways_taken: dict[str, int]) -> None:
    plain = ipc(pa.table(TABLE))
    for name, values in arrow_columns():
        odd = ipc(pa.table({**TABLE, name: values}))
        assert_the_same(SOURCE, [entry(plain, 3, 0, "arrow"), entry(odd, 3, 1, "arrow"), entry(plain, 3, 2, "arrow")])
    assert min(ways_taken.values()) > 50


def test_arrow_tables_of_any_shape_read_the_same() -> None:
    table, whole_ipc = pa.table(TABLE), ipc(pa.table(TABLE))
    twice = pa.table([*table.columns, table["s"]], names=[*table.column_names, "s"])
    payloads = [
        ipc(some) for some in (table.select([]), table.select(["ts"]), table.slice(1, 2), table.slice(0, 0), twice)
    ]
    payloads += [whole_ipc[:cut] for cut in range(0, len(whole_ipc), 40)] + [ipc(pa.concat_tables([table, table]))]
    for payload in payloads:
        for count in (0, 2, 3, 6):
            assert_the_same(SOURCE, [entry(payload, count, 0, "arrow"), entry(whole_ipc, 3, 1, "arrow")])


def test_formats_in_one_batch_keep_their_order() -> None:
    columns = entry(orjson.dumps({"ts": [TS, 5], "i": [1, 2]}), 2, 1, "columns")
    batch = [lines(ROW, ROW), columns, entry(ipc(pa.table(TABLE)), 3, 2, "arrow"), lines(ROW), columns, columns]
    assert_the_same(SOURCE, batch)
    assert typed_rows(SOURCE, batch).columns["i"].to_pylist() == [1, 1, 1, 2, 1, None, -(2**63), 1, 1, 2, 1, 2]
