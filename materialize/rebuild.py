"""Rebuild: a view's new layout is built beside the one that serves, from the archive and the stream, then takes over.

    announce    the catalog names the new layouts; readers go on with the old ones
    build       every event of the log, up to where no worker has come yet
    complete    one script states it, and from then on every worker keeps the new layouts up to date too
    settle      the stream is followed until every worker has noticed
    switch      the catalog names the new layouts as its views; the old ones retire

Killed anywhere, the next run goes on: the values say of themselves how far they are merged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import redis

from headrace.catalog.definitions import Catalog, FeatureView, Layout, Source
from headrace.catalog.layouts import announced, new_views, rebuilt, settled
from headrace.compute.events import Deduplicator, EventBatch, parse_entries
from headrace.errors import StoreLostError, UnavailableError
from headrace.settings import Settings
from headrace.stores.batch_files import BatchScan, batch_path
from headrace.stores.catalogs import find_project, load_catalog, replace_catalog
from headrace.stores.connection import open_store
from headrace.stores.gaps import follows
from headrace.stores.keys import layout_field
from headrace.stores.layout_markers import LayoutMarkers, NewLayout, Outcome, store_time_us
from headrace.stores.logs import Logs
from headrace.stores.markers import IMPORTS, Applied, Markers, Ready
from headrace.stores.offline import OfflineStore
from headrace.stores.one_run import one_run
from headrace.stores.online import OnlineStore
from headrace.stores.stream import Entry, EventStream
from headrace.telemetry import get_logger
from materialize.batch import load_rows
from materialize.changing import changing_definitions
from materialize.erase import ForgottenKeys
from materialize.imported import is_importing
from materialize.layouts import ARRIVING, Kept, catalog_of, feeds, merge_batch
from materialize.log import SourceLog
from materialize.newest_writer import kept_columns
from materialize.view_shares import ViewShares

__all__ = ["Build", "Rebuilt", "rebuild_to", "rebuild_views"]

Place = tuple[str, int]
Report = Callable[[int, int], None]
"""Told how many events were replayed, and of how many."""

SETTLE_S = 2.0
"""Longer than a running worker takes to notice that layouts were completed (it looks once a second)."""
LOST = "The online store lost its data during the rebuild; run it again."
ENTRIES = 500
BLOCK_MS = 20

log = get_logger()


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did: the views whose layout is new, the events replayed, and the catalog that serves now."""

    views: tuple[str, ...]
    events: int
    seconds: float
    catalog: Catalog


def _silent(done: int, total: int) -> None:
    pass


def rebuild_views(settings: Settings, names: Sequence[str], report: Report = _silent) -> Rebuilt:
    """Build the named views anew by the definitions that serve, and switch to them.

    Raises UnknownNameError for a name, UnavailableError while another command changes the definitions or the store
    does not answer, StoreLostError when it loses data meanwhile: then run it again.
    """
    store, project = open_store(settings), find_project(settings)
    try:
        with changing_definitions(store, project, settings.lease):
            previous = load_catalog(store, project)
            return rebuild_to(settings, store, previous, rebuilt(previous, names), report)
    finally:
        store.close()


def rebuild_to(
    settings: Settings,
    store: redis.Redis,
    previous: Catalog,
    target: Catalog,
    report: Report = _silent,
    before_switch: Callable[[Catalog], None] = lambda catalog: None,
) -> Rebuilt:
    """From the catalog `previous` to `target`, whose new layouts are built before it serves; `before_switch` is called
    with the catalog that is about to. The caller holds the definitions; raises as `rebuild_views`."""
    started = time.monotonic()
    interim = announced(previous, target)
    if interim != previous:
        replace_catalog(store, settings, interim, previous)
    new = set(new_views(previous, target))
    layouts = [layout for layout in interim.arriving if layout.view in new]
    with closing(Build(store, settings, interim, layouts, report)) as build:
        try:
            build.run()
        except redis.RedisError as error:
            raise UnavailableError(f"The online store failed during the rebuild ({error}); run it again.") from error
    final = settled(interim, target, store_time_us(store), LayoutMarkers(store, target.project).is_swept)
    before_switch(final)
    replace_catalog(store, settings, final, interim)
    names = tuple(view.name for view in new_views(previous, target))
    seconds = time.monotonic() - started
    log.info("rebuilt", views=names, events=build.events, seconds=round(seconds, 1), catalog=final.version)
    return Rebuilt(names, build.events, seconds, final)


