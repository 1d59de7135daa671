"""Which rows of a batch file are the newest of their keys, in bounded memory.

What is held of a key is its values, the time and the number of its newest row so far. Where that grows beyond its
share of the memory, half of the keys, by hash, are left for a further reading of the file, and half of the rest again,
as often as it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.stores.batch_files import BatchPart

__all__ = ["NewestRows", "find_newest", "winning"]

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_TIME, _CREATED, _ROW = "time", "created", "row"
_FEWEST_ROWS = 1 << 20
_COPIES = 6
"""How many times its own bytes a table takes while it is reduced."""


class NewestRows:
    """The rows that win, as one bit per row of the file; and what was counted on the way. `newest_us` is the latest
    event time of a row that counts, None for no row."""

    def __init__(self) -> None:
        self._bits = np.zeros(0, np.uint8)
        self.rows = self.keys = self.null_keys = self.refused = 0
        self.newest_us: int | None = None
        self.readings = 0

    def of(self, first: int, n: int) -> Flags:
        """Which of the rows first, ..., first + n - 1 win."""
        begin = first >> 3
        bits = np.unpackbits(self._bits[begin : (first + n + 7) >> 3], bitorder="little").astype(np.bool_)
        return bits[first - 8 * begin :][:n]

    def add(self, rows: Ints) -> None:
        """Let these rows win; all rows were counted before."""
        if not len(self._bits):
            self._bits = np.zeros((self.rows + 7) >> 3, np.uint8)
        np.bitwise_or.at(self._bits, rows >> 3, (1 << (rows & 7)).astype(np.uint8))
        self.keys += len(rows)

    def count(self, part: BatchPart, null_keys: int) -> None:
        """Count a part of the file, met for the first time."""
        self.rows += len(part.good)
        self.null_keys += null_keys
        self.refused += part.refused
        if part.good.any():
            newest = int(part.event_time_us[part.good].max())
            self.newest_us = newest if self.newest_us is None else max(newest, self.newest_us)


def find_newest(
    parts: Callable[[], Iterable[BatchPart]],
    keys: Sequence[str],
    memory_bytes: int,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> NewestRows:
    """The newest row of every key, by event time, then created time, then place in the file. `parts` reads the file
    anew, with the join keys `keys` among its columns; rows with a null key count for none. `on_rows` is told of rows
    read."""
    found, shares = NewestRows(), [_Share(0, 0)]
    while shares:
        share = shares.pop()
        state, first = _State(memory_bytes), 0
        for part in parts():
            rows, null_keys = _candidates(part, keys, first)
            if not found.readings:
                found.count(part, null_keys)
            first += len(part.good)
            state.add(share.of(rows))
            while state.is_full():
                share, other = share.halves()
                shares.append(other)
                state.keep(share)
            on_rows(len(part.good))
        found.readings += 1
        found.add(state.winners())
    return found


class _Share:
    """The keys whose hash ends in the `bits` bits of `value`."""

    def __init__(self, value: int, bits: int) -> None:
        self._value, self._bits = value, bits

    def halves(self) -> tuple[_Share, _Share]:
        """Those whose next bit is 0, and the others."""
        return _Share(self._value, self._bits + 1), _Share(self._value | 1 << self._bits, self._bits + 1)

    def of(self, rows: pa.Table) -> pa.Table:
        """The rows of these keys."""
        if not self._bits or not rows.num_rows:
            return rows
        hashes = pl.DataFrame(pl.from_arrow(_keys(rows))).hash_rows(seed=0).to_numpy()
        mine = hashes & np.uint64((1 << self._bits) - 1) == np.uint64(self._value)
        return rows.filter(pa.array(mine))


class _State:
    """The newest rows so far: keys, times, created times, row numbers (ascending)."""

    def __init__(self, memory_bytes: int) -> None:
        self._most_bytes = max(memory_bytes // _COPIES, 1)
        self._tables: list[pa.Table] = []
        self._rows = self._bytes = self._reduced_rows = 0

    def add(self, rows: pa.Table) -> None:
        self._tables.append(rows)
        self._rows += rows.num_rows
        self._bytes += rows.nbytes

    def is_full(self) -> bool:
        """Whether it takes more than its memory when all that lost is gone."""
        if self._rows <= max(2 * self._reduced_rows, _FEWEST_ROWS) and self._bytes <= self._most_bytes:
            return False
        self._reduce()
        return self._bytes > self._most_bytes // 2 and self._rows > 1

    def keep(self, share: _Share) -> None:
        """Forget the other keys."""
        self._set(share.of(pa.concat_tables(self._tables)))

    def winners(self) -> Ints:
        """Their row numbers."""
        if not self._tables:
            return np.empty(0, np.int64)
        self._reduce()
        return _ints(self._tables[0], _ROW)

    def _reduce(self) -> None:
        rows = pa.concat_tables(self._tables).combine_chunks()
        codes, n = _codes(_keys(rows).columns)
        order = [_ints(rows, name) for name in (_TIME, _CREATED) if name in rows.column_names]
        self._set(rows.take(pa.array(_last(codes, n, *order))).combine_chunks())
        self._reduced_rows = self._rows

    def _set(self, rows: pa.Table) -> None:
        self._tables, self._rows, self._bytes = [rows], rows.num_rows, rows.nbytes


def _candidates(part: BatchPart, keys: Sequence[str], first: int) -> tuple[pa.Table, int]:
    """The rows that may win, numbered from `first` on, and how many that count have a null key."""
    known = part.good.copy()
    for key in keys:
        column = part.table[key]
        if column.null_count:
            known &= np.asarray(column.is_valid())
    order = {_TIME: part.event_time_us, _CREATED: part.created_us, _ROW: np.arange(first, first + len(known))}
    given = {f"key {i}": part.table[key] for i, key in enumerate(keys)}
    rows = pa.table(given | {name: values for name, values in order.items() if values is not None})
    return rows if known.all() else rows.filter(pa.array(known)), int(part.good.sum() - known.sum())


def _codes(columns: Sequence[Any]) -> tuple[Ints, int]:
    """A number for every row, the same for rows of the same key, and how many numbers there are."""
    codes, n = np.zeros(len(columns[0]), np.int64), 1
    for at, column in enumerate(columns):
        part, of_part = _dense(column.combine_chunks())
        codes, n = (part, of_part) if not at else _dense(pa.array(codes * of_part + part))
    return codes, n


def _dense(values: Any) -> tuple[Ints, int]:
    values = values.chunk(0) if isinstance(values, pa.ChunkedArray) and values.num_chunks == 1 else values
    encoded = pc.dictionary_encode(values)
    return np.asarray(encoded.indices).astype(np.int64), len(encoded.dictionary)


def _last(codes: Ints, n: int, *order: Ints) -> Ints:
    """The number of each code's last row by the arrays of `order`, then by place; ascending."""
    left = np.arange(len(codes))
    if n == len(codes):
        return left
    for values in order:
        best = np.full(n, np.iinfo(np.int64).min)
        np.maximum.at(best, codes[left], values[left])
        left = left[values[left] == best[codes[left]]]
    last = np.zeros(n, np.int64)
    np.maximum.at(last, codes[left], left)
    return np.sort(last)


def _keys(rows: pa.Table) -> pa.Table:
    return rows.select([name for name in rows.column_names if name not in (_TIME, _CREATED, _ROW)])


def _ints(rows: pa.Table, name: str) -> Ints:
    values: Ints = np.asarray(rows[name])
    return values


def winning(parts: Iterable[BatchPart], newest: NewestRows) -> Iterator[tuple[pa.Table, Ints]]:
    """The winners among `parts`, all of the file in order: their columns and event times."""
    first = 0
    for part in parts:
        rows = np.flatnonzero(newest.of(first, len(part.good)) & part.good)
        first += len(part.good)
        if len(rows):
            yield part.table.take(pa.array(rows)), part.event_time_us[rows]
