"""The functions that read the values themselves, over slices of sorted events: last and first, distinct, percentiles.

Where all events of a key are at hand a slice is answered at once (`answer`). Otherwise its entries are (`entries_of`):
the values that count, the different ones, registers or buckets; entries of any parts of the events merge, in any order
(`merge_entries`), and `finish` answers from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.windows import sketches
from headrace.windows.aggregates import numbers
from headrace.windows.entries import distinct_column, grouped_column, percentile_column
from headrace.windows.functions import Aggregation, parse_function
from headrace.windows.wavelet import count_distinct, kth_smallest

__all__ = ["Entries", "Given", "answer", "entries_of", "finish", "merge_entries", "most_entries"]

Ints = NDArray[np.int64]

PAIRS = 2_000_000
"""How many (label, event) pairs are looked at together."""


@dataclass(frozen=True, slots=True)
class Given:
    """The values of a column that are not null, m of n, in sorted order, and the keys by which events are ordered
    within their key (time, then places); `before` says how many of the first i events have one (n + 1; None: all)."""

    values: pa.Array
    places: tuple[Ints, ...]
    before: Ints | None

    @classmethod
    def of(cls, column: pa.Array, places: Sequence[Ints]) -> Given:
        if not column.null_count:
            return cls(column, tuple(places), None)
        valid = np.asarray(column.is_valid()).astype(np.bool_)
        kept = column.filter(pa.array(valid))
        return cls(kept, tuple(place[valid] for place in places), np.r_[0, np.cumsum(valid)])

    def slices(self, lo: Ints, hi: Ints) -> tuple[Ints, Ints]:
        """Slices of events as slices of `values`."""
        return (lo, hi) if self.before is None else (self.before[lo], self.before[hi])


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries of labels, sorted by label: `columns` are int64 of one length, which order them, `values` may go along.

    first, last: (time, places), the value. count_distinct: the value's bits. approx_count_distinct: register, rank.
    approx_percentile: bucket, count.
    """

    labels: Ints
    columns: tuple[Ints, ...]
    values: pa.Array | None = None

    def at(self, rows: Ints) -> Entries:
        values = None if self.values is None else self.values.take(pa.array(rows))
        return Entries(self.labels[rows], tuple(column[rows] for column in self.columns), values)


def most_entries(aggregation: Aggregation) -> int:
    """The most entries that a label may have, as far as that is known."""
    function = parse_function(aggregation.function)
    if function.base == "approx_count_distinct":
        return sketches.REGISTERS
    return (
        function.n + 1
        if function.base == "count_distinct"
        else {"approx_percentile": 2_048}.get(function.base, function.n)
    )


def answer(aggregation: Aggregation, given: Given, lo: Ints, hi: Ints) -> pa.Array:
    """What the function comes to over every slice of the events, as a column of its type."""
    lo, hi = given.slices(lo, hi)
    function = parse_function(aggregation.function)
    if function.base in _ENDS:
        lo, hi = _ends(function.base, function.n, lo, hi)
        return grouped_column(given.values.take(pa.array(_between(lo, hi))), hi - lo, aggregation.dtype)
    return _ANSWERS[function.base](given.values, lo, hi, function.n)


_ENDS = ("first", "last", "first_n", "last_n")


def _ends(base: str, n: int, lo: Ints, hi: Ints) -> tuple[Ints, Ints]:
    return (np.maximum(lo, hi - n), hi) if base.startswith("last") else (lo, np.minimum(hi, lo + n))


def _between(lo: Ints, hi: Ints) -> Ints:
    """The numbers from each `lo` to its `hi` - 1, one range after another."""
    sizes = hi - lo
    starts = np.cumsum(sizes) - sizes
    return np.repeat(lo - starts, sizes) + np.arange(int(sizes.sum()))


def _distinct(given: pa.Array, lo: Ints, hi: Ints, bound: int) -> pa.Array:
    return distinct_column(count_distinct(sketches.value_bits(given), lo, hi), bound)


def _approx_distinct(given: pa.Array, lo: Ints, hi: Ints, _: int) -> pa.Array:
    """A register's rank is at least r where some event of the register has at least r."""
    register, rank = sketches.registers(sketches.value_bits(given))
    reached = [np.full(len(lo), sketches.REGISTERS)]
    for least in range(1, int(rank.max(initial=0)) + 1):
        has = rank >= least
        if not has.all():
            before = np.r_[0, np.cumsum(has)]
            register, rank, lo, hi = register[has], rank[has], before[lo], before[hi]
        reached.append(count_distinct(register, lo, hi))
    return pa.array(sketches.estimate_reached(reached))


def _percentile(given: pa.Array, lo: Ints, hi: Ints, percent: int) -> pa.Array:
    bucket, code = np.unique(sketches.buckets(numbers(given, True, 0.0)), return_inverse=True)
    some = np.flatnonzero(lo < hi)
    rank = percent * (hi[some] - lo[some] - 1) // 100
    values = np.zeros(len(lo))
    if len(some):
        values[some] = sketches.midpoints(bucket[kth_smallest(code, lo[some], hi[some], rank)])
    return pa.array(values, mask=lo >= hi)


_ANSWERS: dict[str, Callable[[pa.Array, Ints, Ints, int], pa.Array]] = {
    "count_distinct": _distinct,
    "approx_count_distinct": _approx_distinct,
    "approx_percentile": _percentile,
}


