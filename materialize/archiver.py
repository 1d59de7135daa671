"""The archiver: takes every event from the stream to the offline store, each once, and keeps that store in order.

What is archived is what the tables say: on start each partition goes on after its archived offset, with the
memory of repeats and the watermark read back from its own rows. Dead letters are committed before the events of
the same entries, so that no entry counts as archived while a part of it is not.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import redis

from headrace.catalog.definitions import Catalog, Source
from headrace.compute.events import parse_entries
from headrace.errors import HeadraceError, StreamGapError, UnavailableError
from headrace.settings import Settings
from headrace.stores.catalogs import find_project, load_catalog
from headrace.stores.connection import open_store
from headrace.stores.gaps import Stops, goes_on
from headrace.stores.letters import forget_letters, pending_letters
from headrace.stores.logs import Logs
from headrace.stores.markers import Applied, Markers, places
from headrace.stores.offline import OfflineStore, archiver_ownership
from headrace.stores.stream import EventStream
from headrace.telemetry import get_logger
from materialize.archive_orders import obey_orders
from materialize.forget_archive import ForgottenRows
from materialize.in_doubt import InDoubt, build_anew, is_given_up, is_streamed, was_lost
from materialize.ingest import Imports
from materialize.lanes import FLUSH_EVENTS, Lane, archive_rows, dead_rows, empty_rows, longer, open_lane
from materialize.log import SourceLog
from materialize.trim import Trimmer
from materialize.upkeep import Upkeep

__all__ = ["Archiver", "run_archiver"]

Place = tuple[str, int]

READ_ENTRIES = 1_000
BLOCK_MS = 250
PACE_EVENTS, PACE_S = 20_000, 0.1  # fewer are worth a wait: small reads cost the processor that the worker needs
CATALOG_EVERY_S = 1.0
ORDERS_EVERY_S = 0.5
LETTERS_EVERY_S = 0.5
SERVED_EVERY_S = 1.0
IMPORTS_EVERY_S = 1.0
LOOK_EVERY_S = 1.0
TRIM_EVERY_S = 2.0
UPKEEP_EVERY_S = 5.0
LETTER_ENTRIES = 1_000
DRAIN_S = 5.0

log = get_logger()


def run_archiver(settings: Settings, stop: threading.Event, niceness: int = 0) -> None:
    """Archive until `stop` is set, then what the stream holds by then (for at most DRAIN_S), and return.

    `niceness` is how much this process yields the processor to others; the store that it may have to start does not.

    Raises SettingsError when another archiver owns the data directory or the store cannot be reached at start,
    UnavailableError when there is no catalog; later failures are logged and retried.
    """
    with archiver_ownership(settings.data_dir):
        store = open_store(settings)
        os.nice(niceness)
        try:
            Archiver(settings, store).run(stop)
        finally:
            store.close()


class Archiver:
    """The state of the archiving process; `run` is its life, the other methods are its steps."""

    def __init__(self, settings: Settings, store: redis.Redis) -> None:
        self._store = store
        self._project = find_project(settings)
        self._catalog: Catalog = load_catalog(store, self._project)
        self._stream = Logs(EventStream(store, self._project), self._catalog, settings)
        self._markers = Markers(store, self._project)
        self.offline = OfflineStore(settings.data_dir)
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._next_s: dict[str, float] = {}
        self._stops = Stops(store, self._project, "archiver")
        self._trimmer = Trimmer(self._stream.stream, self._markers, settings.stream_keep)
        self._upkeep = Upkeep(self.offline, settings)
        self._forgotten = ForgottenRows(store, self.offline, self._project)
        self._in_doubt = InDoubt(self.offline.root)
        self._imports = Imports(store, self._project, self.offline, self._catalog, self._forgotten)
        self.failures = 0
        self._open_lanes(self._catalog)

    def run(self, stop: threading.Event) -> None:
        """Steps until `stop`; a failed step is logged and retried with growing pauses."""
        delay_s = 0.0
        log.info("archiving", sources=len({name for name, _ in self._lanes}))
        while not stop.is_set():
            try:
                if 0 < self.step(BLOCK_MS) < PACE_EVENTS:
                    stop.wait(PACE_S)
                delay_s = 0.0
            except Exception as error:  # the process's outermost loop: whatever it is, the log still has the events
                self.failures += 1
                delay_s = longer(delay_s)
                log.error("archiving failed, trying again", error=str(error), kind=type(error).__name__, in_s=delay_s)
                stop.wait(delay_s)
        self._drain()
        self.close()

    def close(self) -> None:
        """Lets go of the topics that it reads."""
        self._stream.close()

    def step(self, block_ms: int = 0) -> int:
        """One round of all that the archiver does; returns how many events were read."""
        self._every("catalog", CATALOG_EVERY_S, self._reload_catalog)
        self._settle_doubts()
        read = self._read(0 if self._imports.busy else block_ms)
        self.flush(force=False)
        self._publish()
        self._imports.step(self._catalog)
        self._every("imports", IMPORTS_EVERY_S, self._imports.publish)
        self._every("letters", LETTERS_EVERY_S, self._take_letters)
        self._every("served", SERVED_EVERY_S, self._take_served)
        self._every("orders", ORDERS_EVERY_S, self._obey_orders)
        self._every("look", LOOK_EVERY_S, self._look)
        self._every("trim", TRIM_EVERY_S, self._trim)
        self._every("upkeep", UPKEEP_EVERY_S, self._keep_up)
        return read

    def flush(self, force: bool = True) -> None:
        """Append what waits in every lane (only where it is due, unless forced); a lane that fails keeps it."""
        for lane in list(self._lanes.values()):
            if not lane.pending or not (force or lane.is_due(time.monotonic())):
                continue
            try:
                self._append(lane)
            except Exception as error:  # a full disk, say; the other lanes go on
                self.failures += 1
                lane.since_s, lane.delay_s = time.monotonic(), longer(lane.delay_s)
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
            self._stream.use(catalog)
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
            self._open_lane(source, partition)

    def _open_lane(self, source: Source, partition: int) -> None:
        """Takes a partition up after what its table holds; one of which the log has a gap, or cannot be reached, waits
        until that is mended."""
        place, stopped = (source.name, partition), dict(self._stops.held)
        self._lanes.pop(place, None)
        try:
            past = SourceLog(self._stream, self.offline, source, partition, self._catalog.clock)
            lane = open_lane(past)
        except (StreamGapError, UnavailableError) as problem:
            if stopped.get(place) != str(problem):
                log.error("stopped, the other streams go on", problem=str(problem))
            stopped[place] = str(problem)
        else:
            if lane.read_to > past.archived:
                log.warning("going on behind a loss that was accepted", source=source.name, at=lane.read_to)
                rows = empty_rows(source, partition)
                self.offline.append_events(
                    source, rows, partition=partition, last_offset=lane.read_to, total=lane.read.total
                )
            if lane.read_to:
                self._stream.raise_end(*place, lane.read_to)
            self._lanes[place] = lane
            stopped.pop(place, None)
        self._stops.set(stopped)

    def _look(self) -> None:
        """Opens lanes anew whose stream ends before what they read, and those whose gap was mended."""
        for place in self._stream.doubtful() & set(self._lanes):
            self._reopen(self._lanes[place])
        heads = self._stream.stream_heads(self._lanes)
        for place, head in heads.items():
            lane = self._lanes[place]
            if (head.total if head else 0) < lane.read.total:
                self._reopen(lane)
        if len(self._lanes) < len(places(self._catalog)):  # stopped, or not opened for the store failed
            self._open_lanes(self._catalog)

    def _reopen(self, lane: Lane) -> None:
        if lane.pending:
            self._append(lane)
        self._open_lane(lane.source, lane.partition)

    def _trim(self) -> None:
        lanes = {place: lane for place, lane in self._lanes.items() if lane.source.kafka is None}
        archived = {place: (lane.source, lane.archived) for place, lane in lanes.items() if lane.archived}
        self._trimmer.step(archived)

    def _read(self, block_ms: int) -> int:
        open_lanes = {place: lane for place, lane in self._lanes.items() if lane.waiting < FLUSH_EVENTS}
        if not open_lanes:
            time.sleep(block_ms / 1_000)
            return 0
        size = max(lane.entry_size for lane in open_lanes.values())
        count = max(1, min(READ_ENTRIES, FLUSH_EVENTS // size))
        after = {place: lane.read_to for place, lane in open_lanes.items()}
        found = self._stream.read(after, count, block_ms)
        if any(entry.catalog > self._catalog.version for entries in found.values() for entry in entries):
            self._reload_catalog()  # an entry is read by a catalog that knows what its producer knew
            return 0
        for place, entries in found.items():
            lane = open_lanes[place]
            if not goes_on(self._stream, self._markers, *place, lane.read, entries[0]):
                self._reopen(lane)
                continue
            newest = lane.read.watermark_us, lane.read.arrived_us
            batch = parse_entries(lane.source, lane.partition, entries, self._catalog.clock, *newest)
            lane.add(batch, len(entries), time.monotonic())
        return sum(entry.count for entries in found.values() for entry in entries)

    def _append(self, lane: Lane) -> None:
        """Commit a lane's pending batches: dead letters, then events.

        What the store has lost since is left out: a worker may have gone on without it.
        """
        place: Place = (lane.source.name, lane.partition)
        end = lane.pending[-1].end
        if not is_streamed(self._stream, place, end.offset) or is_given_up(self._stream, place, lane.pending):
            log.warning("the stream has lost what was not archived yet", source=lane.source.name, events=lane.waiting)
            lane.pending, lane.waiting = [], 0
            self._open_lane(lane.source, lane.partition)
            return
        batches = [self._forgotten.living(self._catalog, batch) for batch in lane.pending]
        dead = [letter for batch in batches for letter in batch.dead]
        upto: dict[str, Any] = {"partition": lane.partition, "last_offset": end.offset}
        if dead:
            self.offline.append_dead_letters(lane.source, dead_rows(lane.source, dead), **upto)
            log.warning("dead letters", source=lane.source.name, count=len(dead), first=dead[0].reason)
        if lane.source.kafka is None:
            self._in_doubt.note(place, (lane.committed, end.offset))
        rows = pa.concat_tables([archive_rows(batch) for batch in batches])
        self.offline.append_events(lane.source, rows, **upto, total=end.total)
        lane.pending, lane.waiting, lane.delay_s, lane.archived, lane.committed = [], 0, 0.0, end, end.offset
        self._settle_doubts()

    def _settle_doubts(self) -> None:
        """Looks after what was committed last: if that was lost meanwhile, workers may have gone on without it."""
        for place, offsets in self._in_doubt.held.items():
            if self._is_archived(place, offsets[1]) and was_lost(
                self._stream, self.offline, self._catalog, place, offsets
            ):
                views = build_anew(self._store, self._catalog, {place[0]}, goes_back=False)
                log.error("archived what was lost meanwhile, building views anew", at=place, views=views)
                self._in_doubt.settle(place)
                lane = self._lanes.get(place)
                if lane is not None:  # its counts are those of a stream that is no more
                    self._open_lane(lane.source, lane.partition)
            self._in_doubt.settle(place)

    def _is_archived(self, place: Place, offset: int) -> bool:
        lane = self._lanes.get(place)
        known = lane.archived if lane is not None else None
        at_least = known.offset if known is not None else 0
        return at_least >= offset or self.offline.archived_offset(*place) >= offset

    def _publish(self) -> None:
        for (name, partition), lane in list(self._lanes.items()):
            if lane.archived is not None and lane.archived != lane.published:
                seen = lane.published.offset if lane.published else 0
                if not self._is_of_this_store(name, partition, lane.archived):
                    self._reopen(lane)
                    continue
                held = self._markers.raise_applied("archived", name, partition, lane.archived, seen)
                if seen and (held is None or held.offset < seen):
                    self._reopen(lane)  # the store lost data, and counts anew
                else:
                    lane.published = lane.archived

    def _is_of_this_store(self, name: str, partition: int, archived: Applied) -> bool:
        """Whether the count in `archived` is the store's: it still has the entry, or has trimmed it since."""
        held = self._markers.applied("archived", [(name, partition)])[name, partition]
        told = held is not None and held.offset >= archived.offset
        return told or is_streamed(self._stream, (name, partition), archived.offset)

    def _take_letters(self) -> None:
        """Append what views gave up on and marks of what was replayed, then take them out of their stream."""
        rows, offsets, last = pending_letters(self._store, self._project, LETTER_ENTRIES)
        if last:
            self.offline.append_letters(*self._forgotten.living_letters(self._catalog, rows, offsets), last)
            forget_letters(self._store, self._project, last)

    def _take_served(self) -> None:
        self._forgotten.take_served()

    def _obey_orders(self) -> None:
        sources = {name for name, _ in self._lanes}
        obey_orders(self._store, self._catalog, self.offline, sources, self._imports, self._forgotten)

    def _keep_up(self) -> None:
        sources = {name: lane.source for (name, _), lane in self._lanes.items()}
        self._upkeep.step(list(sources.values()), {name: self._present_us(name) for name in sources})

    def _present_us(self, source: str) -> int | None:
        """By the wall, else the largest event time of the source."""
        if self._catalog.clock == "wall":
            return time.time_ns() // 1_000
        marks = [lane.watermark_us for (name, _), lane in self._lanes.items() if name == source]
        return max((mark for mark in marks if mark is not None), default=None)

    def _drain(self) -> None:
        """Archive what the stream holds now; what time does not allow stays in the stream for the next start."""
        deadline_s = time.monotonic() + DRAIN_S
        try:
            while self._read(0) and time.monotonic() < deadline_s:
                self.flush(force=False)
            self.flush()
            self._publish()
            self._take_letters()
            self._take_served()
        except (redis.RedisError, OSError, HeadraceError) as error:
            log.warning("stopped before the stream was drained; the next start goes on", error=str(error))
