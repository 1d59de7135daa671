"""One row of a windowed view, by compiled structs: a bisection and one unpack per window, however many tiles.

For few rows this beats the arrays of values.py by the cost of their set-up; both give the same values, bit by bit.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any

import numpy as np

from headrace.catalog.definitions import Aggregation, FeatureView
from headrace.dtypes import DType
from headrace.read.online.vectors import PRESENT, Line
from headrace.stores.codec.header import HEAD_BYTES, OLDEST_US, POSITION_BYTES
from headrace.stores.codec.tiles import decode_tiles, tile_layout
from headrace.windows.aggregates import StateField, state_fields
from headrace.windows.entries import COLUMNS, EntryList, list_of, read_entries
from headrace.windows.functions import parse_function
from headrace.windows.suffix_tiles import TileGroup
from headrace.windows.window import BEGINNING_US

__all__ = ["OUT_OF_RANGE", "WindowReader"]

OUT_OF_RANGE = object()
"""Stands for a value that is null because its type, or the bound of a distinct count, cannot hold it."""

Row = tuple[Any, ...]
Scalar = Callable[[Row], Any]


@dataclass(frozen=True, slots=True)
class _Window:
    """One window of a group: which outputs it fills, and how."""

    window_us: int | None
    outputs: tuple[tuple[int, Scalar], ...]


@dataclass(frozen=True, slots=True)
class _Group:
    hop_us: int
    row: struct.Struct
    words: int
    windows: tuple[_Window, ...]


class WindowReader:
    """Reads the values of one windowed view, one key at a time."""

    def __init__(self, view: FeatureView) -> None:
        self._layout = tile_layout(view)
        self._aggregations = view.aggregations
        self._counts = struct.Struct(f"<{len(self._layout.widths)}I")
        self._groups = [_compile_group(group, view.aggregations) for group in self._layout.groups]
        self._group_words = [group.words for group in self._groups]
        self._listed = [(i, agg, list_of(self._layout.lists, agg)) for i, agg in enumerate(view.aggregations)]
        self._empty = [_EMPTY.get(parse_function(agg.function).base) for agg in view.aggregations]
        self.unseen: Line = (PRESENT, 0, tuple(self._empty), None not in self._empty)

    def line(self, blob: bytes, positions: int, t_us: int, newest_us: int) -> Line:
        """The row that `blob`, whose header has so many positions, shows at `t_us`, which lies after the newest event;
        OUT_OF_RANGE stands for a null that hides a value."""
        values = list(self._empty)
        at = HEAD_BYTES + POSITION_BYTES * positions
        counts = self._counts.unpack_from(blob, at)
        at += self._counts.size
        words = memoryview(blob)[at : at + 8 * sum(map(mul, counts, self._group_words))].cast("q")
        first = 0
        for group, n in zip(self._groups, counts, strict=False):
            if n:
                _read_group(group, words, first, n, t_us, values)
                first += n * group.words
        at += 8 * first
        if self._layout.lists:
            self._read_lists(blob, at, counts[len(self._groups) :], t_us, values)
        whole = None not in values and OUT_OF_RANGE not in values
        return PRESENT, 0 if newest_us == OLDEST_US else newest_us, values, whole

    def _read_lists(self, blob: bytes, at: int, counts: Sequence[int], t_us: int, values: list[Any]) -> None:
        starts, text_starts, tail = [], [], at
        for n, width in zip(counts, self._layout.widths[len(self._groups) :], strict=True):
            starts.append(tail)
            tail += n * width
        for held, start, n in zip(self._layout.lists, starts, counts, strict=True):
            text_starts.append(tail)
            if held.has_text:
                tail += sum(row[4] for row in _ORDERED.iter_unpack(blob[start : start + n * _ORDERED.size]))
        for i, agg, number in self._listed:
            if number is None:
                continue
            held, n = self._layout.lists[number], counts[number]
            if held.kind in ("last", "first"):
                values[i] = _ordered(held, agg, blob, starts[number], n, text_starts[number], t_us)
            else:
                values[i] = self._counted(held, agg, number, blob, t_us) if n else values[i]

    def _counted(self, held: EntryList, agg: Aggregation, number: int, blob: bytes, t_us: int) -> Any:
        rows = decode_tiles(self._layout, [blob]).entries[number]
        value = read_entries(held, agg, rows, np.array([t_us]))[0].as_py()
        return OUT_OF_RANGE if value is None and held.kind == "distinct" else value


_ORDERED = struct.Struct(f"<{len(COLUMNS['last'])}q")
_EMPTY = {"count": 0, "count_distinct": 0, "approx_count_distinct": 0}


def _compile_group(group: TileGroup, aggregations: Sequence[Aggregation]) -> _Group:
    row = struct.Struct("<q" + "".join("d" if field.is_float else "q" for field in group.fields))
    places = {field: i for i, field in enumerate(group.fields, 1)}
    windows: dict[int | None, list[tuple[int, Scalar]]] = {}
    for i, agg in enumerate(aggregations):
        if agg.hop_us == group.hop_us and state_fields(agg):
            windows.setdefault(agg.window_us, []).append((i, _scalar(agg, places)))
    return _Group(
        group.hop_us, row, row.size // 8, tuple(_Window(window, tuple(out)) for window, out in windows.items())
    )


def _read_group(group: _Group, words: memoryview, first: int, n: int, t_us: int, values: list[Any]) -> None:
    """Fills in what the windows of a group show; its `n` rows begin at the word `first`."""
    width, end = group.words, first + n * group.words
    for window in group.windows:
        tile = BEGINNING_US if window.window_us is None else (t_us - window.window_us) // group.hop_us
        at = first
        if words[first] < tile:
            at += width * bisect_left(words[first:end:width], tile)
        if at < end:
            row = group.row.unpack_from(words, 8 * at)
            for i, scalar in window.outputs:
                values[i] = scalar(row)


def _scalar(agg: Aggregation, places: dict[StateField, int]) -> Scalar:
    """What `result` gives for one row of state."""
    at = {field.kind: places[field] for field in state_fields(agg)}
    base = parse_function(agg.function).base
    count = at["rows"] if "rows" in at else at["count"]
    if base == "count":
        return lambda row: row[count]
    if base in ("min", "max"):
        value = at[base]
        return lambda row: row[value] if row[count] else None
    if base in ("var", "std"):
        return _spread(count, at["spread"], base == "std")
    if "sum" in at:
        return _real(count, at["sum"], base == "mean")
    return _whole(count, at["high"], at["low"], base == "mean")


def _spread(count: int, spread: int, root: bool) -> Scalar:
    def variance(row: Row) -> Any:
        if row[count] < 2:
            return None
        if not math.isfinite(row[spread]):
            return OUT_OF_RANGE
        value: float = row[spread] / (row[count] - 1)
        return math.sqrt(value) if root else value

    return variance


def _real(count: int, total: int, mean: bool) -> Scalar:
    def real(row: Row) -> Any:
        if not row[count]:
            return None
        if not math.isfinite(row[total]):
            return OUT_OF_RANGE
        value: float = row[total] / row[count] if mean else row[total]
        return value

    return real


def _whole(count: int, high: int, low: int, mean: bool) -> Scalar:
    def whole(row: Row) -> Any:
        if not row[count]:
            return None
        if mean:
            average: float = (row[high] * 4294967296.0 + row[low]) / row[count]
            return average
        total: int = (row[high] << 32) + row[low]
        return total if -(2**63) <= total < 2**63 else OUT_OF_RANGE

    return whole


def _ordered(held: EntryList, agg: Aggregation, blob: bytes, start: int, n: int, text_start: int, t_us: int) -> Any:
    """last, first, last_n, first_n: entries stand by rising time."""
    rows = list(_ORDERED.iter_unpack(blob[start : start + n * _ORDERED.size]))
    tail = BEGINNING_US if agg.window_us is None else (t_us - agg.window_us) // agg.hop_us * agg.hop_us
    first = bisect_left(rows, tail, key=lambda row: row[0])
    wanted = parse_function(agg.function).n
    low, high = (max(first, n - wanted), n) if held.kind == "last" else (first, min(n, first + wanted))
    if low >= high:
        return None
    if held.has_text:
        ends = text_start
        items: list[Any] = []
        for i, row in enumerate(rows[:high]):
            ends += row[4]
            if i >= low:
                items.append(blob[ends - row[4] : ends].decode())
    else:
        items = [_item(held.dtype, row[4]) for row in rows[low:high]]
    return items if agg.dtype.is_list else items[0]


def _item(dtype: DType, bits: int) -> Any:
    if dtype.is_float:
        return _DOUBLE.unpack(_LONG.pack(bits))[0]
    return bool(bits) if dtype is DType.BOOL else bits


_LONG, _DOUBLE = struct.Struct("<q"), struct.Struct("<d")
