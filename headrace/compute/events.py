"""From stream entries to typed columns: parse, check and mark repeats, the same for worker, archiver and rebuild.

What an event becomes is a function of the log alone: its entry, its place and what stood before it. An event that
cannot be typed becomes a dead letter with its reason; the events around it go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Source
from headrace.compute.expectations import NO_WATERMARK, Counts, refuse_late, refuse_unexpected, watermarks_before
from headrace.compute.fast_parse import typed_rows
from headrace.moments import EARLIEST_US, LATEST_US
from headrace.stores.markers import IMPORTS, Applied
from headrace.stores.stream import Entry, arrival_us

__all__ = ["DeadLetter", "Deduplicator", "EventBatch", "event_times", "parse_entries"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that no view will see, kept with its reason."""

    partition: int
    offset: int
    index: int
    reason: str
    payload: bytes
    arrival_us: int


@dataclass(slots=True)
class EventBatch:
    """The good events of some entries of one partition in position order, n rows, and the dead letters.

    `table` has the source's columns; the arrays are int64 microseconds or positions; `end` is the place of the
    last event of the entries, good or dead. `before_us` is the watermark before the entries, `unexpected` counts the
    rows that failed the source's expectations. `found_us` is what each event found of the watermark, where events
    before it were taken out.
    """

    source: Source
    partition: int
    table: pa.Table
    event_time_us: Ints
    arrival_us: Ints
    offset: Ints
    index: Ints
    dead: list[DeadLetter]
    end: Applied
    is_repeat: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    before_us: int | None = None
    unexpected: Counts = field(default_factory=dict)
    found_us: Ints | None = None

    def __len__(self) -> int:
        return len(self.event_time_us)

    @property
    def watermark_us(self) -> int | None:
        return self.end.watermark_us

    @property
    def watermarks_us(self) -> Ints:
        """The watermark that each event found (see `watermarks_before`); imported ones are never late."""
        if self.partition == IMPORTS:
            return np.full(len(self), NO_WATERMARK)
        if self.found_us is not None:
            return self.found_us
        return watermarks_before(self.event_time_us, self.before_us)

    def only(self, kept: NDArray[np.bool_]) -> EventBatch:
        """The batch with these of its events; its place, its dead letters and what each event found stay."""
        return replace(
            self,
            table=self.table.filter(pa.array(kept)),
            event_time_us=self.event_time_us[kept],
            arrival_us=self.arrival_us[kept],
            offset=self.offset[kept],
            index=self.index[kept],
            is_repeat=self.is_repeat[kept],
            found_us=self.watermarks_us[kept],
        )


def parse_entries(
    source: Source,
    partition: int,
    entries: Sequence[Entry],
    clock: str,
    watermark_us: int | None,
    arrived_us: int | None = None,
) -> EventBatch:
    """The events of `entries` (at least one, in order), typed by the source's schema.

    `watermark_us` is the partition's before these entries, and so is `arrived_us`, the newest arrival, where offsets do
    not say it: stamps that go back (of Kafka's producers) make no event arrive before the one that it follows. Under
    the event clock an event arrives at the running maximum of event time. `is_repeat` is all false until a Deduplicator
    marks the batch.
    """
    rows = typed_rows(source, entries)
    arrays, bad, offset, index = rows.columns, dict(rows.refused), rows.offset, rows.index
    times = event_times(source, arrays, bad)
    unexpected = refuse_unexpected(source.expectations, arrays, bad)
    stamps = _stamps(entries, offset)
    arrivals = stamps if clock == "wall" else _event_clock(times, bad, watermark_us)
    if clock == "wall":
        _refuse_future(source, times, stamps, bad)
    unexpected |= refuse_late(source.expectations, times, watermark_us, bad)
    good = np.ones(len(times), np.bool_)
    good[list(bad)] = False
    arrived_us = _raise_stamps(stamps, good, arrived_us) if entries[-1].arrived_us is not None else None
    table = pa.table(arrays, schema=_schema(source, arrays))
    table = table.filter(pa.array(good)) if bad else table
    dead = [
        DeadLetter(partition, int(offset[i]), int(index[i]), bad[i], rows.payload(i), int(arrivals[i]))
        for i in sorted(bad)
        if bad[i]  # one without a reason is dropped
    ]
    seen = [int(times[good].max())] if good.any() else []
    marks = seen + ([] if watermark_us is None else [watermark_us])
    last = entries[-1]
    end = Applied(last.offset, max(last.count - 1, 0), last.total, max(marks, default=None), arrived_us)
    batch = EventBatch(source, partition, table, times[good], arrivals[good], offset[good], index[good], dead, end)
    batch.is_repeat = np.zeros(len(batch), np.bool_)
    batch.before_us, batch.unexpected = watermark_us, unexpected
    return batch


def _schema(source: Source, arrays: dict[str, pa.Array]) -> pa.Schema:
    return pa.schema([(column.name, arrays[column.name].type) for column in source.columns])


