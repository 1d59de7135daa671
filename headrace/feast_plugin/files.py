"""Feast's file sources, read with whatever types they have: the newest rows, and those that label rows see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FileSource
from feast.data_format import DeltaFormat
from feast.errors import FeastJoinKeysDuringMaterialization
from numpy.typing import NDArray

from headrace.catalog.compile_sources import file_path
from headrace.dtypes import DType
from headrace.errors import DataError
from headrace.read.joins.key_codes import KeyCodes
from headrace.stores.tables import as_declared, read_file
from headrace.windows.latest import LatestJoin
from headrace.windows.point_in_time import Events

__all__ = ["FileRows", "latest_per_key", "local_path", "read_rows", "values_at"]

Ints = NDArray[np.int64]

_NEVER = np.iinfo(np.int64).min
_NUMBER = pa.schema([("row", pa.int64())])


@dataclass(frozen=True, slots=True)
class FileRows:
    """Rows of a file in the order in which later ones win: event time, created time, place in the file."""

    table: pa.Table
    times_us: Ints
    created_us: Ints

    def take(self, rows: Ints) -> FileRows:
        return FileRows(self.table.take(pa.array(rows)), self.times_us[rows], self.created_us[rows])


def local_path(source: Any, repo: Path) -> Path:
    """Where the file of a source lies. Raises DataError for a source that is no local file."""
    if not isinstance(source, FileSource) or "://" in source.path.removeprefix("file://"):
        what = source.path if isinstance(source, FileSource) else type(source).__name__
        raise DataError(f"Headrace's offline store reads FileSources of local files, got {what!r}; copy the rows here.")
    return repo / file_path(source, repo).as_posix().removeprefix("file:")


def read_rows(
    source: Any,
    repo: Path,
    columns: Sequence[str],
    timestamp: str,
    created: str | None,
    start_us: int | None = None,
    end_us: int | None = None,
) -> FileRows:
    """`columns` (named as in the file; none given: all) of the rows with an event time in [start, end]; those without
    one are left out.

    Raises DataError for a file that is missing, unreadable or lacks a column.
    """
    path = local_path(source, repo)
    kind = "delta" if isinstance(source.file_format, DeltaFormat) else "parquet"
    names = list(dict.fromkeys([*columns, timestamp, *([created] if created else [])])) if columns else None
    table = read_file(path, kind, names).unify_dictionaries()
    times = _times(table, timestamp, path)
    created_times = _times(table, created, path) if created else np.full(table.num_rows, _NEVER)
    inside = times != _NEVER
    if start_us is not None:
        inside &= times >= start_us
    if end_us is not None:
        inside &= times <= end_us
    rows = np.flatnonzero(inside)
    return FileRows(table, times, created_times).take(rows[np.lexsort((rows, created_times[rows], times[rows]))])


def _times(table: pa.Table, name: str, path: Path) -> Ints:
    """Microseconds, _NEVER for null."""
    times = as_declared(table[name], DType.TIMESTAMP, f"Column {name!r} of {path}")
    micros: Ints = np.asarray(times.cast(pa.int64()).fill_null(_NEVER))
    return micros


def latest_per_key(rows: FileRows, join_keys: Sequence[str], source: FileSource) -> FileRows:
    """The winning row of every key that has no null; of all rows if there are no join keys.

    Raises Feast's FeastJoinKeysDuringMaterialization for join keys that the file lacks.
    """
    missing = set(join_keys) - set(rows.table.column_names)
    if missing:
        raise FeastJoinKeysDuringMaterialization(source.path, set(join_keys), set(rows.table.column_names))
    codes = KeyCodes([_one(rows.table[name]) for name in join_keys], rows.table.num_rows).labels
    last = np.full(int(codes.max(initial=-1)) + 1, -1, np.int64)
    given = np.flatnonzero(codes >= 0)
    np.maximum.at(last, codes[given], given)
    return rows.take(np.sort(last[last >= 0]))


def values_at(
    rows: FileRows,
    join_keys: Sequence[str],
    label_keys: Sequence[pa.Array],
    times_us: Ints,
    ttl_us: int,
    *,
    as_created: bool = False,
) -> pa.Array:
    """For every label the number of the newest row of its key at or before its time and not past `ttl_us` (0: none),
    null where there is none. `as_created` leaves out rows that were created after the label's time.

    `label_keys` are the labels' values of `join_keys`, in the same order.
    """
    columns = [_one(rows.table[name]) for name in join_keys]
    codes = KeyCodes([_like(key, column.type) for key, column in zip(label_keys, columns, strict=True)], len(times_us))
    row_codes = codes.of(columns, rows.table.num_rows)
    seen = np.flatnonzero(row_codes >= 0)
    join = LatestJoin(codes.labels, times_us, _NUMBER, ttl_us, width=1)
    events = Events(row_codes[seen], rows.times_us[seen], {"row": pa.array(seen)}, (seen,))
    if as_created:
        join.add_known(events, np.maximum(rows.created_us[seen], _NEVER + 1) - 1)
    else:
        join.add(events)
    return join.columns()["row"]


def _like(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Label keys in the type that the file has them in. Raises DataError if it cannot hold them."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    try:
        return values.cast(kind.value_type if pa.types.is_dictionary(kind) else kind)
    except pa.ArrowException as error:
        raise DataError(f"Join keys must have the file's type {kind}, got {values.type}: {error}.") from None


def _one(column: pa.ChunkedArray) -> Any:
    array = column.combine_chunks()
    return array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array
