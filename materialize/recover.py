"""Recovery: what a project's store has lost, what of it comes back from where, and doing so.

Most of it mends itself: a worker builds views that are not ready from the archive, and catches up with it. What needs a
decision is a gap, events that neither the archive nor the stream holds: consumers stop there until it is accepted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import redis

from headrace.catalog.definitions import Catalog, FeatureView
from headrace.compute.events import EventBatch
from headrace.errors import StreamGapError, UnavailableError
from headrace.settings import Settings, load_settings
from headrace.stores.gaps import Gap, Loss, gap_field, record_loss
from headrace.stores.kafka_epochs import Epoch, begin_epoch
from headrace.stores.keys import entity_prefix, markers_key
from headrace.stores.logs import Logs
from headrace.stores.markers import Applied, Markers, places
from headrace.stores.offline import OfflineStore
from headrace.stores.offline_reads import open_table
from headrace.stores.stream import EventStream
from headrace.telemetry import get_logger
from materialize.in_doubt import build_anew
from materialize.layouts import Kept
from materialize.lease import Lease
from materialize.log import SourceLog
from materialize.topics_anew import epoch_after
from materialize.worker import Worker

__all__ = ["Broken", "Findings", "accept_losses", "build_views", "count_entities", "diagnose", "raise_ends"]

WAIT_S = 0.2

log = get_logger()

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Broken:
    """A partition of which the log has a gap: `roles` stopped or would stop there, the earliest at `gap`, and the
    archive ends at `archived`. `beyond` says whether values online may hold events that the archive will never get;
    `epoch` where the messages of a topic that ends too early, or was made again, will stand, None where it goes on as
    it is."""

    gap: Gap
    roles: tuple[str, ...]
    upto: int
    total: int
    lost: int | None
    at_least: int
    beyond: bool
    archived: int
    epoch: Epoch | None = None

    @property
    def place(self) -> Place:
        return self.gap.source, self.gap.partition

    def __str__(self) -> str:
        if self.lost is not None:
            what = f"{self.lost:,} events"
        elif self.at_least:
            what = f"at least {self.at_least:,} events"
        else:
            what = "events, nobody knows how many,"
        place = f"{self.gap.source}, partition {self.gap.partition}"
        until = f"before {self.gap.next.offset}" if self.gap.next else "up to where the stream goes on"
        return f"{place}: {what} after {self.gap.at} and {until} are neither in the archive nor in the stream"


@dataclass(slots=True)
class Findings:
    """What is wrong with a project's store.

    `unready` are views that a worker builds, `doubtful` those that hold events which the archive will never get;
    `events` is how many archived ones are merged to build both. `ahead` are partitions of which the archive holds more
    than the views, `ends` how far every partition was ever archived or applied. `root` is the folder of the archive.
    """

    root: Path
    broken: list[Broken] = field(default_factory=list)
    unready: list[FeatureView] = field(default_factory=list)
    doubtful: list[FeatureView] = field(default_factory=list)
    ahead: list[Place] = field(default_factory=list)
    ends: dict[Place, int] = field(default_factory=dict)
    events: int = 0

    @property
    def healthy(self) -> bool:
        return not (self.broken or self.unready or self.ahead)

    @property
    def built(self) -> list[FeatureView]:
        """The views that are built anew once the losses are accepted."""
        return [*self.unready, *self.doubtful]

    @property
    def materialized(self) -> list[FeatureView]:
        """Those of them whose batch rows are to be materialized again."""
        return [view for view in self.built if view.batch is not None and view.online]


def diagnose(store: redis.Redis, offline: OfflineStore, catalog: Catalog, settings: Settings | None = None) -> Findings:
    """What is wrong; reads only. Of a topic that cannot be reached nobody knows."""
    with closing(Logs(EventStream(store, catalog.project), catalog, settings or load_settings())) as logs:
        return _diagnose(logs, offline, catalog)


def _diagnose(stream: Logs, offline: OfflineStore, catalog: Catalog) -> Findings:
    markers, found = Markers(stream.store, catalog.project), Findings(offline.root)
    wanted = {(source.name, partition): source for source, partition in places(catalog)}
    applied = markers.applied("source", wanted)
    for place, source in wanted.items():
        past = SourceLog(stream, offline, source, place[1], catalog.clock)
        held = applied[place]
        try:
            broken = _broken(stream, markers, past, held)
        except UnavailableError as error:
            log.warning("left out", problem=str(error))
            continue
        if broken is not None:
            found.broken.append(broken)
        elif held is not None and past.archived > held.offset:
            found.ahead.append(place)
        found.ends[place] = max(past.archived, held.offset if held else 0)
    found.unready = [view for view in catalog.views if markers.ready(view) is None]
    doubtful = {name for broken in found.broken if broken.beyond for name in _views(catalog, broken.gap.source)}
    found.doubtful = [view for view in catalog.views if view.name in doubtful and view not in found.unready]
    found.events = sum(_archived_events(offline, name) for view in found.built for name in _sources(view))
    return found


def _views(catalog: Catalog, source: str) -> list[str]:
    if source.startswith("writes/"):
        return [source.removeprefix("writes/")]
    return [view.name for view in catalog.views if view.source == source]


def _sources(view: FeatureView) -> list[str]:
    direct = [f"writes/{view.name}"] if view.kind != "windowed" else []
    return direct + ([view.source] if view.source else [])


def _archived_events(offline: OfflineStore, source: str) -> int:
    table = open_table(offline.events_path(source))
    return 0 if table is None else int(sum(table.get_add_actions(flatten=True)["num_records"].to_pylist()))


def _broken(stream: Logs, markers: Markers, past: SourceLog, held: Applied | None) -> Broken | None:
    """The gap of one partition, if worker or archiver meets one."""
    place = (past.source.name, past.partition)
    archived = past.place()
    gaps: dict[str, Gap] = {}
    for role, at in (("archiver", archived), ("worker", held)):
        try:
            past.refuse_gap(at, builds=False)
        except StreamGapError as error:
            gaps[role] = cast(Gap, error.gap)
    if not gaps:
        return None
    first = min(gaps.values(), key=lambda gap: gap.at.offset)
    is_topic_anew = past.source.kafka is not None and first.next is None
    marks = (archived, held, markers.applied("archived", [place])[place], markers.applied("trimmed", [place])[place])
    known = [mark for mark in marks if mark is not None]
    head = stream.head(*place)
    if first.next is not None:
        upto, total = first.next.offset - 1, first.next.before
    else:
        upto = max([mark.offset for mark in known] + ([head.offset] if head else [])) + 1
        total = head.total if head else 0
    if first.is_shrunk and archived.offset > first.at.offset:
        at_least, beyond = first.at.total - total, True
    else:
        at_least = max(mark.total for mark in known) - archived.total if archived.total else 0
        ends_early = "archiver" in gaps or first.next is None
        beyond = ends_early and held is not None and held.offset > archived.offset
    found = Broken(first, tuple(sorted(gaps)), upto, total, first.lost, max(at_least, 0), beyond, archived.offset)
    if is_topic_anew:  # while it was looked for, a worker may have read on in what came in its place
        end = head.offset if head is not None and past.is_same is not False else 0
        missing = max(mark.offset for mark in known) - max(archived.offset, end)
        found = replace(found, total=upto, at_least=max(missing, 0), beyond=held is not None)
        return replace(found, epoch=epoch_after(stream, past, upto))
    return found


def accept_losses(store: redis.Redis, catalog: Catalog, found: Findings) -> None:
    """Records every loss, behind which the consumers then go on, and has views that hold events which the archive will
    never get built anew without them; and with them what it got after all in the meantime."""
    stream, topics = EventStream(store, catalog.project), {source.name for source in catalog.sources if source.kafka}
    for broken in found.broken:
        if broken.epoch is not None:
            begin_epoch(found.root, broken.place, broken.epoch)
        elif broken.place[0] not in topics:
            stream.raise_end(*broken.place, broken.upto)
        goes_on = broken.place[0] not in topics or broken.epoch is not None or broken.gap.next is not None
        total = broken.total if goes_on else None
        loss = Loss(broken.gap.at.offset, broken.upto, total, broken.lost, time.time_ns() // 1_000)
        record_loss(store, catalog.project, *broken.place, loss)
    offline = OfflineStore(found.root.parent)
    late = {it.gap.source for it in found.broken if offline.archived_offset(*it.place) > it.archived}
    build_anew(store, catalog, late | {it.gap.source for it in found.broken if it.beyond}, goes_back=True)


def raise_ends(store: redis.Redis, catalog: Catalog, found: Findings) -> None:
    """Later entries of every stream stand after all that was ever archived or applied."""
    stream, topics = EventStream(store, catalog.project), {item.name for item in catalog.sources if item.kafka}
    for place, offset in found.ends.items():
        if offset and place[0] not in topics:
            stream.raise_end(*place, offset)


def count_entities(store: redis.Redis, catalog: Catalog, views: Sequence[FeatureView]) -> int:
    """How many entity keys of these views the store holds; reads every key's name."""
    prefixes = {entity_prefix(catalog.project, view.entities) for view in views}
    escaped = ["".join(f"[{c}]" if c in "*?" else f"\\{c}" if c in "[]\\" else c for c in text) for text in prefixes]
    return sum(1 for text in escaped for _ in store.scan_iter(match=f"{text}*", count=10_000))


