"""The archiver: takes every event from the stream to the offline store, each once, and keeps that store in order.

What is archived is what the tables say: on start each partition goes on after its archived offset, with the
memory of repeats and the watermark read back from its own rows. Dead letters are committed before the events of
the same entries, so that no entry counts as archived while a part of it is not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import redis

from headrace.catalog.definitions import Catalog, Source
from headrace.compute.events import DeadLetter, Deduplicator, EventBatch, parse_entries
from headrace.errors import HeadraceError, UnknownNameError
from headrace.settings import Settings
from headrace.stores.catalogs import find_project, load_catalog
from headrace.stores.connection import open_store
from headrace.stores.letters import forget_letters, pending_letters
from headrace.stores.markers import Applied, Markers, places
from headrace.stores.offline import DEAD_LETTERS, OfflineStore, archiver_ownership, event_rows
from headrace.stores.orders import Order, acknowledge, waiting_orders
from headrace.stores.stream import EventStream
from headrace.telemetry import get_logger
from materialize.log import SourceLog

__all__ = ["Archiver", "run_archiver"]

FLUSH_EVENTS = 50_000
FLUSH_AFTER_S = 1.0
READ_ENTRIES = 1_000
BLOCK_MS = 250
CATALOG_EVERY_S = 1.0
ORDERS_EVERY_S = 0.5
LETTERS_EVERY_S = 0.5
LETTER_ENTRIES = 1_000
DRAIN_S = 5.0
RETRY_S = (0.2, 10.0)

log = get_logger()


def run_archiver(settings: Settings, stop: threading.Event) -> None:
    """Archive until `stop` is set, then what the stream holds by then (for at most DRAIN_S), and return.

    Raises SettingsError when another archiver owns the data directory or the store cannot be reached at start,
    UnavailableError when there is no catalog; later failures are logged and retried.
    """
    with archiver_ownership(settings.data_dir):
        store = open_store(settings)
        try:
            Archiver(settings, store).run(stop)
        finally:
            store.close()


@dataclass(slots=True)
class _Lane:
    """One partition of one source: how far it is read, what waits to be appended, how far it is archived."""

    source: Source
    partition: int
    read_to: int
    watermark_us: int | None
    repeats: Deduplicator
    archived: Applied | None = None
    published: Applied | None = None
    pending: list[EventBatch] = field(default_factory=list)
    waiting: int = 0
    since_s: float = 0.0
    entry_size: int = 1
    delay_s: float = 0.0

    def add(self, batch: EventBatch, entries: int, now_s: float) -> None:
        """Take a parsed batch in."""
        self.repeats.mark(batch)
        if not self.pending:
            self.since_s = now_s
        self.pending.append(batch)
        events = len(batch) + len(batch.dead)
        self.waiting += events
        self.entry_size = max(1, events // entries)
        self.read_to, self.watermark_us = batch.end.offset, batch.watermark_us

    def is_due(self, now_s: float) -> bool:
        """Whether an append is worth its commit; after a failure, whether it is time to try again."""
        if self.delay_s:
            return now_s >= self.since_s + self.delay_s
        return bool(self.pending) and (self.waiting >= FLUSH_EVENTS or now_s >= self.since_s + FLUSH_AFTER_S)


class Archiver:
    """The state of the archiving process; `run` is its life, the other methods are its steps."""

    def __init__(self, settings: Settings, store: redis.Redis) -> None:
        self._store = store
        self._project = find_project(settings)
        self._catalog: Catalog = load_catalog(store, self._project)
        self._stream = EventStream(store, self._project)
        self._markers = Markers(store, self._project)
        self.offline = OfflineStore(settings.data_dir)
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._next_s: dict[str, float] = {}
        self.failures = 0
        self._open_lanes(self._catalog)

    def run(self, stop: threading.Event) -> None:
        """Steps until `stop`; a failed step is logged and retried with growing pauses."""
        delay_s = 0.0
        log.info("archiving", sources=len({name for name, _ in self._lanes}))
        while not stop.is_set():
            try:
                self.step(BLOCK_MS)
                delay_s = 0.0
            except Exception as error:  # the process's outermost loop: whatever it is, the log still has the events
                self.failures += 1
                delay_s = _longer(delay_s)
                log.error("archiving failed, trying again", error=str(error), kind=type(error).__name__, in_s=delay_s)
                stop.wait(delay_s)
        self._drain()

    def step(self, block_ms: int = 0) -> int:
        """One round: catalog, stream, appends that are due, markers, orders; returns how many events were read."""
        self._every("catalog", CATALOG_EVERY_S, self._reload_catalog)
        read = self._read(block_ms)
        self.flush(force=False)
        self._publish()
        self._every("letters", LETTERS_EVERY_S, self._take_letters)
        self._every("orders", ORDERS_EVERY_S, self._obey_orders)
        return read

    def flush(self, force: bool = True) -> None:
        """Append what waits in every lane (only where it is due, unless forced); a lane that fails keeps it."""
        for lane in self._lanes.values():
            if not lane.pending or not (force or lane.is_due(time.monotonic())):
                continue
            try:
                self._append(lane)
            except Exception as error:  # a full disk, say; the other lanes go on
                self.failures += 1
                lane.since_s, lane.delay_s = time.monotonic(), _longer(lane.delay_s)
                log.error(
                    "append failed, trying again",
                    source=lane.source.name,
                    partition=lane.partition,
                    error=str(error),
                    kind=type(error).__name__,
                    in_s=lane.delay_s,
                )

    def _every(self, what: str, pause_s: float, action: Callable[[], None]) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s.get(what, 0.0):
            action()
            self._next_s[what] = now_s + pause_s

    def _reload_catalog(self) -> None:
        catalog = load_catalog(self._store, self._project)
        if catalog.version != self._catalog.version:
            self._open_lanes(catalog)
            self._catalog = catalog
            log.info("catalog reloaded", version=catalog.version)

    def _open_lanes(self, catalog: Catalog) -> None:
        """A lane for every partition of the catalog; a source that changed gets a new one, from its table."""
        for source, partition in places(catalog):
            lane = self._lanes.get((source.name, partition))
            if lane is not None and lane.source == source:
                continue
            if lane is not None and lane.pending:
                self._append(lane)
            self._lanes[source.name, partition] = self._open_lane(source, partition)

    def _open_lane(self, source: Source, partition: int) -> _Lane:
        past = SourceLog(self._stream, self.offline, source, partition, self._catalog.clock)
        end = past.end()
        archived = end if end.total else None  # without its entry in the stream nobody knows its place in the count
        return _Lane(source, partition, past.archived, end.watermark_us, past.memory(end), archived)

    def _read(self, block_ms: int) -> int:
        open_lanes = {place: lane for place, lane in self._lanes.items() if lane.waiting < FLUSH_EVENTS}
        if not open_lanes:
            time.sleep(block_ms / 1_000)
            return 0
        size = max(lane.entry_size for lane in open_lanes.values())
        count = max(1, min(READ_ENTRIES, FLUSH_EVENTS // size))
        after = {place: lane.read_to for place, lane in open_lanes.items()}
        found = self._stream.read(after, count, block_ms) if block_ms else self._read_now(after, count)
        if any(entry.catalog > self._catalog.version for entries in found.values() for entry in entries):
            self._reload_catalog()  # an entry is read by a catalog that knows what its producer knew
            return 0
        for place, entries in found.items():
            lane = open_lanes[place]
            batch = parse_entries(lane.source, lane.partition, entries, self._catalog.clock, lane.watermark_us)
            lane.add(batch, len(entries), time.monotonic())
        return sum(entry.count for entries in found.values() for entry in entries)

    def _read_now(self, after: dict[tuple[str, int], int], count: int) -> dict[tuple[str, int], Any]:
        """What the stream holds beyond `after`, without waiting for more."""
        last = np.iinfo(np.int64).max
        found = {place: self._stream.between(*place, offset + 1, last, count) for place, offset in after.items()}
        return {place: entries for place, entries in found.items() if entries}

    def _append(self, lane: _Lane) -> None:
        """Commit a lane's pending batches: dead letters, then events."""
        batches, end = lane.pending, lane.pending[-1].end
        dead = [letter for batch in batches for letter in batch.dead]
        place = {"partition": lane.partition, "last_offset": end.offset}
        if dead:
            self.offline.append_dead_letters(lane.source, _dead_rows(lane.source, dead), **place)
            log.warning("dead letters", source=lane.source.name, count=len(dead), first=dead[0].reason)
        self.offline.append_events(lane.source, pa.concat_tables([_rows(batch) for batch in batches]), **place)
        lane.pending, lane.waiting, lane.delay_s, lane.archived = [], 0, 0.0, end

    def _publish(self) -> None:
        for (name, partition), lane in self._lanes.items():
            if lane.archived is not None and lane.archived != lane.published:
                self._markers.raise_applied("archived", name, partition, lane.archived)
                lane.published = lane.archived

    def _take_letters(self) -> None:
        """Append what views gave up on and marks of what was replayed, then take them out of their stream."""
        rows, offsets, last = pending_letters(self._store, self._project, LETTER_ENTRIES)
        if last:
            self.offline.append_letters(rows, offsets, last)
            forget_letters(self._store, self._project, last)

    def _obey_orders(self) -> None:
        for order in waiting_orders(self._store, self._project):
            acknowledge(self._store, self._project, order, "started")
            try:
                done = self._obey(order)
            except Exception as error:  # whoever gave the order hears why; the archiver goes on
                log.error("order failed", order=order.order, source=order.source, error=str(error))
                acknowledge(self._store, self._project, order, "failed", str(error))
            else:
                log.info("order done", order=order.order, source=order.source, done=done)
                acknowledge(self._store, self._project, order, "done", done)

    def _obey(self, order: Order) -> str:
        known = {name for name, _ in self._lanes}
        if order.source not in known:
            raise UnknownNameError(f"There is no source {order.source!r}; the archive has: {', '.join(sorted(known))}.")
        return self.offline.compact(order.source)

    def _drain(self) -> None:
        """Archive what the stream holds now; what time does not allow stays in the stream for the next start."""
        deadline_s = time.monotonic() + DRAIN_S
        try:
            while self._read(0) and time.monotonic() < deadline_s:
                self.flush(force=False)
            self.flush()
            self._publish()
            self._take_letters()
        except (redis.RedisError, OSError, HeadraceError) as error:
            log.warning("stopped before the stream was drained; the next start goes on", error=str(error))


def _longer(delay_s: float) -> float:
    return min(RETRY_S[1], max(RETRY_S[0], 2 * delay_s))


def _rows(batch: EventBatch) -> pa.Table:
    return event_rows(
        batch.table,
        event_time_us=batch.event_time_us,
        arrival_us=batch.arrival_us,
        partition=batch.partition,
        offset=batch.offset,
        index=batch.index,
        is_repeat=batch.is_repeat,
    )


def _dead_rows(source: Source, dead: Sequence[DeadLetter]) -> pa.Table:
    columns: dict[str, Any] = {
        "source": [source.name] * len(dead),
        "partition": [letter.partition for letter in dead],
        "offset": [letter.offset for letter in dead],
        "index": [letter.index for letter in dead],
        "reason": [letter.reason for letter in dead],
        "payload": [letter.payload for letter in dead],
        "arrival_time": [letter.arrival_us for letter in dead],
    }
    of_views = {name: [None] * len(dead) for name in DEAD_LETTERS.names if name not in columns}
    return pa.table(columns | of_views, schema=DEAD_LETTERS)
