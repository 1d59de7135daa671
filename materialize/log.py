"""One partition's log as a whole: the archive as far as it reaches, then the stream.

Workers and rebuilds replay it; both parts give the same events with the same repeats marked, so it does not matter
where one ends and the other begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Source
from headrace.compute.events import Deduplicator, EventBatch, parse_entries
from headrace.errors import StreamGapError
from headrace.stores.gaps import REMEDY, Gap, continue_at, find_gap, goes_on
from headrace.stores.import_log import ImportLog
from headrace.stores.logs import LogReader
from headrace.stores.markers import IMPORTS, Applied, Markers
from headrace.stores.offline import INDEX, OFFSET, OfflineStore
from headrace.stores.offline_reads import read_events
from headrace.stores.stream import Entry, arrival_us, offset_at
from headrace.stores.tombstones import Tombstones, load_tombstones, raised_to_floors
from materialize.imported import replay_imports

__all__ = ["SourceLog"]

_CHUNK_EVENTS = 100_000
_CHUNK_ENTRIES = 100
_CHUNK_MESSAGES = 10_000  # of a topic, where an entry is mostly one event


class SourceLog:
    """The log of one partition of one source."""

    def __init__(self, stream: LogReader, offline: OfflineStore, source: Source, partition: int, clock: str) -> None:
        self.source = source
        self.partition = partition
        self._stream = stream
        self._markers = Markers(stream.store, stream.project)
        self._offline = offline
        self._clock = clock
        self.archived = max(offline.archived_offset(source.name, partition), 0)

    def end(self) -> Applied:
        """The end of the archived part, as a place to start from when nobody remembers a later one.

        Its total is the stream's own if it still has the entry, else the archiver's marker's, else what the archive
        remembers, else 0: unknown, for the store has lost both and counts anew.
        """
        if not self.archived:
            return Applied()
        if self.partition == IMPORTS:
            return ImportLog(self._offline, self.source.name).end()
        watermark_us, arrived_us = self._newest_at(self.archived)
        return replace(self.place(), watermark_us=watermark_us, arrived_us=arrived_us)

    def place(self) -> Applied:
        """`end` without its watermark."""
        place = (self.source.name, self.partition)
        entry = self._stream.last_upto(*place, self.archived)
        marker = self._markers.applied("archived", [place])[place]
        told = marker.index if marker is not None and marker.offset == self.archived else None
        if self.source.kafka is not None:  # a topic does not say how many events a message holds
            return Applied(self.archived, self._last_index() if told is None else told, self.archived)
        if entry is not None and entry.offset == self.archived:
            return Applied(self.archived, entry.count - 1, entry.total)
        if marker is not None and told is not None:
            return Applied(self.archived, told, marker.total)
        return Applied(self.archived, 0, self._remembered_total(has_marker=marker is not None))

    def streamed_end(self, end: Applied) -> Applied | None:
        """The stream's newest entry as a place, where the archive, which ends at `end`, has it, and so has all of a
        stream that lost its end; else None. Were it not told, a stream whose budget is used up would be full for ever:
        nothing comes that could be archived, and nothing is trimmed."""
        newest = self._stream.head(self.source.name, self.partition) if self.source.kafka is None else None
        if newest is None or newest.offset > end.offset:
            return None
        return replace(end, offset=newest.offset, index=newest.count - 1, total=newest.total)

    def _last_index(self) -> int:
        """The index of the last event of the archive's last entry, 0 where it had none."""
        path, only = self._offline.events_path(self.source.name), {self.partition: self.archived}
        rows = read_events(path, self.source, [], up_to=only, repeats=True, after={self.partition: self.archived - 1})
        return max(rows[INDEX].to_pylist(), default=0)

    def _remembered_total(self, has_marker: bool) -> int:
        """The count that the archive's end was committed with, where it can still be the stream's: one that has lost
        its end counts less before what comes next. One that began anew has no marker, and counts whatever it has; of
        a shard that lost its marker alone, the stream goes on with just this count."""
        total = self._offline.archived_total(self.source.name, self.partition, self.archived)
        following = self._stream.first_after(self.source.name, self.partition, self.archived) if total else None
        if following is None or following.before < total:
            return 0
        return total if has_marker or following.before == total else 0

    def refuse_gap(self, held: Applied | None, builds: bool) -> None:
        """Raises StreamGapError unless a consumer that holds everything up to `held` finds all that comes after it, in
        the archive and then in the stream; and, if it `builds`, all that came before."""
        if self.partition == IMPORTS:
            return
        self._refuse_other(held or Applied())
        at = held or Applied()
        if builds or self.archived > at.offset:
            self.continue_at(self.place() if self.archived else Applied())
        gap = find_gap(self._stream, self._markers, self.source.name, self.partition, at)
        if gap is not None and (self.archived <= at.offset or gap.is_shrunk):
            self.continue_at(at)

    def continue_at(self, at: Applied) -> Applied:
        """Where one that holds everything up to `at` goes on in the stream: there, or behind a gap that was accepted.

        Raises StreamGapError when the stream no longer has what comes next.
        """
        if self.partition == IMPORTS:
            return at
        self._refuse_other(at)
        return continue_at(self._stream, self._markers, self.source.name, self.partition, at)

    def _refuse_other(self, at: Applied) -> None:
        if self.source.kafka is not None and self.is_same is False:
            head = self._stream.head(self.source.name, self.partition)
            gap = Gap(self.source.name, self.partition, at, None, head, is_other=True)
            raise StreamGapError(f"{gap}; {REMEDY}.", gap)

    @cached_property
    def is_same(self) -> bool | None:
        """Whether a topic holds at the last archived position that it reaches what was archived of it; None where that
        cannot be known. Raises UnavailableError when the broker does not answer."""
        offsets = self.archived_offsets
        return self.agrees_at(int(offsets[-1])) if len(offsets) else None

    @cached_property
    def archived_offsets(self) -> NDArray[np.int64]:
        """The archived offsets that the topic reaches, in order."""
        head = self._stream.head(self.source.name, self.partition)
        upto = {self.partition: min(self.archived, head.offset if head is not None else 0)}
        return np.unique(np.asarray(self._offline.read_events(self.source, [], up_to=upto, repeats=True)[OFFSET]))

    def agrees_at(self, offset: int) -> bool | None:
        """Whether the log holds at an offset the very events that are archived there; None where it holds none."""
        source, names = self.source, [column.name for column in self.source.columns]
        found = self._stream.between(source.name, self.partition, offset, offset, 1)
        entries = [entry for entry in found if entry.offset == offset]
        if not entries:
            return None
        batch = parse_entries(source, self.partition, entries, self._clock, None)
        told = dict(zip(batch.index.tolist(), batch.table.select(names).to_pylist(), strict=True))
        path, upto, before = (
            self._offline.events_path(source.name),
            {self.partition: offset},
            {self.partition: offset - 1},
        )
        rows = read_events(path, source, names, up_to=upto, repeats=True, after=before)
        archived = zip(rows[INDEX].to_pylist(), rows.select(names).to_pylist(), strict=True)
        return all(told.get(index) == row for index, row in archived)

    def first_event_us(self) -> int | None:
        """Event time of the log's first event (of imports: of the earliest), None when it has none yet."""
        if self.partition == IMPORTS:
            return ImportLog(self._offline, self.source.name).first_event_us()
        for batch in self.replay(Applied(), None):
            if len(batch):
                return int(batch.event_time_us[0])
        return None

    def replay(self, after: Applied, upto: Applied | None) -> Iterator[EventBatch]:
        """The events in (after, upto] in position order, repeats marked; None is the end of the log.

        Raises StreamGapError when a part of them is nowhere.
        """
        if self.partition == IMPORTS:
            yield from replay_imports(self._offline, self.source, after, upto or self.end())
            return
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
        if self.source.event_id is None or not at.offset or self.partition == IMPORTS:
            return marker
        since_us = (self._present_us(at) or 0) - self.source.dedup_horizon_us
        archived_to = min(at.offset, self.archived)
        columns = [self.source.event_id, "arrival_time"]
        rows = self._offline.read_events(
            self.source, columns, up_to={self.partition: archived_to}, arrived_since_us=since_us, repeats=True
        )
        arrivals = np.asarray(rows["arrival_time"].cast(pa.int64()))
        marker.remember(*self._streamed_ids(since_us, archived_to))
        marker.remember(rows[self.source.event_id].to_pylist(), arrivals.tolist())
        newest = self._newest_at(archived_to)
        for entries in self._entries(archived_to, at.offset):
            batch = parse_entries(self.source, self.partition, entries, self._clock, *newest)
            newest = batch.end.watermark_us, batch.end.arrived_us
            marker.mark(batch)
        return marker

    def _streamed_ids(self, since_us: int, archived_to: int) -> tuple[list[Any], list[int]]:
        """Ids and arrivals of events that may be forgotten since: their rows are gone, but a retry is still one."""
        upto = min(self._tombstones.latest(self.source.name, self.partition), archived_to)
        first = offset_at(since_us) if self._clock == "wall" else 1
        if self.source.kafka is not None or upto < first:
            return [], []
        ids: list[Any] = []
        arrivals: list[int] = []
        for entries in self._entries(first - 1, upto):
            batch = parse_entries(self.source, self.partition, entries, self._clock, None)
            ids += batch.table[self.source.event_id or ""].to_pylist()
            arrivals += batch.arrival_us.tolist()
        return ids, arrivals

    @cached_property
    def _tombstones(self) -> Tombstones:
        return load_tombstones(self._stream.store, self._offline.root, self._stream.project)

    @property
    def _floors(self) -> list[tuple[int, int]]:
        return self._tombstones.floors(self.source.name, self.partition)

    def _present_us(self, at: Applied) -> int | None:
        """The present of one that has read up to `at`, None where nobody knows it."""
        if self._clock == "event":
            return at.watermark_us
        return arrival_us(at.offset) if self.source.kafka is None else at.arrived_us

    def _newest_at(self, offset: int) -> tuple[int | None, int | None]:
        """The largest event time and the newest arrival of the archived events up to `offset`."""
        columns = ["event_time", "arrival_time"]
        rows = self._offline.read_events(self.source, columns, up_to={self.partition: offset}, repeats=True)
        floors = [watermark_us for upto, watermark_us in self._floors if upto <= offset]
        if not rows.num_rows:
            return max(floors, default=None), None
        watermark_us, arrived_us = (int(np.asarray(rows[name].cast(pa.int64())).max()) for name in columns)
        watermark_us = max([watermark_us, *floors])
        return watermark_us, arrived_us if self._clock == "wall" and self.source.kafka is not None else None

    def _entries(self, after: int, last: int) -> Iterator[list[Entry]]:
        while after < last:
            count = _CHUNK_ENTRIES if self.source.kafka is None else _CHUNK_MESSAGES
            found = self._stream.between(self.source.name, self.partition, after + 1, last, count)
            if not found:
                return
            yield found
            after = found[-1].offset

    def _streamed(self, reached: Applied, last: int) -> Iterator[EventBatch]:
        marker = self.memory(reached)
        for entries in self._entries(reached.offset, last):
            if self._has_gap(reached, entries[0]):
                yield from self._beyond_gap(reached, last)
                return
            newest = reached.watermark_us, reached.arrived_us
            batch = parse_entries(self.source, self.partition, entries, self._clock, *newest)
            marker.mark(batch)
            reached = batch.end
            yield batch
        if reached.offset < last and self._was_trimmed(reached):
            yield from self._beyond_gap(reached, last)

    def _has_gap(self, reached: Applied, following: Entry) -> bool:
        """Whether events between `reached` and the next entry found are missing."""
        place = (self.source.name, self.partition)
        return not goes_on(self._stream, self._markers, *place, reached, following) or (
            not reached.total and self._was_trimmed(reached)
        )

    def _was_trimmed(self, reached: Applied) -> bool:
        """Whether entries after `reached` have left the stream."""
        place = (self.source.name, self.partition)
        trimmed = self._markers.applied("trimmed", [place])[place]
        return trimmed is not None and trimmed.offset > reached.offset

    def _beyond_gap(self, reached: Applied, last: int) -> Iterator[EventBatch]:
        """The rest, of which the archive has got more meanwhile: nothing is trimmed that it does not hold."""
        self.archived = max(self._offline.archived_offset(self.source.name, self.partition), self.archived)
        go_on = reached if self.archived > reached.offset else self.continue_at(reached)
        if go_on.offset < last and (go_on != reached or self.archived > reached.offset):
            yield from self.replay(go_on, Applied(last))

    def _archived(self, after: int, last: int) -> Iterator[EventBatch]:
        columns = list(
            dict.fromkeys([*(c.name for c in self.source.columns), "event_time", "arrival_time", "is_repeat"])
        )
        rows = self._offline.read_events(self.source, columns, up_to={self.partition: last}, repeats=True)
        times = np.asarray(rows["event_time"].cast(pa.int64()))
        watermarks = np.maximum.accumulate(times) if len(times) else times
        offsets = np.asarray(rows[OFFSET])
        watermarks = raised_to_floors(watermarks, offsets, self._floors)
        first = int(np.searchsorted(offsets, after, side="right"))
        for start in range(first, rows.num_rows, _CHUNK_EVENTS):
            stop = min(start + _CHUNK_EVENTS, rows.num_rows)
            end = Applied(int(offsets[stop - 1]), int(rows[INDEX][stop - 1].as_py()), 0, int(watermarks[stop - 1]))
            before_us = int(watermarks[start - 1]) if start else None
            batch = self._batch(rows.slice(start, stop - start), times[start:stop], end, before_us)
            if self._floors:
                batch.found_us = raised_to_floors(batch.watermarks_us, batch.offset, self._floors)
            yield batch
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
