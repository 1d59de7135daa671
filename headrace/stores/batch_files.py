"""The rows of a view's batch source, as materialization and training read them alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat
from numpy.typing import NDArray

from headrace.catalog.definitions import BatchSource, Column, DType, FeatureView
from headrace.dtypes import arrow_type
from headrace.errors import DataError
from headrace.moments import EARLIEST_US, LATEST_US
from headrace.stores.table_scans import CsvScan, open_scan
from headrace.stores.tables import as_declared

__all__ = ["BatchPart", "BatchRows", "BatchScan", "batch_path", "read_batch_rows"]

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

NEVER_US = np.iinfo(np.int64).min
_UNITS_PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True, slots=True)
class BatchRows:
    """Rows in the order in which later ones win: event time, created timestamp, place in the file.

    `table` holds the asked columns in their declared types; `refused` counts rows that no view sees: without an
    event time, with a time outside the years 1 to 9999 or with an infinite value (those outside [start, end] are not
    looked at).
    """

    table: pa.Table
    event_time_us: Ints
    refused: int


@dataclass(frozen=True, slots=True)
class BatchPart:
    """Some n rows of a file, in its order. `table` holds the asked columns in their declared types; `created_us` is
    before all time for null, None where rows have no created timestamp. `good` are the rows that a view may see;
    `refused` is as in BatchRows."""

    table: pa.Table
    event_time_us: Ints
    created_us: Ints | None
    good: Flags
    refused: int


class BatchScan:
    """The file of `view.batch`, read as often as asked: `columns` (join keys and features, named as the view names
    them) of its rows with an event time in [start, end]. A relative path is taken from `repo`.

    Raises DataError for a view without a batch source, for a file that is missing, unreadable or lacks a column, and
    for a column of another kind than declared.
    """

    def __init__(
        self,
        view: FeatureView,
        columns: Sequence[Column],
        repo: Path,
        start_us: int | None = None,
        end_us: int | None = None,
    ) -> None:
        if view.batch is None:
            raise DataError(f"View {view.name!r} has no batch source; give it a FileSource.")
        self._source, self._columns = view.batch, tuple(columns)
        self._start_us, self._end_us = start_us, end_us
        self._in_file = {ours: theirs for theirs, ours in view.batch.field_mapping}
        names = [*self._moments(), *(column.name for column in columns)]
        text = [self._theirs(column.name) for column in columns if column.dtype is DType.STRING]
        try:
            path = batch_path(view.batch, repo)
            self._scan = open_scan(path, view.batch.file_format, [self._theirs(name) for name in names], text)
        except DataError as error:
            raise self._told(error) from None
        self._refuse_kinds()

    @property
    def rows(self) -> int:
        """How many rows the file has, of a CSV about."""
        return self._scan.rows

    def doubtful(self) -> list[Column]:
        """The columns whose values may make a row unusable or the file unreadable, as far as types and statistics
        tell."""
        return [column for column in self._columns if self._is_doubtful(column)]

    def parts(self, columns: Sequence[Column], numbers: Ints | None = None) -> Iterator[BatchPart]:
        """Some of the columns of all rows, and which of the rows count as far as these columns tell. The same rows in
        the same order each time; `numbers` (rising, from 0) asks for those rows of them alone.

        Raises DataError for a file that cannot be read or was changed since it was opened, and for wrong values.
        """
        names = list(dict.fromkeys([*self._moments(), *(column.name for column in columns)]))
        try:
            before = 0
            for table in self._scan.batches([self._theirs(name) for name in names], self._period()):
                start, before = before, before + table.num_rows
                if numbers is not None:
                    first, end = np.searchsorted(numbers, [start, before])
                    table = table.take(pa.array(numbers[first:end] - start))
                yield self._part(table.rename_columns(names), columns)
        except DataError as error:
            raise self._told(error) from None

    def _moments(self) -> list[str]:
        """The columns that say when."""
        created = self._source.created_timestamp
        return [self._source.timestamp, *([created] if created else [])]

    def _theirs(self, name: str) -> str:
        return self._in_file.get(name, name)

    def _told(self, error: DataError) -> DataError:
        text = str(error)
        about = f"batch source {self._source.name!r}"
        return error if about in text.lower() else DataError(f"Batch source {self._source.name!r}: {text}")

    def _part(self, table: pa.Table, columns: Sequence[Column]) -> BatchPart:
        source = self._source
        times = as_declared(table[source.timestamp], DType.TIMESTAMP, _where(source, source.timestamp))
        given = {c.name: as_declared(table[c.name], c.dtype, _where(source, c.name)) for c in columns}
        created, good = self._created(table)
        times_us = np.asarray(times.cast(pa.int64()).fill_null(0))
        good &= _usable(times)
        for column in columns:
            good &= _usable(given[column.name], _where(source, column.name))
        timed = np.asarray(times.is_valid())
        inside = np.ones(len(times_us), np.bool_)
        if self._start_us is not None:
            inside &= times_us >= self._start_us
        if self._end_us is not None:
            inside &= times_us <= self._end_us
        refused = int((~timed | (inside & ~good)).sum())
        return BatchPart(pa.table(given), times_us, created, good & timed & inside, refused)

    def _created(self, table: pa.Table) -> tuple[Ints | None, Flags]:
        """When each row was created, and whether that is usable."""
        name = self._source.created_timestamp
        if name is None:
            return None, np.ones(table.num_rows, np.bool_)
        created: Any = as_declared(table[name], DType.TIMESTAMP, _where(self._source, name))
        return np.asarray(created.cast(pa.int64()).fill_null(NEVER_US)), _usable(created)

    def _refuse_kinds(self) -> None:
        """Raises DataError where a whole column is of another kind than declared."""
        named = [*((name, DType.TIMESTAMP) for name in self._moments()), *((c.name, c.dtype) for c in self._columns)]
        for name, dtype in named:
            kind = self._scan.schema.field(self._theirs(name)).type
            as_declared(pa.nulls(0, kind), dtype, _where(self._source, name))

    def _is_doubtful(self, column: Column) -> bool:
        name = self._theirs(column.name)
        kind = self._scan.schema.field(name).type
        if isinstance(self._scan, CsvScan) or kind != arrow_type(column.dtype):
            return True
        if pat.is_floating(kind):
            return not self._scan.is_finite(name)
        return bool(pat.is_timestamp(kind))

    def _period(self) -> Any:
        """What every row with an event time in [start, end] and those without one fulfil, so that others need not be
        read; None where the file's type does not allow to say it."""
        moment = pc.field(self._theirs(self._source.timestamp))
        kind = self._scan.schema.field(self._theirs(self._source.timestamp)).type
        if isinstance(self._scan, CsvScan) or not pat.is_timestamp(kind):
            return None
        told = None
        for bound_us, is_first in ((self._start_us, True), (self._end_us, False)):
            if bound_us is None:
                continue
            slack = 1_000 if kind.unit == "ns" else 1  # digits beyond microseconds are cut
            bound = bound_us * _UNITS_PER_S[kind.unit] // 1_000_000 + (-slack if is_first else slack)
            if abs(bound) < 1 << 63:
                edge = pa.scalar(bound, pa.int64()).cast(kind)
                term = moment >= edge if is_first else moment <= edge
                told = term if told is None else told & term
        return None if told is None else told | moment.is_null()


