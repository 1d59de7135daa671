"""The worker: reads every source's stream, merges its events into the online store, then raises the markers.

It starts from the markers. A view without a ready marker (new, or lost with the store) is first built from the
log up to the position of the others. Any failure of the store abandons the batch and starts again from the
markers; the positions in the values make it harmless to merge a batch twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import redis
import structlog

from headrace.catalog.definitions import Catalog, FeatureView, Source
from headrace.compute.events import Deduplicator, EventBatch, parse_entries
from headrace.errors import (
    DataError,
    LayoutsMovedError,
    StaleCatalogError,
    StoreLostError,
    StreamGapError,
    UnavailableError,
)
from headrace.settings import Settings, load_settings
from headrace.stores.cluster_level import level
from headrace.stores.gaps import Stops, goes_on
from headrace.stores.keys import layout_field, markers_key
from headrace.stores.layout_markers import LayoutMarkers, NewLayout, store_time_us
from headrace.stores.logs import Logs
from headrace.stores.markers import IMPORTS, Applied, Markers, Ready, import_places, places
from headrace.stores.offline import OfflineStore
from headrace.stores.one_run import one_run
from headrace.stores.online import OnlineStore
from headrace.stores.stream import Entry, EventStream
from materialize.ahead import Ahead, first_of
from materialize.erase import ForgottenKeys
from materialize.forget import Forgetter
from materialize.forgotten_again import take_out_again
from materialize.imported import extend_back, is_importing, replay_imports
from materialize.layouts import Kept, kept_layouts, merge_batch, unknown_layouts
from materialize.log import SourceLog
from materialize.lost_tails import forget_lost_tails
from materialize.view_shares import ViewShares

__all__ = ["Worker"]

Place = tuple[str, int]

_BATCH_EVENTS = 100_000
_BATCH_ENTRIES = (20, 2_000)
BLOCK_MS = 200

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

    def __init__(
        self, store: redis.Redis, offline: OfflineStore, catalog: Catalog, settings: Settings | None = None
    ) -> None:
        store = one_run(store)
        self.catalog = catalog
        self._store = store
        self._offline = offline
        self._stream = Logs(EventStream(store, catalog.project), catalog, settings or load_settings())
        self._markers = Markers(store, catalog.project)
        self._layouts = LayoutMarkers(store, catalog.project)
        self._online = OnlineStore(store)
        self._online.meanwhile = self._look_ahead
        self._stops = Stops(store, catalog.project, "worker")
        self._readers: dict[Place, _Reader] = {}
        self._imported: Iterator[tuple[_Reader, EventBatch]] = iter(())
        self._extended: dict[str, int] = {}
        self._kept: dict[str, Kept] = {}
        self._completed = 0
        self._entries = _BATCH_ENTRIES[0]
        self._ahead = Ahead()
        self._shares = ViewShares(store, catalog, ForgottenKeys(self._stream, offline))
        self._forgetter = Forgetter(self._stream, offline)

    def close(self) -> None:
        """Lets go of the topics that it reads."""
        self._stream.close()

    def start(self) -> None:
        """Brings every layout that it keeps to one position per partition, building the views that are not ready.

        A partition of which the log has a gap, or cannot be reached, is left where it is, and said to be; the others go
        on. Raises StaleCatalogError when layouts of a later catalog are complete.
        """
        while True:
            try:
                self._start()
                break
            except LayoutsMovedError as moved:
                log.info("starting once more", reason=str(moved))
        try:
            take_out_again(self._stream, self._offline, self.catalog)
        except (StreamGapError, UnavailableError) as problem:
            log.error("what was forgotten could not be looked for again", problem=str(problem))

    def _start(self) -> None:
        self._mend()
        self._know_layouts()
        wanted = [*places(self.catalog), *import_places(self.catalog)]
        held = self._markers.applied("source", [(source.name, partition) for source, partition in wanted])
        stopped: dict[Place, str] = {}
        for source, partition in wanted:
            place = (source.name, partition)
            try:
                self._readers[place] = self._start_partition(source, partition, held[place])
            except (StreamGapError, UnavailableError, DataError) as problem:
                stopped[place] = str(problem)
                log.error("stopped, the other streams go on", problem=str(problem))
        self._stops.set(stopped)
        halted = {kept.view for name, _ in stopped for kept in self._fed(name)}
        for view in self.catalog.views:
            if view not in halted and self._markers.ready(view) is None:
                self._set_ready(view)
        self._know_layouts()
        self._shares.counts.clear()  # what was built anew was counted when it came

    def _mend(self) -> bool:
        """Has layouts begun anew of which a shard of a cluster lost a part, or too little; whether there were any."""
        is_forgotten = level(self._store, markers_key(self.catalog.project))
        return bool(forget_lost_tails(self._stream, self._offline, self._markers, self.catalog)) or is_forgotten

    def _start_partition(self, source: Source, partition: int, held: Applied | None) -> _Reader:
        """Catches up with the archive, which may hold what a store that lost data no longer streams, and builds new
        views up to the same place."""
        past = self._log(source, partition)
        applied = held or Applied()
        fed = self._fed(source.name)
        old = [kept for kept in fed if self._markers.ready(kept.view) is not None]
        past.refuse_gap(held, len(old) < len(fed))
        if past.archived > applied.offset:
            for batch in past.replay(applied, past.end()):
                self._write(batch, old)
            applied = past.end()
        applied = past.continue_at(applied)
        if applied.offset and partition >= 0:
            self._stream.raise_end(source.name, partition, applied.offset)
        for kept in fed:
            if kept not in old and applied.offset:
                log.info("building view from the log", view=kept.view.name, source=source.name, upto=str(applied))
                for batch in past.replay(Applied(), applied):
                    self._write(batch, [kept])
        if held is None or applied.offset > held.offset:
            place, seen = (source.name, partition), held.offset if held else 0
            before = self._markers.raise_applied("source", *place, applied, seen, self._completed)
            self._refuse_lost(source, held, before)
        return _Reader(source, partition, applied, past.memory(applied))

    def _fed(self, source: str) -> list[Kept]:
        return [kept for kept in self._kept.values() if kept.is_fed_by(source)]

    def _set_ready(self, view: FeatureView) -> None:
        kept = self._kept[layout_field(view)]
        fed = {place: reader for place, reader in self._readers.items() if kept.is_fed_by(place[0])}
        readers = {place: reader for place, reader in fed.items() if place[0] == view.source}
        firsts = [
            self._log(r.source, r.partition).first_event_us()
            for r in readers.values()
            if r.partition != IMPORTS or not is_importing(self._store, self.catalog.project, r.source.name)
        ]
        known = [first for first in firsts if first is not None]
        kept_us = self._offline.kept_from_us(view.source or "")
        known = [first if kept_us is None else max(first, kept_us) for first in known]
        now_us = time.time_ns() // 1_000 if self.catalog.clock == "wall" else None
        applied = {f"{name}|{partition}": str(reader.applied) for (name, partition), reader in readers.items()}
        new = NewLayout(view, kept.build, Ready(min(known) if known else now_us, applied))
        outcome = self._layouts.complete([new], {place: reader.applied.offset for place, reader in fed.items()})
        if outcome == "lost":
            raise StoreLostError(f"The store lost view {view.name!r} while it was built; building it again.")
        if outcome == "behind":
            raise LayoutsMovedError(f"Another worker went on while view {view.name!r} was built.")
        log.info("view ready", view=view.name, applied=applied)

    def _know_layouts(self) -> None:
        """Learns which layouts are complete, to keep those and all that serve."""
        held = self._layouts.held()
        unknown = unknown_layouts(self.catalog, held)
        if unknown:
            raise StaleCatalogError(f"{', '.join(unknown)} is of a later catalog than {self.catalog.version}.")
        fields = {layout_field(view): view for view in self.catalog.views}
        builds = {field: held.builds.get(field) or self._markers.begin_build(view) for field, view in fields.items()}
        self._kept = kept_layouts(self.catalog, held, builds, store_time_us(self._store))
        self._completed = held.completed

    def follow(self, catalog: Catalog) -> bool:
        """Goes on by `catalog`, with which layouts come and go; False if the worker must start anew for it."""
        if catalog.clock != self.catalog.clock or places(catalog) != places(self.catalog):
            return False
        held = self._layouts.held()
        fields = [layout_field(view) for view in catalog.views]
        complete = all(field in held.ready or field in self._kept for field in fields)
        mine = {layout_field(view) for view in self.catalog.views}
        same = all(held.builds.get(f) in (kept.build, *([] if f in mine else [None])) for f, kept in self._kept.items())
        if not (complete and same) or unknown_layouts(catalog, held):
            return False
        self.catalog = catalog
        self._shares.follow(catalog)
        known = set(self._kept)
        self._know_layouts()
        if set(self._kept) - known:
            self._imported = iter(())  # a layout that comes in the middle of an append must be given it whole
        return True

    def step(self, block_ms: int = BLOCK_MS) -> int:
        """Applies one batch of every partition that has new entries; returns how many events it read.

        Raises redis.RedisError when the store fails, StoreLostError when it holds less than it did.
        """
        after = {place: reader.applied.offset for place, reader in self._readers.items() if place[1] != IMPORTS}
        if not after:
            time.sleep(block_ms / 1_000)
            return 0
        found = self._ahead.take() or self._read(after, block_ms)
        self._check(found)
        done = 0
        for left, (place, entries) in zip(reversed(range(len(found))), found.items(), strict=True):
            try:
                done += self._apply(self._readers[place], entries, is_last=not left)
            except DataError as problem:  # a view's function cannot be run here, say
                self._stop(place, problem)
        return done

    def _stop(self, place: Place, problem: DataError) -> None:
        del self._readers[place]
        self._ahead.leave_out(place)
        self._stops.set({**self._stops.held, place: str(problem)})
        log.error("stopped, the other streams go on", source=place[0], problem=str(problem))

    def _read(self, after: Mapping[Place, int], block_ms: int) -> dict[Place, list[Entry]]:
        """The next entries, as many as make a batch that is worth its round trips and bounded in memory: of entries
        larger than those before, the first; the others are read again."""
        found = self._stream.read(after, self._entries, block_ms)
        streamed = [place for place in found if place[0] not in self._stream.topics]
        sizes = [entry.count for place in streamed for entry in found[place]]
        if sizes:
            self._entries = min(max(_BATCH_EVENTS * len(sizes) // sum(sizes), _BATCH_ENTRIES[0]), _BATCH_ENTRIES[1])
        return found | {place: first_of(found[place], _BATCH_EVENTS) for place in streamed}

    def _check(self, found: Mapping[Place, Sequence[Entry]]) -> None:
        """Raises StaleCatalogError or StoreLostError before anything is written by what no longer holds."""
        newest = max((entry.catalog for entries in found.values() for entry in entries), default=0)
        if newest > self.catalog.version:
            raise StaleCatalogError(f"An entry knows catalog version {newest}, this worker {self.catalog.version}.")
        for place, held in self._markers.applied("source", found).items():
            reader = self._readers[place]
            self._refuse_lost(reader.source, reader.applied, held)
            if not goes_on(self._stream, self._markers, *place, reader.applied, found[place][0]):
                raise StoreLostError(f"The stream of {place[0]!r} does not go on at {reader.applied}; looking again.")

    def look(self) -> bool:
        """Whether to start again, for what stopped a partition was mended.

        Raises StoreLostError when the store holds less than it did, or a stream ends before what was applied,
        StreamGapError when a topic has lost what comes next.
        """
        if self._mend():
            raise StoreLostError("A shard of the store lost data; building views anew.")
        held = self._markers.applied("source", [*self._readers, *self._stops.held])
        heads = self._stream.stream_heads(self._readers)
        for place in self._stream.doubtful() & set(self._readers):
            self._log(self._readers[place].source, place[1]).refuse_gap(self._readers[place].applied, False)
        for place, reader in self._readers.items():
            self._refuse_lost(reader.source, reader.applied, held[place])
            if place not in heads:
                continue
            head = heads[place]
            if (head.total if head else 0) < reader.applied.total:
                raise StoreLostError(f"The stream of {place[0]!r} ends before {reader.applied}; looking again.")
        return any(not self._is_stopped(place, held[place]) for place in self._stops.held)

    def _is_stopped(self, place: Place, held: Applied | None) -> bool:
        source = next((source for source, part in places(self.catalog) if (source.name, part) == place), None)
        if source is None:
            return False
        builds = any(self._markers.ready(kept.view) is None for kept in self._fed(source.name))
        try:
            self._log(source, place[1]).refuse_gap(held, builds)
        except (StreamGapError, UnavailableError):
            return True
        return False

    def _log(self, source: Source, partition: int) -> SourceLog:
        return SourceLog(self._stream, self._offline, source, partition, self.catalog.clock)

    def _refuse_lost(self, source: Source, seen: Applied | None, held: Applied | None) -> None:
        if seen is not None and (held is None or held.offset < seen.offset):
            raise StoreLostError(
                f"The marker of {source.name} was at {seen}, the store now has "
                f"{held or 'none'}: the store lost data; starting again from its markers."
            )

    def _parse(self, reader: _Reader, entries: Sequence[Entry], after: Applied) -> EventBatch:
        newest = after.watermark_us, after.arrived_us
        batch = parse_entries(reader.source, reader.partition, entries, self.catalog.clock, *newest)
        reader.memory.mark(batch)
        return batch

    def _look_ahead(self) -> None:
        """Reads and parses what comes after the batch that the store is taking, the last of its round."""
        last, self._ahead.behind = self._ahead.behind, None
        if last is None or any(name in self._stream.topics for name, _ in self._readers):
            return
        after = {place: reader.applied for place, reader in self._readers.items() if place[1] != IMPORTS} | last
        found = self._read({place: applied.offset for place, applied in after.items()}, 0)
        for place, entries in found.items():
            self._ahead.batches[place] = self._parse(self._readers[place], entries, after[place])
            self._ahead.found[place] = entries

    def _apply(self, reader: _Reader, entries: Sequence[Entry], is_last: bool) -> int:
        place = (reader.source.name, reader.partition)
        batch = self._ahead.batches.pop(place, None)
        if batch is None:
            batch = self._parse(reader, entries, reader.applied)
        self._ahead.behind = {place: batch.end} if is_last else None
        self._write(batch, self._fed(reader.source.name))
        self._refuse_lost(reader.source, reader.applied, self._raise(reader, batch))
        if not reader.applied.offset and len(batch):
            for kept in self._fed(reader.source.name):
                self._markers.set_first_event(kept.view, int(batch.event_time_us[0]))
        reader.applied = batch.end
        self._shares.publish_counts(batch)
        return sum(entry.count for entry in entries)

    def take_imports(self) -> bool:
        """Applies the next batch of what was imported lately; False when there is none. To be called now and then.

        Raises as `step` does.
        """
        found = next(self._imported, None)
        if found is None:
            self._imported = self._new_imports()
            return False
        reader, batch = found
        self._write(batch, self._fed(reader.source.name))
        self._refuse_lost(reader.source, reader.applied, self._raise(reader, batch))
        reader.applied = batch.end
        self._shares.publish_counts(batch)
        return True

    def _new_imports(self) -> Iterator[tuple[_Reader, EventBatch]]:
        """What the archive holds of imports and the views do not, in batches, each to be applied before the next."""
        readers = {place: reader for place, reader in self._readers.items() if place[1] == IMPORTS}
        for place, archived in self._markers.applied("archived", readers).items():
            reader, name = readers[place], place[0]
            if archived is not None and archived.offset > reader.applied.offset:
                for batch in replay_imports(self._offline, reader.source, reader.applied, archived):
                    yield reader, batch
            is_new = reader.applied.offset > self._extended.get(name, 0)
            if is_new and not is_importing(self._store, self.catalog.project, name):
                extend_back(self._markers, self._offline, name, [kept.view for kept in self._fed(name)])
                self._extended[name] = reader.applied.offset

    def obey(self) -> None:
        """Carries out orders to forget."""
        self._forgetter.step(self.catalog, {place: reader.applied for place, reader in self._readers.items()})

    def _raise(self, reader: _Reader, batch: EventBatch) -> Applied | None:
        """Raises the marker past a batch that all layouts hold; layouts completed meanwhile are given it first."""
        place, seen = (reader.source.name, reader.partition), reader.applied.offset
        while True:
            try:
                return self._markers.raise_applied("source", *place, batch.end, seen, self._completed)
            except LayoutsMovedError as moved:
                self._refuse_lost(reader.source, reader.applied, self._markers.applied("source", [place])[place])
                known = self._kept
                if reader.partition == IMPORTS or not self.follow(self.catalog):
                    raise StaleCatalogError(str(moved)) from None
                self._write(batch, [kept for field, kept in self._kept.items() if field not in known])

    def _write(self, batch: EventBatch, layouts: Iterable[Kept]) -> None:
        """Merges a batch into those of the layouts that it feeds."""
        if batch.source.kafka is None and batch.partition != IMPORTS:
            self._markers.announce(batch.source.name, batch.partition, batch.end)
        merge_batch(self._online, self._shares, batch, layouts)
