"""Entries read by whole columns, where that gives what `read_rows` gives, which says what an event is.

Arrow's parser takes what orjson refuses: NaN and infinities, numbers beyond float64, bytes that are no UTF-8, any
depth, several objects on a line. Whatever may be any of these goes to `read_rows`, as do entries with a value of
another type. A batch that cannot be read as a whole is divided, so that one bad event costs its neighbours only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from numpy.typing import NDArray

from headrace.catalog.definitions import Source
from headrace.compute.columns import typed_array
from headrace.compute.row_reader import read_rows
from headrace.compute.typed_rows import TypedRows, column_payload, joined_rows, row_places
from headrace.dtypes import DType, arrow_type
from headrace.moments import EARLIEST_US, LATEST_US
from headrace.stores.stream import Entry

__all__ = ["typed_rows"]

LEAST_WORK = {"ndjson": 600, "arrow": 0}
"""By format, the work (events, and four for each entry) below which `read_rows` is as fast."""
WAYS = 16
"""Into how many parts a batch is divided that cannot be read whole."""
MOST_BYTES = 1 << 30
LONG_LINE_BYTES = 2_000
MOST_OPEN = 1_000
"""Brackets that a line may open: orjson reads 1,024 levels, which take more bytes than a long line has."""

_NEWLINE, _OPEN, _CLOSE = b"\n{}"
_UNIT_US = {"s": 1_000_000, "ms": 1_000, "us": 1}
# After a comma, colon, bracket or space: a number that may be infinite (others are below 10^299), or a word for one.
_ODD_VALUE = r"[:,\[ \t\r]-?(?:[0-9.]+[eE]\+?[0-9]{3}|[0-9]{200}|(?:NaN|Inf|Infinity)[ \t\r]*[,\]}])"

Reader = Callable[[Source, Sequence[Entry]], TypedRows | None]
Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


def typed_rows(source: Source, entries: Sequence[Entry]) -> TypedRows:
    """The rows of `entries`: equal to `read_rows` in everything."""
    pieces: list[TypedRows] = []
    slow: list[Entry] = []
    for some, rows in _attempts(source, entries):
        if rows is None:
            slow.extend(some)
            continue
        if slow:
            pieces.append(read_rows(source, slow))
            slow = []
        pieces.append(rows)
    if slow or not pieces:
        pieces.append(read_rows(source, slow))
    return joined_rows(pieces)


Attempt = tuple[Sequence[Entry], TypedRows | None]


def _attempts(source: Source, entries: Sequence[Entry]) -> Iterator[Attempt]:
    """`entries` in order, in parts; None for the rows of a part that cannot be read fast."""
    for format, run in groupby(entries, key=lambda entry: entry.format):
        some = list(run)
        if format in _READERS:
            yield from _divided(source, some, _attempt(source, some))
        else:
            yield some, None


def _attempt(source: Source, entries: Sequence[Entry]) -> TypedRows | None:
    return _READERS[entries[0].format](source, entries) if _is_worth_it(entries) else None


def _is_worth_it(entries: Sequence[Entry]) -> bool:
    return sum(entry.count for entry in entries) + 4 * len(entries) >= LEAST_WORK[entries[0].format]


def _divided(source: Source, entries: Sequence[Entry], rows: TypedRows | None) -> Iterator[Attempt]:
    if rows is not None or len(entries) == 1 or not _is_worth_it(entries):
        yield entries, rows
        return
    step = -(-len(entries) // WAYS)
    parts = [entries[start : start + step] for start in range(0, len(entries), step)]
    found = [_attempt(source, part) for part in parts]
    scarce = 4 * found.count(None) <= len(parts)  # where most parts fail, smaller ones would too
    for part, part_rows in zip(parts, found, strict=True):
        if scarce:
            yield from _divided(source, part, part_rows)
        else:
            yield part, part_rows


def _read_lines(source: Source, entries: Sequence[Entry]) -> TypedRows | None:
    data, counts = b"\n".join([entry.payload for entry in entries]), [entry.count for entry in entries]
    ends = _line_ends(data, entries) if len(data) < MOST_BYTES and min(counts) > 0 else None
    table = _json_table(source, data, ends) if ends is not None and _is_utf8(data) else None
    if table is None or table.num_rows != sum(counts):
        return None
    columns: dict[str, pa.Array] = {}
    refused: dict[int, str] = {}
    for column in source.columns:
        array = table[column.name].combine_chunks()
        if column.dtype.is_float and not _reads_the_same(array):
            return None
        columns[column.name], wrong = typed_array(_known(source, column.name, entries, array), column)
        refused = wrong | refused
    return TypedRows(columns, refused, *row_places(entries, counts), _LinePayloads(entries))


class _LinePayloads:
    """The line of a row; the lines of the entry asked last are kept."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries
        self._starts = [0, *accumulate(entry.count for entry in entries)]
        self._at = -1
        self._lines: list[bytes] = []

    def __call__(self, row: int) -> bytes:
        at = bisect_right(self._starts, row) - 1
        if at != self._at:
            self._at, self._lines = at, self._entries[at].payload.split(b"\n")
        return self._lines[row - self._starts[at]]


