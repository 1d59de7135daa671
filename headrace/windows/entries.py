"""Entry lists: the state of functions that need more than numbers, for many keys at once, as arrays.

    kind       keeps                                            for
    last       the newest n values of a column                  last, last_n
    first      the oldest n values of every tile                first, first_n
    distinct   every value with the time it was last seen       count_distinct
    registers  every register's ranks that no newer one tops    approx_count_distinct
    buckets    how many values of every tile lie in a bucket    approx_percentile

Every window ends at the head, so a value counts in a window iff it was last seen at or after the tail: one entry a
value serves every window. A list is brought to one normal form after each merge, so the order and the batches in
which events came leave no trace in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.dtypes import DType, arrow_type
from headrace.windows import sketches
from headrace.windows.aggregates import numbers, values_array
from headrace.windows.functions import Aggregation, parse_function
from headrace.windows.window import tail_us, tiles_of

__all__ = [
    "COLUMNS",
    "EntryList",
    "EntryRows",
    "Places",
    "distinct_column",
    "empty_entries",
    "entry_lists",
    "grouped_column",
    "lift_entries",
    "list_of",
    "merge_entries",
    "percentile_column",
    "read_entries",
    "registers_column",
]

Ints = NDArray[np.int64]

_ORDERED = ("time", "partition", "offset", "place", "value")
COLUMNS = {
    "last": _ORDERED,
    "first": _ORDERED,
    "distinct": ("value", "time"),
    "registers": ("slot", "time"),
    "buckets": ("tile", "bucket", "count"),
}
_KINDS = {
    "last": "last",
    "last_n": "last",
    "first": "first",
    "first_n": "first",
    "count_distinct": "distinct",
    "approx_count_distinct": "registers",
    "approx_percentile": "buckets",
}
_RANK_BITS = 6


@dataclass(frozen=True, slots=True)
class EntryList:
    """One list of a view. `keep` is the most values of last (per key) and first (per tile), the bound of distinct;
    `hop_us` is 0 for the kinds without tiles; `windows` holds (window, hop) of all that read it."""

    kind: str
    column: str
    dtype: DType
    hop_us: int
    keep: int
    windows: tuple[tuple[int | None, int], ...]

    @property
    def has_text(self) -> bool:
        """Whether its values are strings, kept beside the numbers."""
        return self.kind in ("last", "first") and self.dtype is DType.STRING


def _identity(agg: Aggregation) -> tuple[str, str, DType, int] | None:
    kind = _KINDS.get(parse_function(agg.function).base)
    return None if kind is None else (kind, agg.column, agg.input_dtype, agg.hop_us if kind in _TILED else 0)


_TILED = ("first", "buckets")


def entry_lists(aggregations: Iterable[Aggregation]) -> tuple[EntryList, ...]:
    """The lists that `aggregations` need; functions of one kind and column share one."""
    keep: dict[tuple[str, str, DType, int], int] = {}
    windows: dict[tuple[str, str, DType, int], dict[tuple[int | None, int], None]] = {}
    for agg in aggregations:
        identity = _identity(agg)
        if identity is not None:
            keep[identity] = max(keep.get(identity, 0), parse_function(agg.function).n)
            windows.setdefault(identity, {})[agg.window_us, agg.hop_us] = None
    return tuple(EntryList(*identity, keep[identity], tuple(windows[identity])) for identity in sorted(keep))


def list_of(lists: Iterable[EntryList], agg: Aggregation) -> int | None:
    """The number of the list that `agg` reads, None for one that reads tiles."""
    identity = _identity(agg)
    for number, held in enumerate(lists):
        if (held.kind, held.column, held.dtype, held.hop_us) == identity:
            return number
    return None


@dataclass(frozen=True, slots=True)
class EntryRows:
    """Entries of many keys in normal form, sorted by key: int64 columns of one length n by name, and the strings."""

    keys: Ints
    columns: Mapping[str, Ints]
    text: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def at(self, rows: Any) -> EntryRows:
        """The entries by number or mask."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return EntryRows(self.keys[rows], columns, None if self.text is None else self.text[rows])


@dataclass(frozen=True, slots=True)
class Places:
    """Where n events stand: what orders events of one time. `place` is the index in the entry x 2^16 + the number
    of the row among those that a transform made of the event."""

    partition: Ints
    offset: Ints
    place: Ints


def empty_entries(held: EntryList) -> EntryRows:
    """No entries at all."""
    none = np.empty(0, np.int64)
    return EntryRows(none, dict.fromkeys(COLUMNS[held.kind], none), np.empty(0, object) if held.has_text else None)