def event_times(source: Source, arrays: Mapping[str, pa.Array], bad: dict[int, str]) -> Ints:
    """The event time of every row, in microseconds; rows without one, or with an impossible one, are added to `bad`."""
    column = arrays[source.timestamp]
    times: Ints = np.asarray(column.cast(pa.int64()).fill_null(0))
    for i in np.flatnonzero(np.asarray(column.is_null())).tolist():
        bad.setdefault(i, f"no event time: {source.timestamp} is null or missing")
    for i in np.flatnonzero((times < EARLIEST_US) | (times > LATEST_US)).tolist():
        bad.setdefault(i, f"{source.timestamp} lies outside the years 1 to 9999")
    return times


def _stamps(entries: Sequence[Entry], offset: Ints) -> Ints:
    """When the log took each row, by its own clock."""
    if entries[-1].arrived_us is None:
        return arrival_us(offset)
    taken = np.array([entry.arrival_us for entry in entries], np.int64)
    places = np.array([entry.offset for entry in entries], np.int64)
    stamps: Ints = taken[np.searchsorted(places, offset)]
    return stamps


def _raise_stamps(stamps: Ints, good: NDArray[np.bool_], before_us: int | None) -> int | None:
    """Makes the stamps of good rows never fall, in place; returns the newest so far."""
    kept = np.maximum.accumulate(stamps[good])
    if not len(kept):
        return before_us
    stamps[good] = kept if before_us is None else np.maximum(kept, before_us)
    return int(stamps[good][-1])


def _event_clock(times: Ints, bad: dict[int, str], watermark_us: int | None) -> Ints:
    """The running maximum of the event time of good rows."""
    before = np.iinfo(np.int64).min if watermark_us is None else watermark_us
    good = times.copy()
    good[list(bad)] = before
    running: Ints = np.maximum.accumulate(np.maximum(good, before)) if len(good) else good
    return np.where(running == np.iinfo(np.int64).min, times, running)


def _refuse_future(source: Source, times: Ints, arrivals: Ints, bad: dict[int, str]) -> None:
    for i in np.flatnonzero(times > arrivals + source.max_future_us).tolist():
        ahead_s = (int(times[i]) - int(arrivals[i])) / 1e6
        bad.setdefault(i, f"event time is {ahead_s:.0f} s after arrival, at most {source.max_future_us / 1e6:.0f} s")


class Deduplicator:
    """Marks repeats: the same id at an earlier position of the partition, at most the horizon before.

    Its memory is never stored: on start, feed it the log from one horizon before. It keeps two generations of ids,
    each at least a horizon long; arrivals only rise within a partition.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._young: dict[Any, int] = {}
        self._old: dict[Any, int] = {}
        self._since_us: int | None = None

    def remember(self, ids: Sequence[Any], arrivals_us: Sequence[int]) -> None:
        """Events of the log before the first batch, in position order; None is no id."""
        if arrivals_us:
            self._since_us = arrivals_us[0]
        self._young.update(zip(ids, arrivals_us, strict=True))
        self._young.pop(None, None)

    def mark(self, batch: EventBatch) -> None:
        """Sets `batch.is_repeat`; batches of one partition come in order, each once."""
        if self._source.event_id is None or not len(batch):
            return
        column = batch.table[self._source.event_id]
        ids, arrivals = column.to_pylist(), batch.arrival_us.tolist()
        self._turn(arrivals[0])
        if column.null_count or not self._take_new(ids, arrivals):
            self._mark_one_by_one(batch, ids, arrivals)

    def _take_new(self, ids: Sequence[Any], arrivals: Sequence[int]) -> bool:
        """Whether all ids are new and different, which are then remembered; otherwise none is."""
        if not self._old.keys().isdisjoint(ids):
            return False
        young, before = self._young, len(self._young)
        deque(map(young.setdefault, ids, arrivals), maxlen=0)
        taken = len(young) - before
        if taken < len(ids):
            for _ in range(taken):
                young.popitem()  # the newest
        return taken == len(ids)

    def _mark_one_by_one(self, batch: EventBatch, ids: Sequence[Any], arrivals: Sequence[int]) -> None:
        horizon, young, old = self._source.dedup_horizon_us, self._young, self._old
        repeats = []
        for i, (event_id, arrival) in enumerate(zip(ids, arrivals, strict=True)):
            if event_id is not None:
                seen = young.get(event_id)
                seen = old.get(event_id) if seen is None else seen
                if seen is not None and arrival - seen <= horizon:
                    repeats.append(i)
                young[event_id] = arrival
        batch.is_repeat[repeats] = True

    def _turn(self, now_us: int) -> None:
        """Begins a new generation when the young one is a horizon long: the old one has then left it."""
        if self._since_us is None:
            self._since_us = now_us
        elif now_us - self._since_us > self._source.dedup_horizon_us:
            self._old, self._young, self._since_us = self._young, {}, now_us