def _line_ends(data: bytes, entries: Sequence[Entry]) -> Ints | None:
    """Where the lines end, if every entry has as many as it states events, each with an object's brackets around it.

    No line can then take part of the next: an object that goes on needs a comma there, or a string with a newline.
    """
    text: Bytes = np.frombuffer(data, np.uint8)
    counts, sizes = [entry.count for entry in entries], [len(entry.payload) + 1 for entry in entries]
    ends = np.flatnonzero(text == _NEWLINE)
    if len(ends) != sum(counts) - 1 or not len(text) or text[0] != _OPEN or text[-1] != _CLOSE:
        return None
    whole = (text[ends - 1] == _CLOSE) & (text[ends + 1] == _OPEN)
    bounds = ends[np.cumsum(counts)[:-1] - 1] == np.cumsum(sizes)[:-1] - 1
    return ends if whole.all() and bounds.all() else None


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _json_table(source: Source, data: bytes, ends: Ints) -> pa.Table | None:
    fields = [(column.name, _JSON_TYPES.get(column.dtype, arrow_type(column.dtype))) for column in source.columns]
    read = partial(_read_json, data, pa.schema(fields))
    try:
        return read("error")
    except pa.ArrowException as error:
        if "unexpected field" not in str(error) or _is_odd(data, ends):
            return None
    try:
        return read("ignore")
    except pa.ArrowException:
        return None


_JSON_TYPES = {DType.TIMESTAMP: pa.string(), DType.FLOAT32: pa.float64()}
"""What a column is read as before `typed_array`, where that is not its own type."""


def _read_json(data: bytes, schema: pa.Schema, unexpected: str) -> pa.Table:
    return pyarrow.json.read_json(
        pa.BufferReader(data),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected),
    )


def _is_odd(data: bytes, ends: Ints) -> bool:
    """Whether a value that Arrow leaves out may be one for which orjson refuses its line."""
    starts, stops = np.r_[0, ends + 1], np.r_[ends, len(data)]
    long = np.flatnonzero(stops - starts > LONG_LINE_BYTES)
    for start, stop in zip(starts[long].tolist(), stops[long].tolist(), strict=True):
        if data.count(b"[", start, stop) + data.count(b"{", start, stop) > MOST_OPEN:
            return True
    size = np.array([0, len(data)], np.int32)
    text = pa.Array.from_buffers(pa.binary(), 1, [None, pa.py_buffer(size), pa.py_buffer(data)])
    return bool(pc.match_substring_regex(text, _ODD_VALUE)[0].as_py())


def _reads_the_same(column: pa.Array) -> bool:
    """Infinities and NaN are words or too large, which orjson refuses; -0 is an integer there, which has no sign."""
    numbers = np.asarray(column.fill_null(0.0))
    return bool(np.isfinite(numbers).all()) and not bool(((numbers == 0) & np.signbit(numbers)).any())


def _known(source: Source, name: str, entries: Sequence[Entry], array: pa.Array) -> pa.Array:
    """`array`, null for the events whose producer did not know the column yet."""
    for added, version in source.added:
        old = [0 < entry.catalog < version for entry in entries] if added == name else []
        if any(old):
            mask = np.repeat(old, [entry.count for entry in entries])
            array = pc.if_else(pa.array(mask), pa.scalar(None, array.type), array)
    return array


def _read_arrow(source: Source, entries: Sequence[Entry]) -> TypedRows | None:
    try:
        tables = [_ipc_table(entry) for entry in entries]
        if any(table.num_rows != entry.count for table, entry in zip(tables, entries, strict=True)):
            return None
        pieces = [_of_tables(source, list(some)) for _, some in groupby(zip(entries, tables, strict=True), _schema)]
    except (pa.ArrowException, OSError):
        return None
    rows = [piece for piece in pieces if piece is not None]
    return joined_rows(rows) if len(rows) == len(pieces) else None


def _ipc_table(entry: Entry) -> pa.Table:
    with pa.ipc.open_stream(entry.payload) as reader:
        return reader.read_all()


def _schema(pair: tuple[Entry, pa.Table]) -> pa.Schema:
    return pair[1].schema


def _of_tables(source: Source, pairs: Sequence[tuple[Entry, pa.Table]]) -> TypedRows | None:
    """The rows of entries of one schema, if Python could hold all of their values."""
    entries = [entry for entry, _ in pairs]
    table = pa.concat_tables([table for _, table in pairs])
    names = table.column_names
    if not names or len(set(names)) < len(names):
        return None
    table.validate(full=True)
    if not all(map(_is_plain, table.columns)):
        return None
    arrays = {name: table[name].combine_chunks() for name in names}
    columns: dict[str, pa.Array] = {}
    refused: dict[int, str] = {}
    for column in source.columns:
        array = arrays.get(column.name, pa.nulls(len(table), arrow_type(column.dtype)))
        columns[column.name], wrong = typed_array(_known(source, column.name, entries, array), column)
        refused = wrong | refused
    places = row_places(entries, [entry.count for entry in entries])
    return TypedRows(columns, refused, *places, column_payload(arrays))


def _is_plain(column: Any) -> bool:
    """Whether every value of a column is one that Python holds: none makes the whole entry unreadable."""
    kind = column.type
    if not pa.types.is_timestamp(kind):
        return any(is_kind(kind) for is_kind in _PLAIN) and kind != pa.float16()
    if kind.unit == "ns" or kind.tz not in (None, "UTC"):
        return kind.tz in (None, "UTC")  # pandas holds all nanoseconds
    found = pc.min_max(column.cast(pa.int64())).as_py()
    unit_us = _UNIT_US[kind.unit]
    return found["min"] is None or EARLIEST_US <= found["min"] * unit_us <= found["max"] * unit_us <= LATEST_US


_PLAIN = (
    pa.types.is_null,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_string,
    pa.types.is_large_string,
)
_READERS: Mapping[str, Reader] = {"ndjson": _read_lines, "arrow": _read_arrow}
