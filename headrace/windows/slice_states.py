"""The numeric state of slices of sorted events: counts, exact sums and extremes, for many slices at once.

Counts and sums are differences of prefix sums of integers, so they are exact however long the array is; states of
other parts of the events add up to the same integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.windows.aggregates import StateField, numbers
from headrace.windows.exact_sums import carried, iter_limbs, iter_square_limbs, squared_deviations, total
from headrace.windows.extremes import merge_extremes

__all__ = ["SliceStates"]

Ints = NDArray[np.int64]
Array = NDArray[Any]

_SMALL = 2**62
_LOW_BITS = 32
_EXTREMES = {"min": np.minimum, "max": np.maximum}


class _Measure(NamedTuple):
    """What is added up: rows, count, sum, squares, min or max of a column."""

    kind: str
    column: str
    is_float: bool


_MEASURES = {
    "rows": ("rows",),
    "count": ("count",),
    "sum": ("sum",),
    "high": ("sum",),
    "low": ("sum",),
    "min": ("min",),
    "max": ("max",),
    "centre": ("sum",),
    "spread": ("sum", "squares"),
}


def _measures(field: StateField) -> list[_Measure]:
    return [_Measure(kind, field.column, field.is_float) for kind in _MEASURES[field.kind]]


@dataclass(frozen=True, slots=True)
class _Held:
    """The state of one measure: arrays (slices of each kind, n) by power of 2^32; 0 alone where there are no limbs."""

    kinds: list[int]
    limbs: dict[int, Array]


class SliceStates:
    """States of n labels with several slices each; `fields` says what is wanted of which kind of slice, by number."""

    def __init__(self, fields: Iterable[tuple[int, StateField]], n: int) -> None:
        kinds: dict[_Measure, dict[int, None]] = {}
        for kind, field in fields:
            for measure in _measures(field):
                kinds.setdefault(measure, {})[kind] = None
        self._n = n
        self._held = {measure: _Held(list(found), {}) for measure, found in kinds.items()}

    def add(self, columns: Mapping[str, pa.Array], lo: Sequence[Ints], hi: Ints, rows: Ints | None) -> None:
        """Adds the events in the slices from lo[kind] to hi, m each, for the labels `rows` (m different ones, None: all
        n). `columns` are in sorted order."""
        floats = {(measure.column, measure.is_float) for measure in self._held if measure.kind != "rows"}
        for column, is_float in sorted(floats):
            values = _Values(columns[column], is_float)
            for measure, held in self._held.items():
                if (measure.column, measure.is_float) == (column, is_float) and measure.kind != "rows":
                    self._add(measure, held, values, np.stack([lo[kind] for kind in held.kinds]), hi, rows)
        for measure, held in self._held.items():
            if measure.kind == "rows":
                self._merge(held, {0: hi - np.stack([lo[kind] for kind in held.kinds])}, rows)

    def _add(self, measure: _Measure, held: _Held, values: _Values, lo: Ints, hi: Ints, rows: Ints | None) -> None:
        if measure.kind in _EXTREMES:
            found, ufunc = values.with_nulls_as(_zero(measure)), _EXTREMES[measure.kind]
            part = np.full(lo.shape, _zero(measure), found.dtype)
            for row, starts in zip(part, lo, strict=True):
                merge_extremes(row, found, starts, hi, ufunc)
            self._merge_extremes(measure, held, part, rows)
            return
        parts: dict[int, Array] = {}
        for power, limb in values.limbs(measure.kind):
            before = np.zeros(len(limb) + 1, np.int64)
            np.cumsum(limb, out=before[1:])
            sums = before[hi] - before[lo]
            parts[power] = parts[power] + sums if power in parts else sums
        self._merge(held, parts, rows)

    def _merge(self, held: _Held, parts: dict[int, Array], rows: Ints | None) -> None:
        if rows is None and not held.limbs:
            held.limbs.update(parts)
            return
        for power, part in parts.items():
            if power not in held.limbs:
                held.limbs[power] = np.zeros((len(held.kinds), self._n), np.int64)
            held.limbs[power][:, slice(None) if rows is None else rows] += part
        settled = carried(held.limbs)
        held.limbs.clear()
        held.limbs.update(settled)

    def _merge_extremes(self, measure: _Measure, held: _Held, part: Array, rows: Ints | None) -> None:
        if 0 not in held.limbs:
            held.limbs[0] = np.full((len(held.kinds), self._n), _zero(measure), part.dtype)
        chosen = slice(None) if rows is None else rows
        held.limbs[0][:, chosen] = _EXTREMES[measure.kind](held.limbs[0][:, chosen], part)

    def state(self, fields: Iterable[StateField], kind: int) -> dict[StateField, Array]:
        """What all events added come to in one kind of slice, n long."""
        return {field: self._field(field, kind) for field in fields}

    def _field(self, field: StateField, kind: int) -> Array:
        if field.kind == "spread":
            count = self._limbs(_Measure("count", field.column, False), kind)
            sums, squares = (self._limbs(measure, kind) for measure in _measures(field))
            return squared_deviations(_whole(count, self._n), sums, squares)
        (measure,) = _measures(field)
        limbs = self._limbs(measure, kind)
        if field.kind in ("high", "low"):
            return _half(field.kind, limbs, self._n)
        if field.kind in ("sum", "centre"):
            return total(limbs, self._n)[0]
        if field.kind in _EXTREMES:
            return limbs[0] if limbs else np.full(self._n, _zero(measure), np.float64 if field.is_float else np.int64)
        return _whole(limbs, self._n)

    def _limbs(self, measure: _Measure, kind: int) -> dict[int, Array]:
        held = self._held[measure]
        row = held.kinds.index(kind)
        return {power: limb[row] for power, limb in held.limbs.items()}


def _zero(measure: _Measure) -> float | int:
    if measure.is_float:
        return np.inf if measure.kind == "min" else -np.inf
    return int(np.iinfo(np.int64).max if measure.kind == "min" else np.iinfo(np.int64).min)


def _whole(limbs: Mapping[int, Ints], n: int) -> Ints:
    """Counts, which fit an int64."""
    found = np.zeros(n, np.int64)
    for power, limb in limbs.items():
        found += limb << (_LOW_BITS * power)
    return found


def _half(kind: str, limbs: Mapping[int, Ints], n: int) -> Ints:
    if kind == "low":
        return limbs.get(0, np.zeros(n, np.int64))
    return _whole({power - 1: limb for power, limb in limbs.items() if power}, n)


class _Values:
    """A column as numbers, in sorted order."""

    def __init__(self, column: pa.Array, is_float: bool) -> None:
        self._column, self._is_float = column, is_float
        self._valid = np.asarray(column.is_valid()).astype(np.bool_) if column.null_count else None

    @cached_property
    def _numbers(self) -> Array:
        return numbers(self._column, self._is_float, 0)

    def with_nulls_as(self, fill: float | int) -> Array:
        return self._numbers if self._valid is None else np.where(self._valid, self._numbers, fill)

    def limbs(self, kind: str) -> Iterator[tuple[int, Ints]]:
        """What to add up, by power of 2^32."""
        if kind == "count":
            every = np.ones(len(self._column), np.int64)
            yield 0, every if self._valid is None else self._valid.astype(np.int64)
        elif kind == "squares":
            yield from iter_square_limbs(self._numbers)
        elif self._numbers.dtype == np.float64:
            yield from iter_limbs(self._numbers)
        else:
            yield from self._whole_limbs()

    def _whole_limbs(self) -> Iterator[tuple[int, Ints]]:
        least, most = int(self._numbers.min(initial=0)), int(self._numbers.max(initial=0))
        if max(-least, most) * len(self._numbers) < _SMALL:
            yield 0, self._numbers
        else:
            yield 0, self._numbers & ((1 << _LOW_BITS) - 1)
            yield 1, self._numbers >> _LOW_BITS
