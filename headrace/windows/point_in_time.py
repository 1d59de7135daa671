"""The point-in-time kernel: for every label row, what the events before it come to. Pure arrays, no I/O.

Events are sorted by key and time; a label's window is then one slice, found by binary search, and its state is
merged by a tree of partial merges (each level halves the array), so that a window of n events costs log n merges
and a float sum errs by its own events only, never by its neighbours'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.dtypes import arrow_type
from headrace.windows.aggregates import (
    Aggregation,
    Array,
    StateField,
    lift,
    merge_of,
    result_array,
    state_fields,
    zero_of,
)
from headrace.windows.window import tail_us

__all__ = ["aggregate_windows", "latest_rows", "range_merge"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Search:
    """Events sorted by (key, time), their given order kept among equals; finds a label's place by bisection."""

    order: Ints
    distinct_times: Ints
    combined: Ints

    @classmethod
    def of(cls, keys: Ints, times_us: Ints) -> _Search:
        order = np.lexsort((times_us, keys))
        distinct = np.unique(times_us)
        ranks = np.searchsorted(distinct, times_us[order])
        return cls(order, distinct, keys[order] * (len(distinct) + 1) + ranks)

    def first_at(self, keys: Ints, times_us: Ints) -> Ints:
        """Index (in sorted order) of the first event of the key at or after the time; 0 for key -1."""
        ranks = np.searchsorted(self.distinct_times, times_us)
        found = np.searchsorted(self.combined, keys * (len(self.distinct_times) + 1) + ranks)
        bounds: Ints = np.where(keys < 0, 0, found)
        return bounds


def aggregate_windows(
    keys: Ints,
    times_us: Ints,
    columns: Mapping[str, pa.Array],
    label_keys: Ints,
    label_times_us: Ints,
    aggregations: Sequence[Aggregation],
) -> dict[str, pa.Array]:
    """Every aggregation's value for every label, as columns of the declared types.

    Events are given in position order: `keys` int64 codes >= 0, `times_us`, and the `columns` that the
    aggregations name, all of one length. `label_keys` uses the same codes, -1 for a key without events.
    """
    search = _Search.of(keys, times_us)
    heads = search.first_at(label_keys, label_times_us)
    used = {agg.column for agg in aggregations if agg.column != "*"}
    ordered = {name: columns[name].take(pa.array(search.order)) for name in used}
    out: dict[str, pa.Array] = {}
    for window_us, hop_us in dict.fromkeys((agg.window_us, agg.hop_us) for agg in aggregations):
        tails = search.first_at(label_keys, tail_us(label_times_us, window_us, hop_us))
        same = [agg for agg in aggregations if (agg.window_us, agg.hop_us) == (window_us, hop_us)]
        out |= _one_window(ordered, len(keys), tails, heads, same)
    return {agg.feature: out[agg.feature] for agg in aggregations}


def _one_window(
    columns: Mapping[str, pa.Array], n: int, tails: Ints, heads: Ints, aggregations: Sequence[Aggregation]
) -> dict[str, pa.Array]:
    fields = {field for agg in aggregations for field in state_fields(agg)}
    state: dict[StateField, Array] = {
        field: range_merge(lift(field, columns, n), tails, heads, merge_of(field), zero_of(field)) for field in fields
    }
    return {
        agg.feature: (
            _last(columns[agg.column], tails, heads).cast(arrow_type(agg.dtype))
            if agg.function == "last"
            else result_array(agg, state)
        )
        for agg in aggregations
    }


def range_merge(values: Array, lo: Ints, hi: Ints, merge: np.ufunc, zero: float | int) -> Array:
    """`merge` over `values[lo:hi]` for every pair of bounds; `zero` where the slice is empty.

    Climbs a binary tree of partial merges from the leaves (as in a bottom-up segment tree): at each level a bound
    that cuts a pair takes its half by itself.
    """
    out = np.full(len(lo), zero, values.dtype)
    level, lo, hi = values, lo.copy(), np.maximum(lo, hi)
    active = np.flatnonzero(lo < hi)
    while len(active):
        left = active[lo[active] % 2 == 1]
        out[left] = merge(out[left], level[lo[left]])
        lo[left] += 1
        right = active[(hi[active] % 2 == 1) & (lo[active] < hi[active])]
        hi[right] -= 1
        out[right] = merge(out[right], level[hi[right]])
        lo[active] >>= 1
        hi[active] >>= 1
        active = active[lo[active] < hi[active]]
        level = merge(level[0::2][: len(level) // 2], level[1::2])
    return out


def _last(column: pa.Array, tails: Ints, heads: Ints) -> pa.Array:
    """The newest non-null value of every slice, null where there is none."""
    if len(column) == 0:
        return pa.nulls(len(heads), column.type)
    here = np.arange(len(column))
    newest = np.maximum.accumulate(np.where(np.asarray(column.is_valid()), here, -1))
    found = np.where(heads > 0, newest[np.maximum(heads - 1, 0)], -1)
    inside = (found >= tails) & (heads > tails)
    return column.take(pa.array(np.where(inside, found, 0), mask=~inside))


def latest_rows(keys: Ints, times_us: Ints, label_keys: Ints, label_times_us: Ints) -> Ints:
    """Index of the row that a plain view shows each label: the newest at or before its time, -1 for none.

    Of rows of one time the one given later wins. Rows and labels use the same int64 key codes, -1 for unseen.
    """
    search = _Search.of(keys, times_us)
    found = search.first_at(label_keys, label_times_us + 1) - 1
    firsts = search.first_at(label_keys, np.full_like(label_times_us, np.iinfo(np.int64).min))
    seen = (label_keys >= 0) & (found >= firsts)
    rows = np.full(len(label_keys), -1, np.int64)
    rows[seen] = search.order[found[seen]]
    return rows
