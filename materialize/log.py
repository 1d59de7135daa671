"""One partition's log as a whole: the archive as far as it reaches, then the stream.

Workers and rebuilds replay it; both parts give the same events with the same repeats marked, so it does not matter
where one ends and the other begins.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Source
from headrace.compute.events import Deduplicator, EventBatch, parse_entries
from headrace.stores.markers import Applied
from headrace.stores.offline import INDEX, OFFSET, OfflineStore
from headrace.stores.stream import Entry, EventStream, arrival_us

__all__ = ["SourceLog"]

_CHUNK_EVENTS = 100_000
_CHUNK_ENTRIES = 100


class SourceLog:
    """The log of one partition of one source."""

    def __init__(self, stream: EventStream, offline: OfflineStore, source: Source, partition: int, clock: str) -> None:
        self.source = source
        self.partition = partition
        self._stream = stream
        self._offline = offline
        self._clock = clock
        self.archived = max(offline.archived_offset(source.name, partition), 0)

    def end(self) -> Applied:
        """The end of the archived part, as a place to start from when nobody remembers a later one."""
        if not self.archived:
            return Applied()
        watermark_us = self._offline.watermark_us(self.source, self.partition)
        for entry in self._stream.between(self.source.name, self.partition, self.archived, self.archived):
            return Applied(self.archived, entry.count - 1, entry.total, watermark_us)
        return Applied(self.archived, 0, 0, watermark_us)

    def first_event_us(self) -> int | None:
        """Event time of the log's first event, None when it has none yet."""
        for batch in self.replay(Applied(), None):
            if len(batch):
                return int(batch.event_time_us[0])
        return None

    def replay(self, after: Applied, upto: Applied | None) -> Iterator[EventBatch]:
        """The events in (after, upto] in position order, repeats marked; None is the end of the log."""
        last = np.iinfo(np.int64).max if upto is None else upto.offset
        reached = after
        if after.offset < self.archived:
            for batch in self._archived(after.offset, min(last, self.archived)):
                reached = batch.end
                yield batch
        if last > max(self.archived, after.offset):
            yield from self._streamed(reached, last)

    def memory(self, at: Applied) -> Deduplicator:
        """What a consumer that has read up to `at` must remember of ids."""
        marker = Deduplicator(self.source)
        if self.source.event_id is None or not at.offset:
            return marker
        now_us = arrival_us(at.offset) if self._clock == "wall" else at.watermark_us
        since_us = (now_us or 0) - self.source.dedup_horizon_us
        archived_to = min(at.offset, self.archived)
        columns = [self.source.event_id, "arrival_time"]
        rows = self._offline.read_events(
            self.source, columns, up_to={self.partition: archived_to}, arrived_since_us=since_us, repeats=True
        )
        arrivals = np.asarray(rows["arrival_time"].cast(pa.int64()))
        marker.remember(rows[self.source.event_id].to_pylist(), arrivals.tolist())
        watermark_us = self._watermark_at(archived_to)
        for entries in self._entries(archived_to, at.offset):
            batch = parse_entries(self.source, self.partition, entries, self._clock, watermark_us)
            watermark_us = batch.watermark_us
            marker.mark(batch)
        return marker

    def _watermark_at(self, offset: int) -> int | None:
        rows = self._offline.read_events(self.source, ["event_time"], up_to={self.partition: offset}, repeats=True)
        times = np.asarray(rows["event_time"].cast(pa.int64()))
        return int(times.max()) if len(times) else None

    def _entries(self, after: int, last: int) -> Iterator[list[Entry]]:
        while after < last:
            found = self._stream.between(self.source.name, self.partition, after + 1, last, _CHUNK_ENTRIES)
            if not found:
                return
            yield found
            after = found[-1].offset

    def _streamed(self, reached: Applied, last: int) -> Iterator[EventBatch]:
        marker, watermark_us = self.memory(reached), reached.watermark_us
        for entries in self._entries(reached.offset, last):
            batch = parse_entries(self.source, self.partition, entries, self._clock, watermark_us)
            marker.mark(batch)
            watermark_us = batch.watermark_us
            yield batch

    def _archived(self, after: int, last: int) -> Iterator[EventBatch]:
        columns = list(
            dict.fromkeys([*(c.name for c in self.source.columns), "event_time", "arrival_time", "is_repeat"])
        )
        rows = self._offline.read_events(self.source, columns, up_to={self.partition: last}, repeats=True)
        times = np.asarray(rows["event_time"].cast(pa.int64()))
        watermarks = np.maximum.accumulate(times) if len(times) else times
        offsets = np.asarray(rows[OFFSET])
        first = int(np.searchsorted(offsets, after, side="right"))
        for start in range(first, rows.num_rows, _CHUNK_EVENTS):
            stop = min(start + _CHUNK_EVENTS, rows.num_rows)
            end = Applied(int(offsets[stop - 1]), int(rows[INDEX][stop - 1].as_py()), 0, int(watermarks[stop - 1]))
            before_us = int(watermarks[start - 1]) if start else None
            yield self._batch(rows.slice(start, stop - start), times[start:stop], end, before_us)
        if last == self.archived:
            yield self._batch(rows.slice(0, 0), times[:0], self.end())

    def _batch(
        self, rows: pa.Table, times: NDArray[np.int64], end: Applied, before_us: int | None = None
    ) -> EventBatch:
        table = rows.select([column.name for column in self.source.columns])
        arrivals = np.asarray(rows["arrival_time"].cast(pa.int64()))
        offset, index = np.asarray(rows[OFFSET]), np.asarray(rows[INDEX]).astype(np.int64)
        is_repeat = np.asarray(rows["is_repeat"].combine_chunks()).astype(np.bool_)
        place = (self.source, self.partition, table, times, arrivals, offset, index)
        return EventBatch(*place, [], end, is_repeat, before_us)
