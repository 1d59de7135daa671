"""Entries read value by value: what an event is. Every faster way (`headrace/compute/fast_parse.py`) gives the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from headrace.catalog.definitions import Source
from headrace.compute.columns import typed_column
from headrace.compute.typed_rows import Payload, TypedRows, column_payload, joined_payload, row_places
from headrace.errors import DataError
from headrace.stores.stream import Entry

__all__ = ["read_rows"]

_UNREADABLE = (
    DataError,
    pa.ArrowException,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    OverflowError,  # a date that Python cannot hold
    OSError,  # an IPC stream that ends early
)


@dataclass(slots=True)
class _Taken:
    """One entry taken apart: untyped values by column, and rows that are no object at all."""

    count: int
    values: dict[str, Sequence[Any]]
    payload: Payload
    refused: dict[int, str] = field(default_factory=dict)


def read_rows(source: Source, entries: Sequence[Entry]) -> TypedRows:
    """The rows of `entries` (none give no rows)."""
    taken = [_take(source, entry) for entry in entries]
    counts = [one.count for one in taken]
    refused = _all_refused(taken)
    columns = {}
    for column in source.columns:
        values: list[Any] = []
        for one in taken:
            values.extend(one.values[column.name])
        columns[column.name], wrong = typed_column(values, column)
        refused = wrong | refused
    offset, index = row_places(entries, counts)
    return TypedRows(columns, refused, offset, index, joined_payload([one.payload for one in taken], counts))


def _take(source: Source, entry: Entry) -> _Taken:
    names = [column.name for column in source.columns]
    try:
        taken = _READERS[entry.format](entry, names)
    except _UNREADABLE as error:
        taken = _unreadable(entry, names, str(error))
    for name, version in source.added:
        if 0 < entry.catalog < version:
            taken.values[name] = [None] * taken.count
    return taken


def _all_refused(taken: Sequence[_Taken]) -> dict[int, str]:
    refused, start = {}, 0
    for one in taken:
        for row, why in one.refused.items():
            refused[start + row] = why
        start += one.count
    return refused


def _unreadable(entry: Entry, names: Sequence[str], error: str) -> _Taken:
    """An entry that cannot be taken apart: all of its events are dead, the first carries the payload."""
    reason = f"the entry cannot be read: {error[:200]}"
    values: dict[str, Sequence[Any]] = {name: [None] * entry.count for name in names}
    payloads = [entry.payload, *[b""] * (entry.count - 1)]
    return _Taken(entry.count, values, payloads.__getitem__, dict.fromkeys(range(entry.count), reason))


def _read_ndjson(entry: Entry, names: Sequence[str]) -> _Taken:
    lines = [line for line in entry.payload.split(b"\n") if line.strip()]
    try:
        rows = [orjson.loads(line) for line in lines]
    except orjson.JSONDecodeError:
        rows = [_loads_or_none(line) for line in lines]
    refused = {}
    for i, row in enumerate(rows):
        if type(row) is not dict:
            refused[i], rows[i] = "not a JSON object", {}
    return _Taken(len(lines), {name: [row.get(name) for row in rows] for name in names}, lines.__getitem__, refused)


def _loads_or_none(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def _read_columns(entry: Entry, names: Sequence[str]) -> _Taken:
    columns = orjson.loads(entry.payload)
    if not isinstance(columns, dict) or not all(isinstance(values, list) for values in columns.values()):
        raise DataError(f"Entry {entry.offset} must be a JSON object of lists.")
    return _taken_columns(entry, names, columns)


def _read_arrow(entry: Entry, names: Sequence[str]) -> _Taken:
    with pa.ipc.open_stream(entry.payload) as reader:
        return _taken_columns(entry, names, reader.read_all().to_pydict())


def _taken_columns(entry: Entry, names: Sequence[str], columns: Mapping[str, list[Any]]) -> _Taken:
    wrong = {name: len(values) for name, values in columns.items() if len(values) != entry.count}
    if wrong:
        raise DataError(f"Entry {entry.offset} states {entry.count} events, its columns hold {wrong}.")
    missing = [None] * entry.count
    return _Taken(entry.count, {name: columns.get(name, missing) for name in names}, column_payload(columns))


_READERS: Mapping[str, Callable[[Entry, Sequence[str]], _Taken]] = {
    "ndjson": _read_ndjson,
    "columns": _read_columns,
    "arrow": _read_arrow,
}
