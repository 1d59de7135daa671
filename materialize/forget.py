"""Forgetting, the worker's part: it alone knows where every source stands, so it draws the line.

    line       the positions that it has applied, at least all that the streams held when the order was seen
    tombstone  in the store, before anything is deleted: whoever writes the key looks for it
    values     deleted in every layout; of keys of several entities, those that hold the forgotten one
    order      the archiver then deletes the rows (see forget_archive.py)

Each step can come again: an order stays until its receipt is given.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import orjson

from headrace.catalog.definitions import Catalog, Layout, Source
from headrace.errors import HeadraceError, RequestError
from headrace.stores.cluster import is_cluster
from headrace.stores.codec.header import unpack_header
from headrace.stores.keys import entity_key, entity_prefix, layout_field, lease_key, replay_role
from headrace.stores.layout_markers import LayoutMarkers
from headrace.stores.logs import LogReader
from headrace.stores.markers import IMPORTS, Applied, Markers
from headrace.stores.offline import OfflineStore
from headrace.stores.orders import Order, acknowledge, give_order, waiting_orders
from headrace.stores.tombstones import (
    Tombstone,
    Tombstones,
    add_tombstones,
    load_tombstones,
    place_name,
    project_salt,
)
from headrace.telemetry import get_logger
from materialize.erase import Eraser
from materialize.layouts import Kept, catalog_of, feeds, stored_layouts

__all__ = ["Forgetter", "glob", "stored_layouts"]

Place = tuple[str, int]
log = get_logger()


class Forgetter:
    """Carries out orders to forget, for the worker, between its batches."""

    def __init__(self, log: LogReader, offline: OfflineStore) -> None:
        self._log, self._store, self._offline = log, log.store, offline
        self._lines: dict[str, dict[Place, int]] = {}

    def step(self, catalog: Catalog, applied: Mapping[Place, Applied]) -> None:
        """Looks for orders; one is carried out once everything that was there when it was first seen is applied."""
        for order in waiting_orders(self._store, catalog.project, "worker"):
            if self._is_replaying(catalog):
                return
            if order.id not in self._lines:
                self._lines[order.id] = self._heads(catalog, applied)
                acknowledge(self._store, catalog.project, order, "started", by="worker")
            line = self._lines[order.id]
            if any(place in applied and applied[place].offset < offset for place, offset in line.items()):
                continue
            self._carry_out(catalog, order, applied)
            del self._lines[order.id]

    def _is_replaying(self, catalog: Catalog) -> bool:
        """Whether letters are replayed on a cluster, where no transaction sees that their keys are forgotten."""
        keys = [lease_key(catalog.project, replay_role(source.name)) for source in catalog.sources]
        return is_cluster(self._store) and any(self._store.exists(key) for key in keys)

    def _heads(self, catalog: Catalog, applied: Mapping[Place, Applied]) -> dict[Place, int]:
        topics = {source.name for source in catalog.sources if source.kafka is not None}
        streams = [place for place in applied if place[1] != IMPORTS and place[0] not in topics]
        heads = {place: self._log.head(*place) for place in streams}
        return {place: head.offset for place, head in heads.items() if head is not None}

    def _carry_out(self, catalog: Catalog, order: Order, applied: Mapping[Place, Applied]) -> None:
        try:
            done = self._forget(catalog, order, applied)
        except HeadraceError as error:
            log.error("order failed", order=order.order, error=str(error))
            acknowledge(self._store, catalog.project, order, "failed", str(error), by="worker")
        else:
            log.info("forgotten online", entities=order.body["entities"], values=done["values"])
            acknowledge(self._store, catalog.project, order, "done", orjson.dumps(done).decode(), by="worker")

    def _forget(self, catalog: Catalog, order: Order, applied: Mapping[Place, Applied]) -> dict[str, Any]:
        entities = tuple(sorted(order.body["entities"]))
        layouts = [layout for layout in stored_layouts(catalog) if set(entities) <= set(layout.view.entities)]
        if not layouts:
            raise RequestError(f"No view has the entities {', '.join(entities)}; there is nothing to forget.")
        places = self._places(catalog, layouts, applied)
        keys = [entity_key(entity_prefix(catalog.project, entities), values) for values in order.body["keys"]]
        known = load_tombstones(self._store, self._offline.root, catalog.project)
        salt = project_salt(self._store, self._offline.root, catalog.project)
        at_us = _present_us(catalog, applied)
        made_us = time.time_ns() // 1_000
        items = [Tombstone(Tombstones(salt).digest(key), entities, at_us, places, made_us) for key in keys]
        add_tombstones(self._store, catalog.project, known, items)
        tombstones = load_tombstones(self._store, self._offline.root, catalog.project)
        values = self._erase(catalog, layouts, entities, list(zip(order.body["keys"], items, strict=True)), tombstones)
        body = {"entities": entities, "keys": order.body["keys"], "digests": [item.digest for item in items]}
        archive = give_order(self._store, catalog.project, "forget", "", body)
        return {
            "digests": [item.digest for item in items],
            "at_us": at_us,
            "places": {place: str(offset) for place, (offset, _) in places.items()},
            "values": values,
            "still_in": still_in(catalog, entities, {place.rpartition("|")[0] for place in places}),
            "archive_order": archive,
        }

    def _places(
        self, catalog: Catalog, layouts: Sequence[Layout], applied: Mapping[Place, Applied]
    ) -> dict[str, tuple[int, int | None]]:
        """The line: by place, what is applied there; where the worker does not read now, all that there is."""
        wanted: dict[Place, Source] = {}
        for layout in layouts:
            wanted |= {(source.name, part): source for source, part in feeds(catalog_of(catalog, layout), layout.view)}
        held = Markers(self._store, catalog.project).applied("archived", wanted)
        found = {}
        for place in wanted:
            mark, kept = applied.get(place), held[place]
            if mark is None and place[1] != IMPORTS:
                head = self._log.head(*place)
                mark = Applied(head.offset) if head is not None else None
            offset = max(mark.offset if mark else 0, kept.offset if kept and place[1] == IMPORTS else 0)
            found[place_name(*place)] = (offset, mark.watermark_us if mark else None)
        return found

    def _erase(
        self,
        catalog: Catalog,
        layouts: Sequence[Layout],
        entities: Sequence[str],
        keys: Sequence[tuple[Sequence[int | str], Tombstone]],
        tombstones: Tombstones,
    ) -> dict[str, int]:
        """Deletes the values of every key; returns how many by view."""
        eraser, builds = Eraser(self._log, self._offline, tombstones), LayoutMarkers(self._store, catalog.project)
        held, found = builds.held().builds, {layout.view.name: 0 for layout in layouts}
        kept = [
            Kept(layout.view, catalog_of(catalog, layout), held.get(layout_field(layout.view), 0)) for layout in layouts
        ]
        for values, item in keys:
            for mine in {tuple(sorted(one.view.entities)) for one in kept}:
                same = [one for one in kept if tuple(sorted(one.view.entities)) == mine]
                for key in self._keys(catalog.project, mine, dict(zip(entities, map(str, values), strict=True))):
                    for one in same:
                        found[one.view.name] += eraser.erase(one, key, item)
                    self._erase_unknown(eraser, key, {layout_field(one.view) for one in same}, item)
        return found

    def _keys(self, project: str, entities: Sequence[str], values: Mapping[str, str]) -> Iterator[bytes]:
        """The keys of these entities that hold the values: one, or those that a scan of the store finds."""
        prefix = entity_prefix(project, entities)
        if set(entities) == set(values):
            yield entity_key(prefix, [values[name] for name in entities])
            return
        own = {name: entity_key("", [value]).decode() for name, value in values.items()}
        pattern = glob(prefix) + ",".join(glob(own[name]) if name in own else "*" for name in entities)
        for key in cast(Iterator[bytes], self._store.scan_iter(match=pattern, count=10_000)):
            parts = dict(zip(entities, key.decode()[len(prefix) :].split(","), strict=False))
            if all(parts.get(name) == value for name, value in own.items()):
                yield key

    def _erase_unknown(self, eraser: Eraser, key: bytes, known: set[str], item: Tombstone) -> None:
        """Fields of layouts that no catalog names any more, left to be swept."""
        for field, blob in cast(dict[bytes, bytes], self._store.hgetall(cast(str, key))).items():
            newest = max((held[0] for held in unpack_header(blob, blob[1]).positions.values()), default=0)
            line = max((offset for offset, _ in item.places.values()), default=0)
            if field.decode() not in known and newest <= line:
                eraser.put(key, field.decode(), blob, b"")


def still_in(catalog: Catalog, entities: Sequence[str], sources: set[str]) -> list[str]:
    """Views of other entities that count the same events, until they are built anew."""
    others = (view for view in catalog.views if view.source in sources)
    return [view.name for view in others if not set(entities) <= set(view.entities)]


def _present_us(catalog: Catalog, applied: Mapping[Place, Applied]) -> int:
    """The wall's; under the event clock the largest watermark, as long as there is one."""
    marks = [mark.watermark_us for mark in applied.values() if mark.watermark_us is not None]
    return max(marks) if catalog.clock == "event" and marks else time.time_ns() // 1_000


def glob(text: str) -> str:
    """`text` as a pattern of SCAN that matches it alone."""
    return "".join(f"\\{c}" if c in "*?[]^-\\" else c for c in text)
