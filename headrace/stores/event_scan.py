"""The archived events of a source, read batch by batch in memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Source
from headrace.stores.archive_rows import INDEX, OFFSET, PARTITION, archive_schema
from headrace.stores.offline_reads import event_files, open_table
from headrace.stores.parquet_scan import FileScan, plan_scan

__all__ = ["PLACE", "EventScan", "OnRead", "plan_events"]

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

OnRead = Callable[[int], None]
"""Called with how many rows were read since the last call, before anything is left out."""

PLACE = (PARTITION, OFFSET, INDEX)
_TRIES = 5


@dataclass(frozen=True, slots=True)
class EventScan:
    """What to read of a source: its files as they were when the scan was planned."""

    schema: pa.Schema
    files: tuple[FileScan, ...]
    up_to: Mapping[int, int] | None
    since_us: int | None
    until_us: int | None
    repeats: bool

    @property
    def rows(self) -> int:
        """How many rows will be read."""
        return sum(file.rows for file in self.files)

    def tables(self, on_read: OnRead) -> Iterator[pa.Table]:
        """The events in no order, some at a time: the columns asked for, then the position as PLACE has it.

        Raises DataError for a file that cannot be read, FileNotFoundError where one was swept away: plan anew.
        """
        for file in self.files:
            for batch in file.batches():
                kept = self._kept(batch)
                on_read(batch.num_rows)
                if kept.any():
                    table = self._typed(batch)
                    yield table if kept.all() else table.filter(pa.array(kept))

    def _typed(self, batch: pa.RecordBatch) -> pa.Table:
        names, n = batch.schema.names, batch.num_rows
        columns = [
            batch.column(field.name).cast(field.type) if field.name in names else pa.nulls(n, field.type)
            for field in self.schema
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def _kept(self, batch: pa.RecordBatch) -> Flags:
        kept = np.ones(batch.num_rows, np.bool_)
        if not self.repeats:
            kept &= ~np.asarray(batch.column("is_repeat")).astype(np.bool_)
        if self.since_us is not None or self.until_us is not None:
            times = _numbers(batch, "event_time")
            kept &= times >= (times if self.since_us is None else self.since_us)
            kept &= times <= (times if self.until_us is None else self.until_us)
        if self.up_to is not None:
            partitions, offsets = _numbers(batch, PARTITION), _numbers(batch, OFFSET)
            inside = np.zeros(batch.num_rows, np.bool_)
            for partition, offset in self.up_to.items():
                inside |= (partitions == partition) & (offsets <= offset)
            kept &= inside
        return kept


def _numbers(batch: pa.RecordBatch, name: str) -> Ints:
    numbers: Ints = np.asarray(batch.column(name).cast(pa.int64()))
    return numbers


def plan_events(
    path: Path,
    source: Source,
    columns: Sequence[str],
    *,
    places: bool = True,
    up_to: Mapping[int, int] | None = None,
    since_us: int | None = None,
    until_us: int | None = None,
    repeats: bool = False,
) -> EventScan:
    """The scan of the table at `path`: `columns` (the source's own, `event_time`, `arrival_time`, `is_repeat`), and the
    position if `places`.

    `up_to` keeps, by partition, events at or below an offset (a partition it does not name has none); `since_us` and
    `until_us` bound the event time, both included; repeats come only when asked for. Raises DataError for a file that
    cannot be read.
    """
    schema = archive_schema(source)
    wanted = [schema.field(name) for name in dict.fromkeys(columns)]
    if places:
        types = {PARTITION: pa.int32(), OFFSET: pa.int64(), INDEX: pa.int32()}
        wanted += [pa.field(name, kind) for name, kind in types.items()]
    judged = [] if up_to is None else [PARTITION, OFFSET]
    read = list(dict.fromkeys([*(item.name for item in wanted), "event_time", "is_repeat", *judged]))
    missing = FileNotFoundError()
    for _ in range(_TRIES):
        names = event_files(open_table(path), since_us, until_us)
        try:
            planned = [plan_scan(name, read, time="event_time", since_us=since_us, until_us=until_us) for name in names]
        except FileNotFoundError as error:
            missing = error
            continue
        files = tuple(file for file in planned if file.groups)
        return EventScan(pa.schema(wanted), files, up_to, since_us, until_us, repeats)
    raise missing
