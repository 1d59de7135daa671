"""Layouts that a process writes: which it keeps up to date, what feeds them, and how a batch is merged into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from headrace.catalog.definitions import Catalog, Column, FeatureView, Layout, Source, write_source
from headrace.compute.events import EventBatch
from headrace.dtypes import arrow_type
from headrace.stores.codec.rows import DIRECT, STREAM
from headrace.stores.keys import layout_field
from headrace.stores.layout_markers import HeldLayouts
from headrace.stores.markers import import_places
from headrace.stores.online import OnlineStore, Update
from headrace.stores.view_writes import Arrived, row_update, window_update
from materialize.view_shares import ViewShares

__all__ = [
    "Kept",
    "catalog_of",
    "feeds",
    "kept_layouts",
    "layout_updates",
    "merge_batch",
    "stored_layouts",
    "unknown_layouts",
]

ARRIVING, SERVING, RETIRING = range(3)


@dataclass(frozen=True, slots=True)
class Kept:
    """A layout that is kept up to date: `catalog` has the entities that it was compiled with. Of one batch the layouts
    of a lower `rank` are written first, so that a reader who goes on to the next catalog never un-sees an event."""

    view: FeatureView
    catalog: Catalog
    build: int
    rank: int = SERVING

    def is_fed_by(self, source: str) -> bool:
        if source.startswith("writes/"):
            return self.view.kind != "windowed" and source == f"writes/{self.view.name}"
        return self.view.source == source


def catalog_of(catalog: Catalog, layout: Layout) -> Catalog:
    """`catalog` as the layout knows it."""
    mine = {entity.name: entity for entity in layout.entities}
    others = tuple(entity for entity in catalog.entities if entity.name not in mine)
    return replace(catalog, entities=(*others, *mine.values()))


def stored_layouts(catalog: Catalog) -> list[Layout]:
    """Every layout that the store may hold values of."""
    serving = [Layout(view, tuple(catalog.entity(name) for name in view.entities)) for view in catalog.views]
    return [*serving, *catalog.arriving, *catalog.retiring]


def kept_layouts(catalog: Catalog, held: HeldLayouts, builds: Mapping[str, int], now_us: int) -> dict[str, Kept]:
    """By layout field, what a worker keeps up to date: the views that serve (`builds` has theirs), and the complete
    ones of those that arrive or retire; `now_us` is the store's clock."""
    kept = {}
    beside = [(layout, ARRIVING) for layout in catalog.arriving]
    beside += [(layout, RETIRING) for layout in catalog.retiring if layout.until_us > now_us]
    for layout, rank in beside:
        field = layout_field(layout.view)
        if field in held.ready and field in held.builds:
            kept[field] = Kept(layout.view, catalog_of(catalog, layout), held.builds[field], rank)
    for view in catalog.views:
        kept[layout_field(view)] = Kept(view, catalog, builds[layout_field(view)])
    return kept


def unknown_layouts(catalog: Catalog, held: HeldLayouts) -> list[str]:
    """Complete layouts that a later catalog than this one names. Those that no catalog names any more do not count: a
    layout has the version of its first catalog as its generation."""
    known = {layout_field(view) for view in catalog.stored_views}
    return sorted(field for field in held.ready - known if int(field.rpartition(".")[2]) > catalog.version)


def feeds(catalog: Catalog, view: FeatureView) -> list[tuple[Source, int]]:
    """Every (source, partition) whose events the view holds: its source's, imports among them, and its direct writes.
    `catalog` has the view's entities."""
    found = []
    if view.source is not None:
        source = catalog.source(view.source)
        found += [(source, partition) for partition in range(source.partitions)]
        found += [(source, partition) for other, partition in import_places(catalog) if other.name == source.name]
    if view.kind != "windowed":
        written = write_source(catalog, view)
        found += [(written, partition) for partition in range(written.partitions)]
    return found


def merge_batch(online: OnlineStore, shares: ViewShares, batch: EventBatch, layouts: Iterable[Kept]) -> None:
    """Merge a batch of one source into the layouts that it feeds, their keys in one stream of commands per rank.

    Once more if keys were forgotten meanwhile: what is no more may have kept a row of the batch from being written.
    """
    fed, counted = [kept for kept in layouts if kept.is_fed_by(batch.source.name)], dict(shares.counts)
    while fed and not _merged(online, shares, batch, fed):
        shares.counts = dict(counted)
        online.forget_known()


def _merged(online: OnlineStore, shares: ViewShares, batch: EventBatch, fed: Sequence[Kept]) -> bool:
    """Whether it is merged, and nothing was forgotten meanwhile."""
    if shares.forgotten is not None:
        batch = shares.forgotten.living(fed[-1].catalog, batch)
    written: list[tuple[Kept, Sequence[bytes]]] = []
    for rank in sorted({kept.rank for kept in fed}):
        ranked = [kept for kept in fed if kept.rank == rank]
        updates = layout_updates(shares, batch, ranked)
        online.update(*updates)
        by_field = {layout_field(kept.view): kept for kept in ranked}
        written += [(by_field[update.field], update.keys) for update in updates]
    return shares.forgotten is None or not written or not shares.forgotten.settle(written)


def layout_updates(shares: ViewShares, batch: EventBatch, layouts: Sequence[Kept]) -> list[Update]:
    """What merges a batch of one source into these layouts, all of which it feeds."""
    is_direct = batch.source.name.startswith("writes/")
    kept_by_view = {kept.view: kept for kept in layouts}
    updates = []
    for view, events in shares.of(batch, list(kept_by_view)):
        kept = kept_by_view[view]
        if view.kind == "windowed":
            update, skipped = window_update(kept.catalog, view, events, kept.build)
        else:
            events = _whole(kept.catalog, view, events)
            update, skipped = row_update(kept.catalog, view, events, DIRECT if is_direct else STREAM, kept.build)
            if shares.forgotten is not None:
                update = shares.forgotten.without_gone_rows(kept, update)
        updates.append(update)
        shares.count(view, "null_key", skipped)
    return updates


def _whole(catalog: Catalog, view: FeatureView, events: Arrived) -> Arrived:
    """Rows with every column that the view reads, null where another definition of the view wrote them."""
    missing: list[Column] = [
        column for column in (*catalog.join_keys(view), *view.features) if column.name not in events.columns
    ]
    n = len(events.event_time_us)
    nulls = {column.name: pa.nulls(n, arrow_type(column.dtype)) for column in missing}
    return replace(events, columns={**events.columns, **nulls}) if nulls else events