def entries_of(aggregation: Aggregation, given: Given, lo: Ints, hi: Ints) -> Entries:
    """The entries of every slice of the events; labels are numbered as the slices are."""
    lo, hi = given.slices(lo, hi)
    function = parse_function(aggregation.function)
    if function.base in _ENDS:
        lo, hi = _ends(function.base, function.n, lo, hi)
        rows = _between(lo, hi)
        labels = np.repeat(np.arange(len(lo)), hi - lo)
        return Entries(labels, tuple(place[rows] for place in given.places), given.values.take(pa.array(rows)))
    columns = _COLUMNS[function.base](given.values)
    found = [
        _normal(aggregation, Entries(labels, tuple(column[rows] for column in columns)))
        for labels, rows in _pairs(lo, hi)
    ]
    return _normal(aggregation, _joined(found)) if found else Entries(lo[:0], tuple(c[:0] for c in columns))


_COLUMNS: dict[str, Callable[[pa.Array], tuple[Ints, ...]]] = {
    "count_distinct": lambda given: (sketches.value_bits(given),),
    "approx_count_distinct": lambda given: sketches.registers(sketches.value_bits(given)),
    "approx_percentile": lambda given: (
        sketches.buckets(numbers(given, True, 0.0)),
        np.ones(len(given), np.int64),
    ),
}


def _pairs(lo: Ints, hi: Ints) -> Iterator[tuple[Ints, Ints]]:
    """(label, event) for all events of all slices, about PAIRS of them at a time."""
    parts = -(-(hi - lo) // PAIRS)
    labels = np.repeat(np.arange(len(lo)), np.maximum(parts, 0))
    starts = lo[labels] + PAIRS * _between(np.zeros_like(parts), np.maximum(parts, 0))
    stops = np.minimum(starts + PAIRS, hi[labels])
    group = np.cumsum(stops - starts) // PAIRS
    cuts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(labels)]
    for a, b in pairwise(cuts):
        if a < b:
            yield np.repeat(labels[a:b], stops[a:b] - starts[a:b]), _between(starts[a:b], stops[a:b])


def merge_entries(aggregation: Aggregation, one: Entries, other: Entries) -> Entries:
    """The entries of both sets of events together."""
    return _normal(aggregation, _joined([one, other]))


def _joined(parts: Sequence[Entries]) -> Entries:
    values = None if parts[0].values is None else pa.concat_arrays([part.values for part in parts])
    columns = tuple(np.concatenate(several) for several in zip(*(part.columns for part in parts), strict=True))
    return Entries(np.concatenate([part.labels for part in parts]), columns, values)


def _normal(aggregation: Aggregation, entries: Entries) -> Entries:
    """Sorted by label and columns, and no more than the function needs."""
    function = parse_function(aggregation.function)
    entries = entries.at(np.lexsort((*reversed(entries.columns), entries.labels)))
    if function.base in _ENDS:
        place, size = _places(entries.labels)
        kept = place >= size - function.n if function.base.startswith("last") else place < function.n
        return entries.at(np.flatnonzero(kept))
    first = _runs(entries.labels, entries.columns[0])
    if function.base == "approx_percentile":
        bucket, count = entries.columns
        sums = np.add.reduceat(count, first) if len(first) else count
        return Entries(entries.labels[first], (bucket[first], sums))
    if function.base == "approx_count_distinct":
        return entries.at(np.r_[first[1:], len(entries.labels)][: len(first)] - 1)  # the highest rank
    entries = entries.at(first)
    return entries.at(np.flatnonzero(_places(entries.labels)[0] <= function.n))


def _runs(*levels: Ints) -> Ints:
    """Where a new run of equal rows begins, in sorted arrays."""
    n = len(levels[0])
    changed = np.zeros(max(n - 1, 0), np.bool_)
    for level in levels:
        changed |= level[1:] != level[:-1]
    return np.flatnonzero(np.r_[np.ones(min(n, 1), np.bool_), changed])


def _places(labels: Ints) -> tuple[Ints, Ints]:
    """Each row's place among those of its label, from 0, and how many they are."""
    starts = _runs(labels)
    sizes = np.diff(np.r_[starts, len(labels)])
    return np.arange(len(labels)) - np.repeat(starts, sizes), np.repeat(sizes, sizes)


def finish(aggregation: Aggregation, entries: Entries, n: int) -> pa.Array:
    """What the function comes to for the labels 0 to n - 1, as a column of its type."""
    function = parse_function(aggregation.function)
    counts = np.bincount(entries.labels, minlength=n)
    if function.base in _ENDS:
        return grouped_column(entries.values, counts, aggregation.dtype)
    if function.base == "count_distinct":
        return distinct_column(counts, function.n)
    if function.base == "approx_percentile":
        return percentile_column(entries.labels, entries.columns[0], entries.columns[1], n, function.n)
    ranks = np.bincount(entries.labels * sketches.RANKS + entries.columns[1], minlength=n * sketches.RANKS)
    reached = np.cumsum(ranks.reshape(n, sketches.RANKS)[:, :0:-1], axis=1)[:, ::-1].T
    return pa.array(sketches.estimate_reached([np.full(n, sketches.REGISTERS), *reached]))
