"""Stored bytes to feature values at a moment: what one view shows each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import FeatureView
from headrace.read.online.vectors import NOT_FOUND, NULL_VALUE, OUTSIDE_MAX_AGE, PRESENT, ManyRows, Vector
from headrace.stores.codec.header import OLDEST_US, ROWS, TILES, Stacked, unpack_header
from headrace.stores.codec.rows import decode_columns, row_layout
from headrace.stores.codec.tiles import decode_tiles, tile_layout
from headrace.windows.aggregates import out_of_range, result_array
from headrace.windows.entries import list_of, read_entries
from headrace.windows.suffix_tiles import read_rows

__all__ = [
    "NOT_FOUND",
    "NULL_VALUE",
    "OUTSIDE_MAX_AGE",
    "PRESENT",
    "StepValues",
    "ViewReader",
    "newest_us",
    "step_values",
    "view_reader",
]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepValues:
    """One view's features for n rows; `row_statuses` holds for every feature, a null of a PRESENT row is
    NULL_VALUE; `timestamps_us` is the time of the newest event behind the row, 0 for none; `out_of_range` says how
    many values of which features are null because their type or their bound cannot hold them."""

    columns: Mapping[str, pa.Array]
    row_statuses: NDArray[np.uint8]
    timestamps_us: Ints
    out_of_range: Mapping[str, int] = field(default_factory=dict)


def newest_us(view: FeatureView, held: Sequence[bytes | None]) -> Ints:
    """The newest event time in each value; before all time where there is none."""
    kind = TILES if view.kind == "windowed" else ROWS
    return np.array([OLDEST_US if blob is None else unpack_header(blob, kind).newest_us for blob in held], np.int64)


def step_values(view: FeatureView, held: Sequence[bytes | None], t_us: Ints) -> StepValues:
    """What `view` shows n rows at their `t_us`, none of which precedes the newest event of its value."""
    found = view_reader(view).read(held, t_us, newest_us(view, held))
    columns = {feature.name: found.array(i) for i, feature in enumerate(view.features)}
    return StepValues(columns, found.statuses, np.ascontiguousarray(found.times_us), found.out_of_range)


class ViewReader(Protocol):
    """Reads what one view shows n rows by arrays; the same values as row by row (see few.py), bit by bit."""

    def read(self, held: Sequence[bytes | None], t_us: Ints, newest: Ints, stacked: Stacked | None = None) -> ManyRows:
        """The rows at their `t_us`; `newest` is the newest event time in each value, `stacked` the values as arrays if
        they are alike."""


def view_reader(view: FeatureView) -> ViewReader:
    """The reader of `view`, compiled."""
    return WindowedView(view) if view.kind == "windowed" else PlainView(view)


class PlainView:
    """The reader of a plain or batch view."""

    def __init__(self, view: FeatureView) -> None:
        self._features, self._ttl_us = view.features, view.ttl_us
        self._layout = row_layout(view)

    def read(self, held: Sequence[bytes | None], t_us: Ints, newest: Ints, stacked: Stacked | None = None) -> ManyRows:
        rows = decode_columns(self._layout, held, stacked)
        statuses = np.full(len(held), PRESENT, np.uint8)
        if self._ttl_us:
            statuses[rows.times_us < t_us - self._ttl_us] = OUTSIDE_MAX_AGE
        if stacked is None and None in held:
            statuses[[blob is None for blob in held]] = NOT_FOUND
        gone = statuses != PRESENT
        nulls = rows.nulls
        if gone.any():
            nulls = np.broadcast_to(gone, (len(self._features), len(held))) if nulls is None else nulls | gone
        missing: list[NDArray[np.bool_] | None] = [None] * len(rows.values)
        if nulls is not None:
            missing = [row if row.any() else None for row in nulls]
        vectors = [Vector(values, rows_missing) for values, rows_missing in zip(rows.values, missing, strict=True)]
        return ManyRows(self._features, vectors, statuses, rows.times_us)


class WindowedView:
    """The reader of a windowed view."""

    def __init__(self, view: FeatureView) -> None:
        self._features, self._aggregations = view.features, view.aggregations
        self._layout = layout = tile_layout(view)
        self._groups = {group.hop_us: number for number, group in enumerate(layout.groups)}
        self._lists = [list_of(layout.lists, agg) for agg in view.aggregations]

    def read(self, held: Sequence[bytes | None], t_us: Ints, newest: Ints, stacked: Stacked | None = None) -> ManyRows:
        layout, keys = self._layout, np.arange(len(held))
        tiles = decode_tiles(layout, held)
        states: dict[tuple[int, int | None], Any] = {}
        vectors, beyond = [], {}
        for agg, listed in zip(self._aggregations, self._lists, strict=True):
            if listed is not None:
                column = read_entries(layout.lists[listed], agg, tiles.entries[listed], t_us)
                beyond[agg.feature] = column.null_count if layout.lists[listed].kind == "distinct" else 0
            else:
                number, window = self._groups[agg.hop_us], agg.window_us
                if (number, window) not in states:
                    state = read_rows(layout.groups[number], tiles.rows[number], keys, t_us, window)
                    states[number, window] = state
                column = result_array(agg, states[number, window])
                beyond[agg.feature] = int(np.count_nonzero(out_of_range(agg, states[number, window])))
            vectors.append(Vector(column))
        counted = {name: n for name, n in beyond.items() if n}
        statuses, times_us = np.full(len(held), PRESENT, np.uint8), np.where(newest == OLDEST_US, 0, newest)
        return ManyRows(self._features, vectors, statuses, times_us, counted)