@dataclass(slots=True)
class _Reader:
    """Where a build stands in one partition of the stream, and the ids it remembers."""

    source: Source
    applied: Applied
    memory: Deduplicator


class Build:
    """Layouts under construction. `events` is how many events they were given so far."""

    def __init__(
        self,
        store: redis.Redis,
        settings: Settings,
        catalog: Catalog,
        layouts: Sequence[Layout],
        report: Report = _silent,
    ) -> None:
        self.events = 0
        self._settings, self._catalog, self._report = settings, catalog, report
        self._offline = OfflineStore(settings.data_dir)
        self._store = store = one_run(store)
        self._stream = Logs(EventStream(store, catalog.project), catalog, settings)
        self._markers, self._layouts = Markers(store, catalog.project), LayoutMarkers(store, catalog.project)
        self._online = OnlineStore(store)
        self._forgotten = ForgottenKeys(self._stream, self._offline)
        self._shares = ViewShares(store, catalog, self._forgotten)
        builds = [(layout, self._markers.begin_build(layout.view)) for layout in layouts]
        self._kept = [Kept(layout.view, catalog_of(catalog, layout), build, ARRIVING) for layout, build in builds]
        self._sources = {
            (source.name, partition): source
            for kept in self._kept
            for source, partition in feeds(kept.catalog, kept.view)
        }
        self._reached: dict[Place, Applied] = {}
        self._readers: dict[Place, _Reader] = {}
        self._firsts: dict[Place, int] = {}
        self._total = 0

    def close(self) -> None:
        """Lets go of the topics that it reads."""
        self._stream.close()

    def run(self) -> None:
        """Builds the layouts up to where no worker has come, has them stated to be complete, and follows the stream
        until every worker that runs has noticed."""
        held = self._layouts.held()
        if all(layout_field(kept.view) in held.ready for kept in self._kept):
            return  # nothing to build, or an earlier run had come this far
        for kept in self._kept:
            self._load_file(kept)
        self._total = self._count()
        for place in self._sources:
            self._replay(place)
        self._catch_up()
        while (outcome := self._complete()) != "complete":
            if outcome == "lost":
                raise StoreLostError(LOST)
            self._follow()
            self._replay_imports()
        settled_s = time.monotonic() + SETTLE_S
        while time.monotonic() < settled_s:
            self._follow()
        ready = self._layouts.held().ready
        if not all(layout_field(kept.view) in ready for kept in self._kept):
            raise StoreLostError(LOST)

    def _load_file(self, kept: Kept) -> None:
        """The rows of the view's batch source up to the present, as `headrace materialize` writes them."""
        view = kept.view
        if view.batch is None or not view.online:
            return
        now_us = time.time_ns() // 1_000 if kept.catalog.clock == "wall" else None
        if not batch_path(view.batch, self._settings.repo).exists():
            log.warning("a batch source has no file yet", view=view.name, path=view.batch.path)
            return
        scan = BatchScan(view, kept_columns(kept), self._settings.repo, None, now_us)
        load_rows(self._store, kept, scan, self._forgotten)

    def _count(self) -> int:
        """How many events there are to replay, as far as the streams and the imports tell."""
        streams = [place for place in self._sources if place[1] != IMPORTS]
        imports = [place for place in self._sources if place[1] == IMPORTS]
        heads = [head.total for head in self._stream.heads(streams).values() if head is not None]
        return sum(heads) + sum(self._log(place).end().total for place in imports)

    def _log(self, place: Place) -> SourceLog:
        return SourceLog(self._stream, self._offline, self._sources[place], place[1], self._catalog.clock)

    def _replay(self, place: Place) -> None:
        """Everything that the archive has of a partition, however much that becomes meanwhile; the stream comes next.

        Raises StreamGapError when a part of the log is nowhere.
        """
        past, reached = self._log(place), self._reached.get(place, Applied())
        past.refuse_gap(None, True)
        while past.archived > reached.offset:
            end = past.end()
            for batch in past.replay(reached, end):
                self._merge(batch)
            reached, past = end, self._log(place)
        self._reached[place] = past.continue_at(reached)
        if place[1] != IMPORTS:
            at = self._reached[place]
            self._readers[place] = _Reader(self._sources[place], at, past.memory(at))

    def _catch_up(self) -> None:
        """What the streams hold by now."""
        heads = {place: head.offset for place, head in self._stream.heads(list(self._readers)).items() if head}
        while any(self._readers[place].applied.offset < offset for place, offset in heads.items()):
            if not self._follow():
                builds = self._layouts.held().builds
                if any(builds.get(layout_field(kept.view)) != kept.build for kept in self._kept):
                    raise StoreLostError(LOST)

    def _replay_imports(self) -> None:
        """Imports that came since."""
        imports = [place for place in self._sources if place[1] == IMPORTS]
        for place, held in self._markers.applied("source", imports).items():
            if held is not None and held.offset > self._reached[place].offset:
                self._replay(place)

    def _follow(self) -> bool:
        """Takes what the streams hold next; whether there was anything."""
        if not self._readers:
            time.sleep(BLOCK_MS / 1_000)
        after = {place: reader.applied.offset for place, reader in self._readers.items()}
        found = self._stream.read(after, ENTRIES, BLOCK_MS) if after else {}
        for place, entries in found.items():
            if follows(self._readers[place].applied, entries[0]):
                self._take(place, self._readers[place], entries)
            else:  # trimmed since: by then the archive has it
                self._replay(place)
        return bool(found)

    def _take(self, place: Place, reader: _Reader, entries: Sequence[Entry]) -> None:
        if any(entry.catalog > self._catalog.version for entry in entries):
            raise UnavailableError("The definitions were changed by another command during the rebuild; run it again.")
        newest = reader.applied.watermark_us, reader.applied.arrived_us
        batch = parse_entries(reader.source, place[1], entries, self._catalog.clock, *newest)
        reader.memory.mark(batch)
        self._merge(batch)
        self._reached[place] = reader.applied = batch.end

    def _merge(self, batch: EventBatch) -> None:
        place = (batch.source.name, batch.partition)
        if batch.source.kafka is None and batch.partition != IMPORTS:
            self._markers.announce(*place, batch.end)
        merge_batch(self._online, self._shares, batch, self._kept)
        if len(batch):
            first = batch.event_time_us.min() if batch.partition == IMPORTS else batch.event_time_us[0]
            known = self._firsts.setdefault(place, int(first))
            self._firsts[place] = min(known, int(first)) if batch.partition == IMPORTS else known
        self.events += len(batch) + len(batch.dead)
        self._report(self.events, max(self._total, self.events))

    def _complete(self) -> Outcome:
        new = [NewLayout(kept.view, kept.build, self._ready(kept.view)) for kept in self._kept]
        return self._layouts.complete(new, {place: at.offset for place, at in self._reached.items()})

    def _ready(self, view: FeatureView) -> Ready:
        """What the layout is complete from, and up to where."""
        mine = {place: at for place, at in self._reached.items() if place[0] == view.source}
        kept_us = self._offline.kept_from_us(view.source or "")
        importing = is_importing(self._store, self._catalog.project, view.source or "")
        sure = [place for place in mine if place[1] != IMPORTS or not importing]
        firsts = [self._firsts[place] for place in sure if place in self._firsts]
        known = [first if kept_us is None else max(first, kept_us) for first in firsts]
        now_us = time.time_ns() // 1_000 if self._catalog.clock == "wall" else None
        applied = {f"{name}|{partition}": str(at) for (name, partition), at in mine.items()}
        return Ready(min(known) if known else now_us, applied)
