"""From what a caller pushes to stream entries: checked as a whole, split by partition and size.

Values are not looked at here: an event that cannot be typed becomes a dead letter where the stream is read. What is
refused is what no reader could take apart: columns of unequal length, no table at all. An event's partition is a hash
of its id (without one, of the event), so that a retry lands where the first went, in whatever format it comes.
"""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from headrace.catalog.definitions import Source
from headrace.errors import RequestError
from headrace.stores.stream import Format

__all__ = ["Batch", "arrow_batches", "column_batches", "ndjson_batches", "refuse_topic"]

ENTRY_EVENTS = 5_000
ENTRY_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Batch:
    """What one stream entry holds; `count` is at least 1."""

    partition: int
    format: Format
    payload: bytes
    count: int


def refuse_topic(source: Source) -> None:
    """Raises RequestError for a source whose events are not pushed."""
    if source.kafka is not None:
        raise RequestError(
            f"Events of {source.name!r} come from the Kafka topic {source.kafka.topic!r} at {source.kafka.servers}; "
            "produce to the topic instead of pushing."
        )


def column_batches(source: Source, columns: Mapping[str, Any]) -> list[Batch]:
    """Entries for a JSON object of columns, in row order per partition; none for no rows.

    Raises RequestError for columns that are not lists, of unequal length, or without the source's timestamp.
    """
    count = _row_count(columns)
    if count:
        _require_time(source, list(columns))
    kept = {column.name: columns[column.name] for column in source.columns if column.name in columns}
    ids = kept.get(source.event_id) if source.event_id else None
    try:
        parts = _by_partition(source, count, ids, lambda row: orjson.dumps([values[row] for values in kept.values()]))
        return [batch for partition, rows in parts for batch in _column_entries(partition, kept, rows)]
    except TypeError as error:
        raise RequestError(f"A push to {source.name!r} must hold plain JSON values: {error}.") from None


def _row_count(columns: Mapping[str, Any]) -> int:
    loose = [name for name, values in columns.items() if not isinstance(values, list)]
    if loose:
        raise RequestError(f"Every column must be a list of values, {loose[0]!r} is not; push {{column: [values]}}.")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise RequestError(f"Columns must have equal lengths, got {lengths}; fill gaps with null.")
    return next(iter(lengths.values()), 0)


def _require_time(source: Source, names: Sequence[str]) -> None:
    if source.timestamp not in names:
        raise RequestError(
            f"An event of {source.name!r} must have its event time in {source.timestamp!r}, "
            f"got the columns: {', '.join(names) or 'none'}; add it."
        )


def _column_entries(partition: int, columns: Mapping[str, list[Any]], rows: Sequence[int]) -> Iterator[Batch]:
    for some in _pieces(rows, ENTRY_EVENTS):
        payload = orjson.dumps({name: _take(values, some) for name, values in columns.items()})
        if len(payload) > ENTRY_BYTES and len(some) > 1:
            for half in _pieces(some, (len(some) + 1) // 2):
                yield from _column_entries(partition, columns, half)
        else:
            yield Batch(partition, "columns", payload, len(some))


def _take(values: list[Any], rows: Sequence[int]) -> list[Any]:
    return values[rows.start : rows.stop] if isinstance(rows, range) else [values[row] for row in rows]


def ndjson_batches(source: Source, body: bytes) -> list[Batch]:
    """Entries for newline-delimited JSON, one event a line; blank lines are no events, a byte order mark is none."""
    lines = [line for line in body.removeprefix(codecs.BOM_UTF8).split(b"\n") if line.strip()]
    ids = [_line_id(line, source.event_id) for line in lines] if source.partitions > 1 and source.event_id else None
    parts = _by_partition(source, len(lines), ids, lines.__getitem__)
    return [batch for partition, rows in parts for batch in _line_entries(partition, lines, rows)]


def _line_id(line: bytes, name: str) -> Any:
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return event.get(name) if isinstance(event, dict) else None


def _line_entries(partition: int, lines: Sequence[bytes], rows: Iterable[int]) -> Iterator[Batch]:
    held: list[bytes] = []
    size = 0
    for row in rows:
        if held and (len(held) == ENTRY_EVENTS or size + len(lines[row]) > ENTRY_BYTES):
            yield Batch(partition, "ndjson", b"\n".join(held), len(held))
            held, size = [], 0
        held.append(lines[row])
        size += len(lines[row]) + 1
    if held:
        yield Batch(partition, "ndjson", b"\n".join(held), len(held))


def arrow_batches(source: Source, body: bytes) -> list[Batch]:
    """Entries for an Arrow IPC stream.

    Raises RequestError for bytes that are none, for values that Python cannot hold, or without the timestamp.
    """
    table, values = _read_arrow(source, body)
    ids = values.get(source.event_id) if source.event_id else None
    parts = _by_partition(source, table.num_rows, ids, lambda row: repr([v[row] for v in values.values()]).encode())
    bytes_per_row = max(1, table.nbytes // max(1, table.num_rows))
    step = max(1, min(ENTRY_EVENTS, ENTRY_BYTES // bytes_per_row))
    return [
        Batch(partition, "arrow", _arrow_bytes(_rows_of(table, some)), len(some))
        for partition, rows in parts
        for some in _pieces(rows, step)
    ]


def _rows_of(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    return table.slice(rows.start, len(rows)) if isinstance(rows, range) else table.take(rows)


def _read_arrow(source: Source, body: bytes) -> tuple[pa.Table, dict[str, list[Any]]]:
    """The source's columns of an IPC stream, and their values."""
    try:
        with pa.ipc.open_stream(body) as reader:
            table = reader.read_all()
        table.validate(full=True)
        _require_time(source, table.column_names)
        table = table.select([column.name for column in source.columns if column.name in table.column_names])
        values = table.to_pydict()
        table = pa.table({name: _takeable(table[name], values[name]) for name in table.column_names})
    except (pa.ArrowException, KeyError, ValueError, OverflowError, OSError) as error:
        raise RequestError(f"A push of Arrow must be one IPC stream of typed columns: {error}.") from None
    return table, values


def _takeable(column: Any, values: list[Any]) -> Any:
    """`column`, rebuilt from its values if Arrow cannot take rows of its type: views (whose slices keep the whole
    buffer when written) and run-end encodings."""
    try:
        column.slice(0, 0).take(pa.array([], pa.int64()))
    except pa.ArrowNotImplementedError:
        return pa.array(values)
    return column


def _arrow_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    payload: bytes = sink.getvalue().to_pybytes()
    return payload


def _by_partition(
    source: Source, count: int, ids: Sequence[Any] | None, event: Callable[[int], bytes]
) -> list[tuple[int, Sequence[int]]]:
    """(partition, its rows) for every partition that has any; `event(row)` is hashed where there is no id."""
    if source.partitions == 1 or not count:
        return [(0, range(count))] if count else []
    parts: dict[int, list[int]] = {}
    for row in range(count):
        key = None if ids is None else _id_bytes(ids[row])
        key = event(row) if key is None else key
        parts.setdefault(zlib.crc32(key) % source.partitions, []).append(row)
    return sorted(parts.items())


def _id_bytes(event_id: Any) -> bytes | None:
    """What is hashed of an id: equal ids give equal bytes, 1.0 and 1 alike; None for what can be no id."""
    if isinstance(event_id, str):
        return event_id.encode(errors="surrogatepass")
    if isinstance(event_id, float) and event_id.is_integer():
        event_id = int(event_id)
    return b"%d" % event_id if type(event_id) is int else None


def _pieces(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
