"""What one view showed to rows that each saw their own part of the log, from the archive.

Every row is a key of its own in the join that makes training sets, and brings the events of its entity that it may
count: by position, or all. So the audit's answers come from the engine of the training sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog, Column, FeatureView
from headrace.dtypes import DType, arrow_type
from headrace.read.history import History, sources_of
from headrace.read.joins.view_join import join_rows
from headrace.read.joins.view_rows import RowShape, row_shape
from headrace.stores.archive_rows import INDEX, OFFSET, PARTITION
from headrace.windows.window import tail_us

__all__ = ["Seen", "ViewPast"]

Ints = NDArray[np.int64]
_PART_BITS = 16


@dataclass(frozen=True, slots=True)
class Seen:
    """A row to recompute: its join key values in the order of `catalog.sorted_join_keys` (None: an unseen entity), its
    moment, and up to which (offset, index) it counts events, by `SOURCE|PARTITION`; None counts all."""

    key: tuple[Any, ...] | None
    t_us: int
    positions: Mapping[str, tuple[int, int]] | None


class ViewPast:
    """The archived rows that `view` counts of the keys of some rows, in memory."""

    def __init__(self, history: History, catalog: Catalog, view: FeatureView, rows: Sequence[Seen]) -> None:
        """Raises DataError for a time whose events retention has deleted."""
        self._catalog, self._view = catalog, view
        self._keys = catalog.sorted_join_keys(view)
        self._tables: list[tuple[str, int, pa.Table]] = []
        self._rows_of: list[dict[tuple[Any, ...], Ints]] = []
        shape = row_shape(catalog, view, [feature.name for feature in view.features], as_known=True)
        names = [column.name for column in (*self._keys, *shape.values)]
        since_us, until_us = _period(view, rows)
        wanted = {row.key for row in rows if row.key is not None}
        for rank, source in enumerate(sources_of(catalog, view), 1):
            columns = list(dict.fromkeys([*names, "event_time", "arrival_time"]))
            table = history.events(catalog, view, source, columns, since_us, until_us)
            keys = list(zip(*[_typed(table, column).to_pylist() for column in self._keys], strict=True))
            held: dict[tuple[Any, ...], list[int]] = {key: [] for key in wanted}
            for i, key in enumerate(keys):
                if key in held:
                    held[key].append(i)
            self._tables.append((source.name, rank, table))
            self._rows_of.append({key: np.array(found, np.int64) for key, found in held.items()})

    def values(self, rows: Sequence[Seen], as_known: bool) -> dict[str, pa.Array]:
        """Every feature of every row, in its declared type; `as_known` counts only what had arrived before a row's
        moment."""
        shape = row_shape(self._catalog, self._view, [feature.name for feature in self._view.features], as_known)
        shape = replace(shape, keys=(Column("audited row", DType.INT64),))
        tables = [self._table(shape, number, rows) for number in range(len(self._tables))]
        times_us = np.array([row.t_us for row in rows], np.int64)
        return join_rows(shape, [pa.array(np.arange(len(rows)))], times_us, tables).columns

    def scales(self, rows: Sequence[Seen]) -> dict[str, list[float]]:
        """By column of floats, what the tolerance of each row's sums is measured by: the sum of the magnitudes."""
        found = {}
        for column in row_shape(self._catalog, self._view, [f.name for f in self._view.features], True).values:
            if column.dtype in (DType.FLOAT32, DType.FLOAT64):
                found[column.name] = [self._scale(row, column) for row in rows]
        return found

    def _scale(self, row: Seen, column: Column) -> float:
        total = 0.0
        for (_, _, table), rows_of in zip(self._tables, self._rows_of, strict=True):
            chosen = rows_of.get(row.key, np.empty(0, np.int64)) if row.key is not None else np.empty(0, np.int64)
            values = np.asarray(_typed(table, column).take(pa.array(chosen)).cast(pa.float64()).fill_null(0.0))
            total += float(np.abs(values).sum() + (values * values).sum())
        return total

    def _table(self, shape: RowShape, number: int, rows: Sequence[Seen]) -> pa.Table:
        """The rows of one source that each of `rows` may count, once for each, under its number."""
        name, rank, table = self._tables[number]
        places = [np.asarray(table[column].cast(pa.int64()).combine_chunks()) for column in (PARTITION, OFFSET, INDEX)]
        chosen, owners = [], []
        for owner, row in enumerate(rows):
            mine = self._rows_of[number].get(row.key) if row.key is not None else None
            if mine is None or not len(mine):
                continue
            if row.positions is not None:
                mine = mine[_counted(name, row.positions, *[place[mine] for place in places])]
            chosen.append(mine)
            owners.append(np.full(len(mine), owner))
        taken = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
        table = table.take(pa.array(taken))
        partition, offset, index = [place[taken] for place in places]
        order = [partition, offset, index << _PART_BITS]
        order = [np.full(len(taken), rank), *order] if shape.places == 4 else order
        moments = [np.asarray(table[n].cast(pa.int64()).combine_chunks()) for n in ("event_time", "arrival_time")]
        owner_column = pa.array(np.concatenate(owners) if owners else np.empty(0, np.int64))
        values = [_typed(table, value) for value in shape.values]
        return shape.table([owner_column], moments, order if shape.places else [], values)


def _counted(source: str, positions: Mapping[str, tuple[int, int]], partition: Ints, offset: Ints, index: Ints) -> Any:
    kept = np.zeros(len(offset), np.bool_)
    for part in np.unique(partition).tolist():
        upto = positions.get(f"{source}|{part}")
        if upto is not None:
            before = (offset < upto[0]) | ((offset == upto[0]) & (index <= upto[1]))
            kept |= (partition == part) & before
    return kept


def _typed(table: pa.Table, column: Column) -> pa.Array:
    return table[column.name].combine_chunks().cast(arrow_type(column.dtype))


def _period(view: FeatureView, rows: Sequence[Seen]) -> tuple[int | None, int]:
    first_us, last_us = min(row.t_us for row in rows), max(row.t_us for row in rows)
    if view.kind != "windowed":
        return (first_us - view.ttl_us if view.ttl_us else None), last_us
    windows = [(agg.window_us, agg.hop_us) for agg in view.aggregations]
    tails = [tail_us(first_us, window_us, hop_us) for window_us, hop_us in windows if window_us is not None]
    return (min(map(int, tails)) if len(tails) == len(windows) else None), last_us - 1
