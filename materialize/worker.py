"""The worker: reads every source's stream, merges its events into the online store, then raises the markers.

It starts from the markers. A view without a ready marker (new, or lost with the store) is first built from the
log up to the position of the others. Any failure of the store abandons the batch and starts again from the
markers; the positions in the values make it harmless to merge a batch twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import redis
import structlog

from headrace.catalog.definitions import Catalog, FeatureView, Source, catalog_to_json
from headrace.compute.events import Deduplicator, EventBatch, parse_entries
from headrace.errors import SettingsError, StaleCatalogError, StoreLostError, UnavailableError
from headrace.settings import Settings
from headrace.stores.catalogs import find_project, load_catalog, read_mirror
from headrace.stores.codec.rows import DIRECT, STREAM
from headrace.stores.connection import open_store
from headrace.stores.keys import catalog_key
from headrace.stores.markers import Applied, Markers, Ready, places
from headrace.stores.offline import OfflineStore
from headrace.stores.online import OnlineStore
from headrace.stores.stream import Entry, EventStream
from headrace.stores.view_writes import row_update, window_update
from materialize.log import SourceLog
from materialize.view_shares import ViewShares

__all__ = ["Worker", "run_worker"]

Place = tuple[str, int]

_BATCH_EVENTS = 100_000
_BATCH_ENTRIES = (100, 2_000)
_BLOCK_MS = 200
_CATALOG_CHECK_S = 1.0
_BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0)

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Reader:
    """Where the worker stands in one partition, and the ids it remembers."""

    source: Source
    partition: int
    applied: Applied
    memory: Deduplicator


class Worker:
    """One catalog's worker. Not thread-safe; two at once are right but wasteful."""

    def __init__(self, store: redis.Redis, offline: OfflineStore, catalog: Catalog) -> None:
        self.catalog = catalog
        self._offline = offline
        self._stream = EventStream(store, catalog.project)
        self._markers = Markers(store, catalog.project)
        self._online = OnlineStore(store)
        self._readers: dict[Place, _Reader] = {}
        self._builds: dict[str, int] = {}
        self._entries = _BATCH_ENTRIES[0]
        self._shares = ViewShares(store, catalog)

    def start(self) -> None:
        """Brings every view to one position per partition, building those that are not ready."""
        self._builds = {view.name: self._markers.begin_build(view) for view in self.catalog.views}
        wanted = places(self.catalog)
        held = self._markers.applied("source", [(source.name, partition) for source, partition in wanted])
        for source, partition in wanted:
            reader = self._start_partition(source, partition, held[source.name, partition])
            self._readers[source.name, partition] = reader
        for view in self.catalog.views:
            if self._markers.ready(view) is None:
                self._set_ready(view)
        self._shares.counts.clear()  # what was built anew was counted when it came

    def _start_partition(self, source: Source, partition: int, held: Applied | None) -> _Reader:
        """Catches up with the archive, which may hold what a store that lost data no longer streams, and builds new
        views up to the same place."""
        past = SourceLog(self._stream, self._offline, source, partition, self.catalog.clock)
        applied = held or Applied()
        views = self._views(source)
        old = [view for view in views if self._markers.ready(view) is not None]
        if past.archived > applied.offset:
            for batch in past.replay(applied, past.end()):
                self._write(batch, old)
            applied = past.end()
        for view in views:
            if view not in old and applied.offset:
                log.info("building view from the log", view=view.name, source=source.name, upto=str(applied))
                for batch in past.replay(Applied(), applied):
                    self._write(batch, [view])
        if held is None or applied.offset > held.offset:
            self._markers.raise_applied("source", source.name, partition, applied)
        return _Reader(source, partition, applied, past.memory(applied))

    def _views(self, source: Source) -> list[FeatureView]:
        if source.name.startswith("writes/"):
            return [self.catalog.view(source.name.removeprefix("writes/"))]
        return list(self.catalog.views_of(source.name))

    def _set_ready(self, view: FeatureView) -> None:
        readers = {place: reader for place, reader in self._readers.items() if place[0] == view.source}
        firsts = [
            SourceLog(self._stream, self._offline, r.source, r.partition, self.catalog.clock).first_event_us()
            for r in readers.values()
        ]
        known = [first for first in firsts if first is not None]
        now_us = time.time_ns() // 1_000 if self.catalog.clock == "wall" else None
        applied = {f"{name}|{partition}": str(reader.applied) for (name, partition), reader in readers.items()}
        self._markers.set_ready(view, Ready(min(known) if known else now_us, applied))
        log.info("view ready", view=view.name, applied=applied)

    def step(self, block_ms: int = _BLOCK_MS) -> int:
        """Applies one batch of every partition that has new entries; returns how many events it read.

        Raises redis.RedisError when the store fails, StoreLostError when it holds less than it did.
        """
        if not self._readers:
            time.sleep(block_ms / 1_000)
            return 0
        after = {place: reader.applied.offset for place, reader in self._readers.items()}
        found = self._stream.read(after, self._entries, block_ms)
        self._check(found)
        sizes = [entry.count for entries in found.values() for entry in entries]
        if sizes:  # as many entries next time as make a batch worth its round trips and bounded in memory
            self._entries = min(max(_BATCH_EVENTS * len(sizes) // sum(sizes), _BATCH_ENTRIES[0]), _BATCH_ENTRIES[1])
        return sum(self._apply(self._readers[place], entries) for place, entries in found.items())

    def _check(self, found: Mapping[Place, Sequence[Entry]]) -> None:
        """Raises StaleCatalogError or StoreLostError before anything is written by what no longer holds."""
        newest = max((entry.catalog for entries in found.values() for entry in entries), default=0)
        if newest > self.catalog.version:
            raise StaleCatalogError(f"An entry knows catalog version {newest}, this worker {self.catalog.version}.")
        for (name, partition), held in self._markers.applied("source", found).items():
            self._refuse_lost(self._readers[name, partition], held)

    def _refuse_lost(self, reader: _Reader, held: Applied | None) -> None:
        if held is None or held.offset < reader.applied.offset:
            raise StoreLostError(
                f"The marker of {reader.source.name} was at {reader.applied}, the store now has "
                f"{held or 'none'}: the store lost data; starting again from its markers."
            )

    def _apply(self, reader: _Reader, entries: Sequence[Entry]) -> int:
        watermark_us = reader.applied.watermark_us
        batch = parse_entries(reader.source, reader.partition, entries, self.catalog.clock, watermark_us)
        reader.memory.mark(batch)
        self._write(batch, self._views(reader.source))
        self._refuse_lost(
            reader, self._markers.raise_applied("source", reader.source.name, reader.partition, batch.end)
        )
        if not reader.applied.offset and len(batch):
            for view in self._views(reader.source):
                self._markers.set_first_event(view, int(batch.event_time_us[0]))
        reader.applied = batch.end
        self._shares.publish_counts(batch)
        return sum(entry.count for entry in entries)

    def _write(self, batch: EventBatch, views: list[FeatureView]) -> None:
        """Merges a batch into all of its views, their keys in one stream of commands."""
        rank = DIRECT if batch.source.name.startswith("writes/") else STREAM
        updates = []
        for view, events in self._shares.of(batch, views):
            build = self._builds[view.name]
            if view.kind == "windowed":
                update, skipped = window_update(self.catalog, view, events, build)
            else:
                update, skipped = row_update(self.catalog, view, events, rank, build)
            updates.append(update)
            self._shares.count(view, "null_key", skipped)
        self._online.update(*updates)


def run_worker(settings: Settings, stop: threading.Event) -> None:
    """Works until `stop` is set; a new catalog or a failing store starts it again from the markers.

    Raises SettingsError or UnavailableError when the set-up cannot work at all.
    """
    store = open_store(settings)
    project = find_project(settings)
    offline = OfflineStore(settings.data_dir)
    _catalog(store, settings, project)
    failures = 0
    while not stop.is_set():
        try:
            worker = Worker(store, offline, _catalog(store, settings, project))
            worker.start()
            log.info("worker started", catalog=worker.catalog.version)
            failures = 0
            _work(worker, store, stop)
        except StaleCatalogError:
            stop.wait(_BACKOFF_S[0])
        except SettingsError:
            raise
        except Exception as error:  # the outermost loop: whatever it is, the log still has the events
            log.error("worker starts again", error=str(error), kind=type(error).__name__)
            stop.wait(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
            failures += 1
    store.close()


def _catalog(store: redis.Redis, settings: Settings, project: str) -> Catalog:
    """The catalog; a store that came back empty gets it again from its mirror."""
    try:
        return load_catalog(store, project)
    except UnavailableError:
        mirror = read_mirror(settings)
        if mirror is None or mirror.project != project:
            raise
        store.set(catalog_key(project), catalog_to_json(mirror), nx=True)
        log.warning("the store had lost the catalog; restored it from its mirror", version=mirror.version)
        return mirror


def _work(worker: Worker, store: redis.Redis, stop: threading.Event) -> None:
    """Steps until told to stop or the catalog changes."""
    checked = time.monotonic()
    while not stop.is_set():
        worker.step()
        if time.monotonic() - checked > _CATALOG_CHECK_S:
            if load_catalog(store, worker.catalog.project).version != worker.catalog.version:
                return
            checked = time.monotonic()