def lift_entries(
    held: EntryList, keys: Ints, times_us: Ints, columns: Mapping[str, pa.Array], places: Places
) -> EntryRows:
    """The entries of a batch of n events alone, given in any order; null inputs give none."""
    column = columns[held.column]
    given = np.flatnonzero(np.asarray(column.is_valid()))
    keys, times_us, column = keys[given], times_us[given], column.take(pa.array(given))
    if held.kind in ("last", "first"):
        rows = _ordered(held, keys, times_us, column, places, given)
    elif held.kind == "buckets":
        bucket = sketches.buckets(numbers(column, True, 0.0))
        rows = EntryRows(
            keys, {"tile": tiles_of(times_us, held.hop_us), "bucket": bucket, "count": np.ones(len(keys), np.int64)}
        )
    else:
        bits = sketches.value_bits(column)
        rows = EntryRows(keys, {"value": bits, "time": times_us})
        if held.kind == "registers":
            register, rank = sketches.registers(bits)
            rows = EntryRows(keys, {"slot": (register << _RANK_BITS) + rank, "time": times_us})
    return _NORMAL[held.kind](held, rows)


def _ordered(held: EntryList, keys: Ints, times_us: Ints, column: pa.Array, places: Places, given: Ints) -> EntryRows:
    text = None
    if held.has_text:
        text = np.array([value.encode() for value in column.to_pylist()], object)
        value = np.array([len(item) for item in text], np.int64)
    elif held.dtype.is_float:
        value = numbers(column, True, 0.0).view(np.int64)
    else:
        value = numbers(column, False, 0)
    part = {"partition": places.partition[given], "offset": places.offset[given], "place": places.place[given]}
    return EntryRows(keys, {"time": times_us, **part, "value": value}, text)


def merge_entries(held: EntryList, old: EntryRows, delta: EntryRows, newest_us: Ints) -> EntryRows:
    """The entries of both sets of events together, without what no window can read any more.

    `newest_us` is the newest event time by key (of all keys): a read comes after it.
    """
    if len(old) and len(delta):
        columns = {name: np.concatenate([values, delta.columns[name]]) for name, values in old.columns.items()}
        text = None if old.text is None else np.concatenate([old.text, delta.text])
        both = _NORMAL[held.kind](held, EntryRows(np.concatenate([old.keys, delta.keys]), columns, text))
    else:
        both = old if len(old) else delta
    oldest = _oldest_us(held, newest_us)
    if oldest is None:
        return both
    times = both.columns["tile"] * held.hop_us if held.kind == "buckets" else both.columns["time"]
    return both.at(times >= oldest[both.keys])


def _oldest_us(held: EntryList, newest_us: Ints) -> Ints | None:
    tails = [tail_us(newest_us, window, hop) for window, hop in held.windows if window is not None]
    return None if len(tails) < len(held.windows) else np.minimum.reduce(tails)


def _runs(*levels: Ints) -> Ints:
    """Where a new run of equal rows begins, in sorted arrays."""
    n = len(levels[0])
    changed = np.zeros(max(n - 1, 0), np.bool_)
    for level in levels:
        changed |= level[1:] != level[:-1]
    return np.flatnonzero(np.r_[np.ones(min(n, 1), np.bool_), changed])


def _place_in_run(starts: Ints, n: int) -> tuple[Ints, Ints]:
    """For each of n rows its place in its run, from 0, and the run's size."""
    sizes = np.diff(np.r_[starts, n])
    return np.arange(n) - np.repeat(starts, sizes), np.repeat(sizes, sizes)


def _in_order(rows: EntryRows) -> EntryRows:
    c = rows.columns
    return rows.at(np.lexsort((c["place"], c["offset"], c["partition"], c["time"], rows.keys)))


def _normal_last(held: EntryList, rows: EntryRows) -> EntryRows:
    rows = _in_order(rows)
    place, size = _place_in_run(_runs(rows.keys), len(rows))
    return rows.at(place >= size - held.keep)


def _normal_first(held: EntryList, rows: EntryRows) -> EntryRows:
    rows = _in_order(rows)
    tiles = tiles_of(rows.columns["time"], held.hop_us)
    place, _ = _place_in_run(_runs(rows.keys, tiles), len(rows))
    return rows.at(place < held.keep)


def _normal_distinct(held: EntryList, rows: EntryRows) -> EntryRows:
    """Each value once, with its latest time; one more than the bound, so that exceeding it shows.

    A value pushed out is never missed: the oldest time kept only rises, so what comes in is newer.
    """
    rows = rows.at(np.lexsort((rows.columns["time"], rows.columns["value"], rows.keys)))
    place, size = _place_in_run(_runs(rows.keys, rows.columns["value"]), len(rows))
    rows = rows.at(place == size - 1)
    rows = rows.at(np.lexsort((rows.columns["value"], rows.columns["time"], rows.keys)))
    place, size = _place_in_run(_runs(rows.keys), len(rows))
    return rows.at(place >= size - held.keep - 1)


def _normal_registers(held: EntryList, rows: EntryRows) -> EntryRows:
    """Each register's ranks that no entry of the same or a later time equals or tops."""
    slot, time = rows.columns["slot"], rows.columns["time"]
    register, rank = slot >> _RANK_BITS, slot & ((1 << _RANK_BITS) - 1)
    order = np.lexsort((-rank, -time, register, rows.keys))
    rows, rank, register = rows.at(order), rank[order], register[order]
    starts = _runs(rows.keys, register)
    group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(rows)]))
    height = (group << _RANK_BITS) + rank
    tallest = np.maximum.accumulate(height) if len(height) else height
    return rows.at(height > np.r_[-1, tallest[:-1]][: len(height)])