class _Builder(Worker):
    """A worker that only starts, and says how many events it merged."""

    def __init__(
        self,
        store: redis.Redis,
        offline: OfflineStore,
        catalog: Catalog,
        settings: Settings,
        on_events: Callable[[int], None],
    ) -> None:
        super().__init__(store, offline, catalog, settings)
        self._on_events = on_events

    def _write(self, batch: EventBatch, layouts: Iterable[Kept]) -> None:
        super()._write(batch, layouts)
        self._on_events(len(batch))


def build_views(
    settings: Settings,
    store: redis.Redis,
    offline: OfflineStore,
    catalog: Catalog,
    on_events: Callable[[int], None],
) -> bool:
    """Has every view built and every partition taken up, by the worker that is at work, else by this process (whether
    it was says the reply); returns when that is done. `on_events` hears of the events that this process merged."""
    lease = Lease(store, catalog.project, "worker", settings.lease)
    while not _is_built(store, catalog):
        if lease.take():
            with lease.renewed(), closing(_Builder(store, offline, catalog, settings, on_events)) as builder:
                builder.start()
            return True
        time.sleep(WAIT_S)
    return False


def _is_built(store: redis.Redis, catalog: Catalog) -> bool:
    wanted = [(source.name, partition) for source, partition in places(catalog)]
    markers = Markers(store, catalog.project)
    stops = store.hmget(markers_key(catalog.project), [gap_field("worker", *place) for place in wanted] or ["-"])
    ready = all(markers.ready(view) is not None for view in catalog.views)
    return ready and not any(cast(list[bytes | None], stops)) and all(markers.applied("source", wanted).values())
