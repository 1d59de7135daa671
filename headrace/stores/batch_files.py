"""The rows of a view's batch source, as materialization and training read them alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import BatchSource, Column, DType, FeatureView
from headrace.errors import DataError
from headrace.moments import EARLIEST_US, LATEST_US
from headrace.stores.tables import as_declared, read_file

__all__ = ["BatchRows", "read_batch_rows"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BatchRows:
    """Rows in the order in which later ones win: event time, created timestamp, place in the file.

    `table` holds the asked columns in their declared types; `refused` counts rows that no view sees: without an
    event time, with a time outside the years 1 to 9999 or with an infinite value.
    """

    table: pa.Table
    event_time_us: Ints
    refused: int


def read_batch_rows(
    view: FeatureView,
    columns: Sequence[Column],
    repo: Path,
    start_us: int | None = None,
    end_us: int | None = None,
) -> BatchRows:
    """`columns` (join keys and features, named as the view names them) of the rows of `view.batch` with an event
    time in [start, end]. A relative path is taken from `repo`.

    Raises DataError for a view without a batch source, and for a file that is missing, unreadable or lacks a column.
    """
    source = view.batch
    if source is None:
        raise DataError(f"View {view.name!r} has no batch source; give it a FileSource.")
    table = _read(source, columns, repo)
    times = as_declared(table[source.timestamp], DType.TIMESTAMP, _where(source, source.timestamp))
    given = {c.name: as_declared(table[c.name], c.dtype, _where(source, c.name)) for c in columns}
    created, created_good = _created_us(source, table)
    times_us = np.asarray(times.cast(pa.int64()).fill_null(0))
    good = np.asarray(times.is_valid()) & _usable(times) & created_good
    for column in columns:
        good &= _usable(given[column.name])
    inside = good & (times_us >= (times_us if start_us is None else start_us))
    inside &= times_us <= (times_us if end_us is None else end_us)
    rows = np.flatnonzero(inside)
    rows = rows[np.lexsort((rows, created[rows], times_us[rows]))]
    typed = pa.table({column.name: given[column.name] for column in columns})
    return BatchRows(typed.take(rows), times_us[rows], int((~good).sum()))


def _read(source: BatchSource, columns: Sequence[Column], repo: Path) -> pa.Table:
    """The needed columns under the view's names."""
    in_file = {ours: theirs for theirs, ours in source.field_mapping}
    created = [source.created_timestamp] if source.created_timestamp else []
    names = list(dict.fromkeys([source.timestamp, *created, *(column.name for column in columns)]))
    text = [in_file.get(column.name, column.name) for column in columns if column.dtype is DType.STRING]
    theirs = [in_file.get(name, name) for name in names]
    try:
        table = read_file(_path(source, repo), source.file_format, theirs, text)
    except DataError as error:
        raise DataError(f"Batch source {source.name!r}: {error}") from None
    return table.rename_columns(names)


def _path(source: BatchSource, repo: Path) -> Path:
    text = source.path.removeprefix("file://")
    if "://" in text:
        raise DataError(f"Batch source {source.name!r} must be a local file, got {source.path!r}; copy it here.")
    return repo / text


def _usable(values: Any) -> NDArray[np.bool_]:
    """Where a column of a declared type holds null, a finite number, a time of the years 1 to 9999, or another kind."""
    if pa.types.is_floating(values.type):
        return ~np.isinf(np.asarray(values.fill_null(0), np.float64))
    if pa.types.is_timestamp(values.type):
        times_us = np.asarray(values.cast(pa.int64()).fill_null(0), np.int64)
        return (times_us >= EARLIEST_US) & (times_us <= LATEST_US)
    return np.ones(len(values), np.bool_)


def _created_us(source: BatchSource, table: pa.Table) -> tuple[Ints, NDArray[np.bool_]]:
    """When each row was created, before all time for null, and whether that is usable."""
    if source.created_timestamp is None:
        return np.zeros(table.num_rows, np.int64), np.ones(table.num_rows, np.bool_)
    name = source.created_timestamp
    created: Any = as_declared(table[name], DType.TIMESTAMP, _where(source, name))
    return np.asarray(created.cast(pa.int64()).fill_null(np.iinfo(np.int64).min)), _usable(created)


def _where(source: BatchSource, column: str) -> str:
    return f"Column {column!r} of batch source {source.name!r}"
