"""Labels of one view joined with its rows, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.dtypes import arrow_type
from headrace.read.joins.key_codes import KeyCodes
from headrace.read.joins.view_rows import RowShape
from headrace.windows.latest import LatestJoin
from headrace.windows.point_in_time import Events, WindowJoin

__all__ = ["Joined", "gathered", "join_rows", "shown_numbers"]

Ints = NDArray[np.int64]

CHUNK_ROWS = 1 << 20
NUMBER = "row.number"


class Joined(NamedTuple):
    """The features of n labels in their declared types, and how many values of which are beyond their range."""

    columns: dict[str, pa.Array]
    beyond: Mapping[str, int]


def join_rows(
    shape: RowShape,
    keys: Sequence[pa.Array[Any]],
    times_us: Ints,
    tables: Iterable[pa.Table],
    chunk_rows: int = CHUNK_ROWS,
) -> Joined:
    """What n labels come to over all rows of `tables`, in whatever order and parts these come: `keys` are their join
    keys in the order of the shape's. About `chunk_rows` rows are looked at together."""
    codes = KeyCodes(keys, len(times_us))
    chunks = gathered(tables, chunk_rows)
    begin = [chunk for chunk in (next(chunks, None), next(chunks, None)) if chunk is not None]
    windowed = shape.view.kind == "windowed"
    join = _windows(shape, codes, times_us, once=len(begin) < 2) if windowed else _latest(shape, codes, times_us)
    while begin:
        _add(shape, codes, join, begin.pop(0))
    for chunk in chunks:
        _add(shape, codes, join, chunk)
    return Joined(join.columns(), join.beyond if isinstance(join, WindowJoin) else {})


def shown_numbers(
    shape: RowShape,
    keys: Sequence[pa.Array[Any]],
    times_us: Ints,
    tables: Iterable[pa.Table],
    chunk_rows: int = CHUNK_ROWS,
) -> Ints:
    """The numbers, rising, of those rows of a slim scan, which are of this shape, that some of n labels shows."""
    codes = KeyCodes(keys, len(times_us))
    join = LatestJoin(codes.labels, times_us, pa.schema([pa.field(NUMBER, pa.int64())]), 0, shape.places)
    for chunk in gathered(tables, chunk_rows):
        numbers = chunk[f"row.place{shape.places - 1}"]
        _add(shape, codes, join, chunk, {NUMBER: numbers.combine_chunks()})
    shown: Ints = np.sort(np.asarray(join.columns()[NUMBER].drop_null()))
    fresh: Ints = shown[np.r_[True, shown[1:] != shown[:-1]][: len(shown)]]
    return fresh


def _windows(shape: RowShape, codes: KeyCodes, times_us: Ints, once: bool) -> WindowJoin:
    return WindowJoin(codes.labels, times_us, shape.aggregations, once=once and not shape.as_known)


def _latest(shape: RowShape, codes: KeyCodes, times_us: Ints) -> LatestJoin:
    features = pa.schema([pa.field(column.name, arrow_type(column.dtype)) for column in shape.values])
    return LatestJoin(codes.labels, times_us, features, shape.view.ttl_us, shape.places)


def _add(
    shape: RowShape,
    codes: KeyCodes,
    join: WindowJoin | LatestJoin,
    table: pa.Table,
    values: Mapping[str, pa.Array] | None = None,
) -> None:
    found = codes.of(shape.keys_of(table), table.num_rows)
    seen = found >= 0
    if not seen.all():
        chosen = pa.array(np.flatnonzero(seen))
        table, found = table.take(chosen), found[seen]
        values = None if values is None else {name: column.take(chosen) for name, column in values.items()}
    given = shape.values_of(table) if values is None else values
    events = Events(found, shape.numbers_of(table, "time"), given, shape.places_of(table))
    if shape.as_known:
        join.add_known(events, shape.numbers_of(table, "arrival"))
    else:
        join.add(events)


def gathered(tables: Iterable[pa.Table], most_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of about `most_rows`."""
    held: list[pa.Table] = []
    for table in tables:
        if held and sum(part.num_rows for part in held) + table.num_rows > most_rows:
            yield pa.concat_tables(held)
            held = []
        for start in range(0, table.num_rows, most_rows):
            held.append(table.slice(start, most_rows))
            if table.num_rows > most_rows:
                yield held.pop()
    if held:
        yield pa.concat_tables(held)
