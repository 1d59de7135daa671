"""The point-in-time kernel: for every label row, what the events before it come to. Pure arrays, no I/O.

Events are sorted by key and time; a label's window is then one slice, found by binary search, and its state is
merged by a tree of partial merges (each level halves the array), so that a window of n events costs log n merges
and a float sum errs by its own events only, never by its neighbours'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.windows import sketches
from headrace.windows.aggregates import State, lift, merge_states, numbers, result_array, state_fields, take, zeros
from headrace.windows.entries import distinct_column, grouped_column, percentile_column, registers_column
from headrace.windows.functions import Aggregation, parse_function
from headrace.windows.window import tail_us

__all__ = ["aggregate_windows", "latest_rows", "range_merge"]

Ints = NDArray[np.int64]

CHUNK = 4_000_000


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
    state = range_merge(lift(fields, columns, n), tails, heads)
    return {
        agg.feature: (
            result_array(agg, state) if state_fields(agg) else _listed(agg, columns[agg.column], tails, heads)
        )
        for agg in aggregations
    }


def range_merge(state: State, lo: Ints, hi: Ints) -> State:
    """The merge of the rows `lo` to `hi - 1` of `state` for every pair of bounds; the zero where there are none.

    Climbs a binary tree of partial merges from the leaves (as in a bottom-up segment tree): at each level a bound
    that cuts a pair takes its half by itself.
    """
    out = zeros(state, len(lo))
    level, lo, hi = state, lo.copy(), np.maximum(lo, hi)
    active = np.flatnonzero(lo < hi)
    while len(active):
        left = active[lo[active] % 2 == 1]
        _merge_into(out, left, take(level, lo[left]))
        lo[left] += 1
        right = active[(hi[active] % 2 == 1) & (lo[active] < hi[active])]
        hi[right] -= 1
        _merge_into(out, right, take(level, hi[right]))
        lo[active] >>= 1
        hi[active] >>= 1
        active = active[lo[active] < hi[active]]
        pairs = min((len(values) // 2 for values in level.values()), default=0)
        level = merge_states(take(level, slice(0, 2 * pairs, 2)), take(level, slice(1, 2 * pairs, 2)))
    return out


def _merge_into(out: State, rows: Ints, other: State) -> None:
    for field, values in merge_states(take(out, rows), other).items():
        out[field][rows] = values


def _listed(agg: Aggregation, column: pa.Array, tails: Ints, heads: Ints) -> pa.Array:
    """A function that reads the values themselves, nulls left out."""
    valid = np.asarray(column.is_valid()).astype(np.bool_)
    rank = np.r_[0, np.cumsum(valid)]
    lo, hi = rank[tails], np.maximum(rank[heads], rank[tails])
    given = column.filter(pa.array(valid))
    function = parse_function(agg.function)
    if function.base in ("last", "last_n"):
        lo = np.maximum(lo, hi - function.n)
    elif function.base in ("first", "first_n"):
        hi = np.minimum(hi, lo + function.n)
    else:
        return pa.concat_arrays([_COUNTED[function.base](given, a, b, function.n) for a, b in _chunks(lo, hi)])
    return grouped_column(given.take(pa.array(_between(lo, hi))), hi - lo, agg.dtype)


def _between(lo: Ints, hi: Ints) -> Ints:
    """The numbers from each `lo` to its `hi` - 1, one range after another."""
    sizes = hi - lo
    starts = np.cumsum(sizes) - sizes
    return np.repeat(lo - starts, sizes) + np.arange(int(sizes.sum()))


def _chunks(lo: Ints, hi: Ints) -> Iterator[tuple[Ints, Ints]]:
    """The bounds in parts that span about CHUNK values each."""
    part = np.cumsum(hi - lo) // CHUNK
    cuts = np.r_[0, np.flatnonzero(np.diff(part)) + 1, len(lo)]
    for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        yield lo[start:stop], hi[start:stop]


def _distinct(given: pa.Array, lo: Ints, hi: Ints, bound: int) -> pa.Array:
    """A value counts once: where its previous occurrence lies before the window."""
    bits = sketches.value_bits(given)
    order = np.argsort(bits, kind="stable")
    previous = np.full(len(bits), -1, np.int64)
    same = bits[order][1:] == bits[order][:-1]
    previous[order[1:][same]] = order[:-1][same]
    rows, labels = _between(lo, hi), np.repeat(np.arange(len(lo)), hi - lo)
    return distinct_column(np.bincount(labels[previous[rows] < lo[labels]], minlength=len(lo)), bound)


def _approx_distinct(given: pa.Array, lo: Ints, hi: Ints, n: int) -> pa.Array:
    register, rank = sketches.registers(sketches.value_bits(given))
    rows, labels = _between(lo, hi), np.repeat(np.arange(len(lo)), hi - lo)
    return registers_column(labels, register[rows], rank[rows], len(lo))


def _percentile(given: pa.Array, lo: Ints, hi: Ints, percent: int) -> pa.Array:
    bucket = sketches.buckets(numbers(given, True, 0.0))
    rows, labels = _between(lo, hi), np.repeat(np.arange(len(lo)), hi - lo)
    return percentile_column(labels, bucket[rows], np.ones(len(rows), np.int64), len(lo), percent)


_COUNTED = {"count_distinct": _distinct, "approx_count_distinct": _approx_distinct, "approx_percentile": _percentile}


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
