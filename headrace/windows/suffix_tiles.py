"""Suffix tiles: the state of a windowed view for many keys at once, as arrays.

Every window ends at the head, so it is a suffix of its hop's tiles. The row of tile i holds the merge of all
tiles >= i: any window of that hop is one binary search and one row, and no subtraction ever happens.

    events      tile 3: {5}     tile 4: {1, 2}     tile 7: {4}
    rows        3 -> 12         4 -> 7             7 -> 4          (sum)
    a window whose tail lies in tile 4 reads the row of 4; one whose tail lies in tile 5 or 6 reads the row of 7

Merging a delta is the union of both sets of tiles, each side contributing its first row at or after the tile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.windows.aggregates import State, StateField, lift, merge_states, reduce_runs, state_fields, take, zeros
from headrace.windows.functions import Aggregation
from headrace.windows.window import BEGINNING_US, tail_us, tiles_of

__all__ = [
    "LiftedEvents",
    "TileGroup",
    "TileRows",
    "drop_old",
    "columns_of",
    "empty_rows",
    "lift_events",
    "merge_rows",
    "partial_rows",
    "read_rows",
    "tile_groups",
]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TileGroup:
    """The tiles of one hop: which state fields they keep and the longest window that reads them.

    `hop_us` 0 is the lifetime: one tile, never dropped.
    """

    hop_us: int
    longest_us: int | None
    fields: tuple[StateField, ...]


def tile_groups(aggregations: Iterable[Aggregation]) -> tuple[TileGroup, ...]:
    """The groups that `aggregations` need, by rising hop; functions share the fields of their column."""
    fields: dict[int, set[StateField]] = {}
    longest: dict[int, int | None] = {}
    for agg in aggregations:
        if state_fields(agg):
            fields.setdefault(agg.hop_us, set()).update(state_fields(agg))
            before = longest.get(agg.hop_us, 0)
            longest[agg.hop_us] = None if agg.window_us is None or before is None else max(before, agg.window_us)
    return tuple(TileGroup(hop, longest[hop], tuple(sorted(fields[hop]))) for hop in sorted(fields))


@dataclass(frozen=True, slots=True)
class TileRows:
    """Rows of many keys sorted by (key, tile), both int64 and of one length n; one state array per field."""

    keys: Ints
    tiles: Ints
    state: State

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, chosen: NDArray[np.bool_]) -> TileRows:
        """The rows that `chosen` (n bools) marks."""
        return TileRows(self.keys[chosen], self.tiles[chosen], take(self.state, chosen))


def empty_rows(group: TileGroup) -> TileRows:
    """No rows at all."""
    none = np.empty(0, np.int64)
    return TileRows(none, none, zeros(group.fields, 0))


@dataclass(frozen=True, slots=True)
class LiftedEvents:
    """Events sorted by (key, time), both int64 and of one length n; one state array per field."""

    keys: Ints
    times_us: Ints
    state: State


def lift_events(
    groups: Iterable[TileGroup], keys: Ints, times_us: Ints, columns: Mapping[str, pa.Array]
) -> LiftedEvents:
    """Events, given in any order, as the state that the groups keep.

    `keys` int64 codes >= 0 and `times_us` of one length n, `columns` of n rows with all that the fields name.
    """
    fields = dict.fromkeys(field for group in groups for field in group.fields)
    state = lift(fields, columns, len(keys))
    behind = (keys[1:] < keys[:-1]) | ((keys[1:] == keys[:-1]) & (times_us[1:] < times_us[:-1]))
    if not behind.any():
        return LiftedEvents(keys, times_us, state)
    order = np.lexsort((times_us, keys))
    return LiftedEvents(keys[order], times_us[order], take(state, order))


def partial_rows(group: TileGroup, events: LiftedEvents) -> TileRows:
    """The suffix rows of a batch of events alone."""
    keys = events.keys
    if not len(keys):
        return empty_rows(group)
    tiles = tiles_of(events.times_us, group.hop_us)
    new = np.empty(len(keys), np.bool_)
    new[0] = True
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    new[1:] |= tiles[1:] != tiles[:-1]
    starts = np.flatnonzero(new)
    row_keys = keys[starts]
    state = reduce_runs({field: events.state[field] for field in group.fields}, starts)
    return TileRows(row_keys, tiles[starts], _suffix_scan(state, _last_of_run(row_keys)))


def _last_of_run(keys: Ints) -> Ints:
    """For every row, the index of the last row of its key; keys are sorted."""
    ends: Ints = np.searchsorted(keys, keys, side="right") - 1
    return ends


def _suffix_scan(state: State, last_of_key: Ints) -> State:
    """Every row merged with all later rows of its key, by doubling steps."""
    step, here = 1, np.arange(len(last_of_key))
    while True:
        joined = np.flatnonzero(here + step <= last_of_key)
        if not len(joined):
            return state
        merged = merge_states(take(state, joined), take(state, joined + step))
        grown = {field: values.copy() for field, values in state.items()}
        for field, values in merged.items():
            grown[field][joined] = values
        state, step = grown, step * 2


def merge_rows(old: TileRows, delta: TileRows) -> TileRows:
    """The rows of both sets of events together; neither input is changed."""
    if not len(old) or not len(delta):
        return delta if not len(old) else old
    keys, tiles = np.concatenate([old.keys, delta.keys]), np.concatenate([old.tiles, delta.tiles])
    at = _places(keys, tiles)
    places, first = np.unique(at, return_index=True)
    keys, tiles = keys[first], tiles[first]
    old_state = _first_at(old, at[: len(old)], keys, places)
    return TileRows(keys, tiles, merge_states(old_state, _first_at(delta, at[len(old) :], keys, places)))


def _places(keys: Ints, tiles: Ints) -> Ints:
    """One number per (key, tile) that sorts as they do, with room behind each key's tiles."""
    lowest = int(tiles.min())
    span = int(tiles.max()) - lowest + 2
    if span * (int(keys.max()) + 1) < 2**62:
        return keys * span + (tiles - lowest)
    distinct, ranks = np.unique(tiles, return_inverse=True)
    return keys * (len(distinct) + 1) + ranks


