"""Parquet files read batch by batch: only the columns and row groups that are needed, never a whole file in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.errors import DataError

__all__ = ["BATCH_ROWS", "FileScan", "plan_scan"]

BATCH_ROWS = 131_072
READ_BYTES = 1 << 18

_EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class FileScan:
    """What to read of one file: `columns` (a nested one as `outer.inner`) of its row groups `groups`, which have `rows`
    rows."""

    path: str
    columns: tuple[str, ...]
    groups: tuple[int, ...]
    rows: int

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in their order, at most BATCH_ROWS at a time. Columns that the file has not are left out.

        Raises DataError for a file that cannot be read, FileNotFoundError for one that has been deleted.
        """
        try:
            with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=READ_BYTES) as file:
                for batch in file.iter_batches(BATCH_ROWS, row_groups=list(self.groups), columns=list(self.columns)):
                    yield self._flat(batch)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self.path, error) from None

    def _flat(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        columns: dict[str, Any] = {}
        for name in self.columns:
            outer, _, inner = name.partition(".")
            if name in batch.schema.names:
                columns[name] = batch.column(name)
            elif outer in batch.schema.names:
                columns[name] = pc.struct_field(batch.column(outer), inner)
        return pa.RecordBatch.from_pydict(columns)


def plan_scan(
    path: str,
    columns: Sequence[str],
    *,
    time: str | None = None,
    since_us: int | None = None,
    until_us: int | None = None,
) -> FileScan:
    """The scan of one file, row groups whose `time` (a timestamp column) lies outside [since, until] left out.

    Raises DataError for a file that cannot be read, FileNotFoundError for one that is not there.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            metadata = file.metadata
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None
    groups, rows = [], 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        by_name = {chunk.path_in_schema: chunk for chunk in map(group.column, range(group.num_columns))}
        if group.num_rows and _meets(by_name.get(time or ""), since_us, until_us):
            groups.append(number)
            rows += group.num_rows
    return FileScan(path, tuple(columns), tuple(groups), rows)


def _meets(chunk: Any, since_us: int | None, until_us: int | None) -> bool:
    """Whether a column chunk may hold a time in the interval, as far as its statistics say."""
    found = chunk.statistics if chunk is not None and chunk.is_stats_set else None
    if found is None or not found.has_min_max:
        return True
    try:
        first, last = found.min, found.max
    except (OverflowError, ValueError):  # outside the years 1 to 9999
        return True
    if not isinstance(first, datetime):
        return True
    return (until_us is None or _us(first) <= until_us) and (since_us is None or _us(last) + 1 > since_us)


def _us(moment: datetime) -> int:
    naive = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    return (naive - _EPOCH) // timedelta(microseconds=1)


def _unreadable(path: str, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as parquet: {error}; restore the file.")
