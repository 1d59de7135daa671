"""The rows that a view counts, in one shape wherever they come from: events, rows written directly, a batch file.

A row has its join keys, its event time, where asked for its arrival, the places that order rows of one time, and the
values that the features are made of. Rows with a null join key are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Aggregation, Catalog, Column, FeatureView, Source
from headrace.compute.forgotten import gone_file_rows
from headrace.dtypes import DType, arrow_type
from headrace.read.joins.past import Past, sources_of
from headrace.read.joins.scans import PART, OnRead, RowScan, SlimScan
from headrace.read.joins.spill import Space
from headrace.stores.archive_rows import INDEX, OFFSET, PARTITION
from headrace.stores.batch_files import BatchPart, BatchScan
from headrace.windows.functions import parse_function
from headrace.windows.window import tail_us

__all__ = ["RowShape", "row_scans", "row_shape"]

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_WIDTHS = {DType.INT32: 4, DType.FLOAT32: 4, DType.BOOL: 1, DType.STRING: 24}
_PART_BITS = 16
_BEFORE_ALL = np.iinfo(np.int64).min


@dataclass(frozen=True)
class RowShape:
    """`aggregations` are those asked for of a windowed view, `values` the columns that they or the features read;
    `places` is how many numbers order rows of one time, the most significant first."""

    view: FeatureView
    keys: tuple[Column, ...]
    values: tuple[Column, ...]
    aggregations: tuple[Aggregation, ...]
    places: int
    as_known: bool

    @cached_property
    def schema(self) -> pa.Schema:
        fields = [pa.field(f"row.key{i}", arrow_type(column.dtype)) for i, column in enumerate(self.keys)]
        fields += [pa.field(name, pa.int64()) for name in self._moments]
        fields += [pa.field(f"row.place{i}", pa.int64()) for i in range(self.places)]
        return pa.schema(fields + [pa.field(f"value.{v.name}", arrow_type(v.dtype)) for v in self.values])

    @property
    def row_bytes(self) -> int:
        """About what a row takes."""
        columns = sum(_WIDTHS.get(column.dtype, 8) for column in (*self.keys, *self.values))
        return columns + 8 * (len(self._moments) + self.places)

    @property
    def _moments(self) -> tuple[str, ...]:
        return ("row.time", "row.arrival") if self.as_known else ("row.time",)

    def table(
        self, keys: Sequence[Any], moments_us: Sequence[Ints], places: Sequence[Ints], values: Sequence[Any]
    ) -> pa.Table:
        """Rows of this shape; `moments_us` are event time and arrival."""
        numbers = [pa.array(column) for column in (*moments_us[: len(self._moments)], *places)]
        arrays = [*(_one(key) for key in keys), *numbers, *(_one(value) for value in values)]
        cast = [column.cast(field.type) for column, field in zip(arrays, self.schema, strict=True)]
        table = pa.Table.from_arrays(cast, schema=self.schema)
        good = np.ones(table.num_rows, np.bool_)
        for key in cast[: len(self.keys)]:
            if key.null_count:
                good &= np.asarray(key.is_valid()).astype(np.bool_)
        return table if good.all() else table.filter(pa.array(good))

    def keys_of(self, table: pa.Table) -> list[pa.Array]:
        return [_one(table[f"row.key{i}"]) for i in range(len(self.keys))]

    def numbers_of(self, table: pa.Table, name: str) -> Ints:
        """`time`, `arrival` or `place0` and so on."""
        return np.asarray(_one(table[f"row.{name}"]))

    def places_of(self, table: pa.Table) -> tuple[Ints, ...]:
        return tuple(self.numbers_of(table, f"place{i}") for i in range(self.places))

    def values_of(self, table: pa.Table) -> dict[str, pa.Array]:
        return {column.name: _one(table[f"value.{column.name}"]) for column in self.values}


def row_shape(catalog: Catalog, view: FeatureView, features: Sequence[str], as_known: bool) -> RowShape:
    """The shape of the rows that `features` of `view` need."""
    keys = catalog.sorted_join_keys(view)
    if view.kind != "windowed":
        values = tuple(feature for feature in view.features if feature.name in features)
        return RowShape(view, keys, values, (), 4, as_known)
    aggregations = tuple(agg for agg in view.aggregations if agg.feature in features)
    read = {agg.column: Column(agg.column, agg.input_dtype) for agg in aggregations if agg.column != "*"}
    ordered = any(parse_function(agg.function).base in _ORDERED for agg in aggregations)
    return RowShape(view, keys, tuple(read.values()), aggregations, 3 if ordered else 0, as_known)


_ORDERED = ("first", "last", "first_n", "last_n")


def row_scans(
    catalog: Catalog, shape: RowShape, history: Past, first_us: int, last_us: int, space: Space
) -> list[RowScan]:
    """What to read for labels with times in [first, last]: nothing that none of them can see, as far as times tell.

    Raises DataError for files that cannot be read, and for a time whose events retention has deleted.
    """
    view = shape.view
    since_us, until_us = _period(shape, first_us, last_us)
    found = []
    if view.kind != "windowed" and view.batch is not None:
        found.append(_batch_scan(catalog, shape, history, since_us, until_us))
    for rank, source in enumerate(sources_of(catalog, view), 1):
        found.append(_event_scan(catalog, shape, source, rank, history, (since_us, until_us), space))
    return found


def _period(shape: RowShape, first_us: int, last_us: int) -> tuple[int | None, int]:
    if shape.view.kind != "windowed":
        return (first_us - shape.view.ttl_us if shape.view.ttl_us else None), last_us
    if any(agg.window_us is None for agg in shape.aggregations):
        return None, last_us - 1
    tails = [int(tail_us(first_us, agg.window_us, agg.hop_us)) for agg in shape.aggregations]
    return min(tails, default=first_us), last_us - 1


def _event_scan(
    catalog: Catalog,
    shape: RowShape,
    source: Source,
    rank: int,
    history: Past,
    period_us: tuple[int | None, int],
    space: Space,
) -> RowScan:
    keys, values = [column.name for column in shape.keys], [column.name for column in shape.values]
    names = [*keys, *values, *(["arrival_time"] if shape.as_known else [])]
    scan = history.scan(catalog, shape.view, source, names, *period_us, space, places=shape.places > 0)

    def tables(on_read: OnRead) -> Iterator[pa.Table]:
        for table in scan.tables(on_read):
            times = _numbers(table["event_time"])
            moments = [times, _numbers(table["arrival_time"])] if shape.as_known else [times]
            places = [np.full(len(times), rank), *_position(table)] if shape.places == 4 else _position(table)
            given = places if shape.places else []
            yield shape.table([table[key] for key in keys], moments, given, [table[value] for value in values])

    return replace(scan, schema=shape.schema, tables=tables)


def _position(table: pa.Table) -> list[Ints]:
    if OFFSET not in table.column_names:
        return []
    place = _numbers(table[INDEX]) << _PART_BITS
    if PART in table.column_names:
        place += _numbers(table[PART])
    return [_numbers(table[PARTITION]), _numbers(table[OFFSET]), place]


def _batch_scan(catalog: Catalog, shape: RowShape, history: Past, since_us: int | None, until_us: int) -> RowScan:
    columns = list(dict.fromkeys([*shape.keys, *shape.values]))
    scan = BatchScan(shape.view, columns, history.repo, since_us, until_us)

    def tables(on_read: OnRead) -> Iterator[pa.Table]:
        return _batch_tables(catalog, shape, history, scan.parts(columns), on_read)

    return RowScan(shape.schema, scan.rows, tables, _slim_scan(catalog, shape, history, scan))


def _slim_scan(catalog: Catalog, shape: RowShape, history: Past, scan: BatchScan) -> SlimScan | None:
    """None where values must be seen to know whether a row counts."""
    columns = list(dict.fromkeys([*shape.keys, *shape.values]))
    if not shape.values or set(scan.doubtful()) - set(shape.keys):
        return None
    has_created = shape.view.batch is not None and shape.view.batch.created_timestamp is not None
    slim = replace(shape, values=(), places=2 if has_created else 1)

    def tables(on_read: OnRead) -> Iterator[pa.Table]:
        return _batch_tables(catalog, slim, history, scan.parts(shape.keys), on_read)

    def chosen(numbers: Ints) -> Iterator[pa.Table]:
        before = 0
        for part in scan.parts(columns, numbers):
            own = numbers[before : before + part.table.num_rows]
            before += part.table.num_rows
            yield _batch_table(shape, part, part.good, own)

    return SlimScan(slim, tables, chosen)


def _batch_tables(
    catalog: Catalog, shape: RowShape, history: Past, parts: Iterator[BatchPart], on_read: OnRead
) -> Iterator[pa.Table]:
    tombstones, before = history.forgotten, 0
    for part in parts:
        n, good = part.table.num_rows, part.good
        if tombstones:
            held = {name: _one(part.table[name]) for name in part.table.column_names}
            good = good & ~gone_file_rows(catalog, shape.view, held, part.event_time_us, tombstones)
        yield _batch_table(shape, part, good, np.arange(before, before + n))
        before += n
        on_read(n)


def _batch_table(shape: RowShape, part: BatchPart, good: Flags, numbers: Ints) -> pa.Table:
    """Rows of a file come before events of the same time, by when they were created, then as they lie."""
    rows = part.table if good.all() else part.table.filter(pa.array(good))
    times = part.event_time_us[good]
    created = np.zeros_like(times) if part.created_us is None else part.created_us[good]
    arrived = times if part.created_us is None else np.where(created == _BEFORE_ALL, times, created)
    none = np.zeros_like(times)
    places = [none, none, created, numbers[good]][-shape.places :]
    keys, values = ([rows[column.name] for column in some] for some in (shape.keys, shape.values))
    return shape.table(keys, [times, arrived], places, values)


def _numbers(column: pa.ChunkedArray) -> Ints:
    numbers: Ints = np.asarray(_one(column.cast(pa.int64())))
    return numbers


def _one(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