def read_batch_rows(
    view: FeatureView,
    columns: Sequence[Column],
    repo: Path,
    start_us: int | None = None,
    end_us: int | None = None,
) -> BatchRows:
    """All that a BatchScan of the same arguments reads, in the order in which later rows win. Raises as it does."""
    tables, times, created, refused = [], [], [], 0
    for part in BatchScan(view, columns, repo, start_us, end_us).parts(columns):
        tables.append(part.table.filter(pa.array(part.good)))
        times.append(part.event_time_us[part.good])
        created.append(np.zeros(len(times[-1]), np.int64) if part.created_us is None else part.created_us[part.good])
        refused += part.refused
    if not tables:
        schema = pa.schema([pa.field(column.name, arrow_type(column.dtype)) for column in columns])
        return BatchRows(schema.empty_table(), np.empty(0, np.int64), 0)
    times_us = np.concatenate(times)
    rows = np.lexsort((np.concatenate(created), times_us))
    return BatchRows(pa.concat_tables(tables).take(pa.array(rows)), times_us[rows], refused)


def batch_path(source: BatchSource, repo: Path) -> Path:
    """Where the file of `source` lies. Raises DataError for one that is elsewhere than on this machine's disks."""
    text = source.path.removeprefix("file://")
    if "://" in text:
        raise DataError(f"Batch source {source.name!r} must be a local file, got {source.path!r}; copy it here.")
    return repo / text


def _usable(values: Any, where: str = "") -> Flags:
    """Where a column of a declared type holds null, a finite number, a time of the years 1 to 9999, or another kind.

    Raises DataError, naming `where`, for a string that is not UTF-8."""
    if pat.is_floating(values.type):
        finite: Flags = ~np.isinf(np.asarray(values.fill_null(0)))
        return finite
    if pat.is_timestamp(values.type):
        times_us: Ints = np.asarray(values.cast(pa.int64()).fill_null(0), np.int64)
        inside: Flags = (times_us >= EARLIEST_US) & (times_us <= LATEST_US)
        return inside
    if pat.is_string(values.type):
        try:
            values.validate(full=True)
        except pa.ArrowInvalid as error:
            raise DataError(f"{where} must be UTF-8: {error}; correct the value.") from None
    return np.ones(len(values), np.bool_)


def _where(source: BatchSource, column: str) -> str:
    return f"Column {column!r} of batch source {source.name!r}"
