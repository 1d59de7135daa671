"""Stored bytes to feature values at a moment: what one view shows each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.catalog.definitions import FeatureView
from headrace.dtypes import arrow_type
from headrace.read.window_reader import OUT_OF_RANGE, window_reader
from headrace.stores.codec.header import OLDEST_US, ROWS, TILES, unpack_header
from headrace.stores.codec.rows import decode_rows, row_layout
from headrace.stores.codec.tiles import decode_tiles, tile_layout
from headrace.windows.aggregates import out_of_range, result_array, state_fields
from headrace.windows.entries import list_of, read_entries
from headrace.windows.suffix_tiles import read_rows

__all__ = ["NOT_FOUND", "NULL_VALUE", "OUTSIDE_MAX_AGE", "PRESENT", "StepValues", "newest_us", "step_values"]

Ints = NDArray[np.int64]

PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE = range(4)


@dataclass(frozen=True, slots=True)
class StepValues:
    """One view's features for n rows; `row_statuses` holds for every feature, a null of a PRESENT row is
    NULL_VALUE; `timestamps_us` is the time of the newest event behind the row, 0 for none; `out_of_range` says how
    many values of which features are null because their type or their bound cannot hold them."""

    columns: Mapping[str, pa.Array]
    row_statuses: NDArray[np.uint8]
    timestamps_us: Ints
    out_of_range: Mapping[str, int] = field(default_factory=dict)

    def statuses_of(self, column: pa.Array) -> NDArray[np.uint8]:
        """The status of every row of one feature."""
        missing = np.asarray(column.is_null())
        statuses: NDArray[np.uint8] = np.where(
            missing & (self.row_statuses == PRESENT), np.uint8(NULL_VALUE), self.row_statuses
        )
        return statuses


def newest_us(view: FeatureView, held: Sequence[bytes | None]) -> Ints:
    """The newest event time in each value; before all time where there is none."""
    kind = TILES if view.kind == "windowed" else ROWS
    return np.array([OLDEST_US if blob is None else unpack_header(blob, kind).newest_us for blob in held], np.int64)


def step_values(view: FeatureView, held: Sequence[bytes | None], t_us: Ints) -> StepValues:
    """What `view` shows n rows at their `t_us`, none of which precedes the newest event of its value."""
    return _windowed(view, held, t_us) if view.kind == "windowed" else _plain(view, held, t_us)


FEW_ROWS = 4
"""Up to so many rows are read one by one, more as arrays."""


def _windowed(view: FeatureView, held: Sequence[bytes | None], t_us: Ints) -> StepValues:
    newest = newest_us(view, held)
    columns, beyond = (_few if len(held) <= FEW_ROWS else _many)(view, held, t_us)
    times_us = np.where(newest == OLDEST_US, 0, newest)
    counted = {name: n for name, n in beyond.items() if n}
    return StepValues(columns, np.full(len(held), PRESENT, np.uint8), times_us, counted)


Columns = dict[str, pa.Array]
Counts = dict[str, int]


def _few(view: FeatureView, held: Sequence[bytes | None], t_us: Ints) -> tuple[Columns, Counts]:
    reader = window_reader(view)
    rows = [reader.read(blob, t) for blob, t in zip(held, t_us.tolist(), strict=True)]
    columns, beyond = {}, {}
    for i, agg in enumerate(view.aggregations):
        values: list[Any] = [row[i] for row in rows]
        if OUT_OF_RANGE in values:
            beyond[agg.feature] = values.count(OUT_OF_RANGE)
            values = [None if value is OUT_OF_RANGE else value for value in values]
        columns[agg.feature] = pa.array(values, arrow_type(agg.dtype))
    return columns, beyond


def _many(view: FeatureView, held: Sequence[bytes | None], t_us: Ints) -> tuple[Columns, Counts]:
    layout = tile_layout(view)
    tiles = decode_tiles(layout, held)
    groups = {group.hop_us: number for number, group in enumerate(layout.groups)}
    keys = np.arange(len(held))
    states = {}
    columns, beyond = {}, {}
    for agg in view.aggregations:
        listed = list_of(layout.lists, agg)
        if listed is not None:
            column = read_entries(layout.lists[listed], agg, tiles.entries[listed], t_us)
            columns[agg.feature] = column
            beyond[agg.feature] = column.null_count if layout.lists[listed].kind == "distinct" else 0
            continue
        number, window = groups[agg.hop_us], agg.window_us
        if (agg.hop_us, window) not in states:
            states[agg.hop_us, window] = read_rows(layout.groups[number], tiles.rows[number], keys, t_us, window)
        state = states[agg.hop_us, window]
        columns[agg.feature] = result_array(agg, state)
        beyond[agg.feature] = int(np.count_nonzero(out_of_range(agg, state)))
    return columns, beyond


def _plain(view: FeatureView, held: Sequence[bytes | None], t_us: Ints) -> StepValues:
    times, columns = decode_rows(row_layout(view), held)
    statuses = np.full(len(held), PRESENT, np.uint8)
    if view.ttl_us:
        statuses[times < t_us - view.ttl_us] = OUTSIDE_MAX_AGE
    statuses[[blob is None for blob in held]] = NOT_FOUND
    gone = pa.array(statuses != PRESENT)
    shown = {
        feature.name: pc.if_else(gone, pa.scalar(None, column.type), column)
        for feature, column in zip(view.features, columns, strict=True)
    }
    return StepValues(shown, statuses, times)