def _normal_buckets(held: EntryList, rows: EntryRows) -> EntryRows:
    tile, bucket = rows.columns["tile"], rows.columns["bucket"]
    rows = rows.at(np.lexsort((bucket, tile, rows.keys)))
    starts = _runs(rows.keys, rows.columns["tile"], rows.columns["bucket"])
    if not len(starts):
        return rows
    count = np.add.reduceat(rows.columns["count"], starts)
    kept = rows.at(starts)
    return EntryRows(kept.keys, {**kept.columns, "count": count})


_NORMAL = {
    "last": _normal_last,
    "first": _normal_first,
    "distinct": _normal_distinct,
    "registers": _normal_registers,
    "buckets": _normal_buckets,
}


def read_entries(held: EntryList, agg: Aggregation, rows: EntryRows, t_us: Ints) -> pa.Array:
    """What `agg` comes to for the keys 0 to n - 1 at their `t_us` (int64 of n), as a column of its type."""
    tails = tail_us(t_us, agg.window_us, agg.hop_us)
    times = rows.columns["tile"] * held.hop_us if held.kind == "buckets" else rows.columns["time"]
    inside = rows.at(times >= tails[rows.keys])
    n = parse_function(agg.function).n
    if held.kind in ("last", "first"):
        return _values(held, agg, inside, len(t_us), n)
    if held.kind == "distinct":
        return distinct_column(np.bincount(inside.keys, minlength=len(t_us)), n)
    if held.kind == "registers":
        slot = inside.columns["slot"]
        return registers_column(inside.keys, slot >> _RANK_BITS, slot & ((1 << _RANK_BITS) - 1), len(t_us))
    return percentile_column(inside.keys, inside.columns["bucket"], inside.columns["count"], len(t_us), n)


def _values(held: EntryList, agg: Aggregation, rows: EntryRows, n_keys: int, n: int) -> pa.Array:
    place, size = _place_in_run(_runs(rows.keys), len(rows))
    rows = rows.at(place >= size - n) if held.kind == "last" else rows.at(place < n)
    every = np.ones(len(rows), np.bool_)
    if rows.text is not None:
        column = pa.array([text.decode() for text in rows.text], pa.string())
    elif held.dtype.is_float:
        column = values_array(np.ascontiguousarray(rows.columns["value"]).view(np.float64), every, held.dtype)
    else:
        column = values_array(rows.columns["value"], every, held.dtype)
    return grouped_column(column, np.bincount(rows.keys, minlength=n_keys), agg.dtype)


def grouped_column(values: pa.Array, counts: Ints, dtype: DType) -> pa.Array:
    """Values that lie one group after another as a column: lists, or the one value of each group; null for none."""
    ends = np.cumsum(counts)
    empty = counts == 0
    if dtype.is_list:
        offsets = pa.array(np.r_[0, ends].astype(np.int32), mask=np.r_[empty, False])
        return pa.ListArray.from_arrays(offsets, values).cast(arrow_type(dtype))
    return values.take(pa.array(np.where(empty, 0, ends - 1), mask=empty)).cast(arrow_type(dtype))


def distinct_column(counts: Ints, bound: int) -> pa.Array:
    """Exact counts, null above the bound."""
    return pa.array(counts.astype(np.int64), mask=counts > bound)


def registers_column(keys: Ints, register: Ints, rank: Ints, n_keys: int) -> pa.Array:
    """Estimated counts of distinct values for the keys 0 to n - 1 from their (register, rank) pairs."""
    estimates = np.zeros(n_keys, np.int64)
    chunk = 4_096
    for start in range(0, n_keys, chunk):
        stop = min(start + chunk, n_keys)
        mine = (keys >= start) & (keys < stop)
        ranks = np.zeros((stop - start, sketches.REGISTERS), np.uint8)
        np.maximum.at(ranks, (keys[mine] - start, register[mine]), rank[mine].astype(np.uint8))
        estimates[start:stop] = sketches.estimate_distinct(ranks)
    return pa.array(estimates)


def percentile_column(keys: Ints, bucket: Ints, count: Ints, n_keys: int, percent: int) -> pa.Array:
    """For the keys 0 to n - 1 the value at rank floor(percent x (n - 1) / 100) of their buckets, null for none."""
    order = np.lexsort((bucket, keys))
    keys, bucket, count = keys[order], bucket[order], count[order]
    totals = np.bincount(keys, count, n_keys).astype(np.int64)
    upto = np.cumsum(count)
    before = np.r_[0, np.cumsum(totals)][:-1]
    wanted = before + percent * np.maximum(totals - 1, 0) // 100
    found = np.minimum(np.searchsorted(upto, wanted, side="right"), max(len(upto) - 1, 0))
    values = sketches.midpoints(bucket[found]) if len(bucket) else np.zeros(n_keys)
    return pa.array(values, mask=totals == 0)