def _first_at(rows: TileRows, row_at: Ints, keys: Ints, places: Ints) -> State:
    """The state of each key's first row at or after each place, the zero where it has none."""
    nothing = zeros(rows.state, len(keys))
    if not len(rows):
        return nothing
    found = np.searchsorted(row_at, places)
    inside = np.minimum(found, len(rows) - 1)
    has = (found < len(rows)) & (rows.keys[inside] == keys)
    return {field: np.where(has, values[inside], nothing[field]) for field, values in rows.state.items()}


def drop_old(group: TileGroup, rows: TileRows, newest_us: Ints) -> TileRows:
    """Without the rows that no window can read any more.

    `newest_us` is the newest event time of each row's key: a read comes after it, so the longest window's tail
    at that moment is the oldest tail there will ever be.
    """
    if group.longest_us is None:
        return rows
    oldest = tiles_of(tail_us(newest_us, group.longest_us, group.hop_us), group.hop_us)
    return rows.where(rows.tiles >= oldest)


def read_rows(group: TileGroup, rows: TileRows, keys: Ints, t_us: Ints, window_us: int | None) -> State:
    """The state of `window_us` for each of `keys` at its `t_us` (both int64 of n); the zero where it is empty."""
    tails = tail_us(t_us, window_us, group.hop_us)
    tiles = np.full_like(t_us, BEGINNING_US) if window_us is None else tiles_of(tails, group.hop_us)
    distinct = np.unique(rows.tiles)
    span = len(distinct) + 1
    row_at = rows.keys * span + np.searchsorted(distinct, rows.tiles)
    return _first_at(rows, row_at, keys, keys * span + np.searchsorted(distinct, tiles))


def columns_of(groups: Sequence[TileGroup]) -> set[str]:
    """The columns that the groups read, without `*`."""
    return {field.column for group in groups for field in group.fields} - {"*"}
