"""Values of keys that were forgotten a while ago, taken out once more when a worker begins.

A writer that slept through a forgetting looks after its batch whether there was one; if it dies before it looks, what
it wrote stays. A replica that lagged brings back what had been deleted. Of both, tombstones tell: they hold no plain
key, so all keys are gone through, but only for as long after a forgetting as such a thing may come to light.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import cast

from headrace.catalog.definitions import Catalog
from headrace.stores.keys import entity_prefix, layout_field
from headrace.stores.layout_markers import LayoutMarkers
from headrace.stores.logs import LogReader
from headrace.stores.offline import OfflineStore
from headrace.stores.tombstones import Tombstones, load_tombstones
from headrace.telemetry import get_logger
from materialize.erase import Eraser, held_keys
from materialize.forget import glob, stored_layouts
from materialize.layouts import Kept, catalog_of

__all__ = ["take_out_again"]

RECENT_US = 600_000_000
CHUNK_KEYS = 10_000

log = get_logger()


def take_out_again(stream: LogReader, offline: OfflineStore, catalog: Catalog) -> int:
    """Takes the keys of tombstones younger than RECENT_US out of every layout; returns how many values were changed.

    Raises as the log's readers do where a value must be made anew from a part of it that is lost.
    """
    known = load_tombstones(stream.store, offline.root, catalog.project)
    since_us = time.time_ns() // 1_000 - RECENT_US
    recent = Tombstones(known.salt, [item for item in known.items.values() if item.made_us >= since_us], known.version)
    if not recent:
        return 0
    eraser, builds = Eraser(stream, offline, known), LayoutMarkers(stream.store, catalog.project).held().builds
    layouts = [
        Kept(layout.view, catalog_of(catalog, layout), builds.get(layout_field(layout.view), 0))
        for layout in stored_layouts(catalog)
        if any(set(entities) <= set(layout.view.entities) for entities in recent.entity_sets())
    ]
    changed = 0
    for prefix in sorted({entity_prefix(catalog.project, kept.view.entities) for kept in layouts}):
        mine = [kept for kept in layouts if entity_prefix(catalog.project, kept.view.entities) == prefix]
        for keys in _chunks(stream, prefix):
            for kept in mine:
                changed += sum(eraser.erase(kept, key, item) for key, item in held_keys(kept, keys, recent))
    if changed:
        log.info("forgotten keys were looked for again", values=changed)
    return changed


def _chunks(stream: LogReader, prefix: str) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    for key in cast(Iterator[bytes], stream.store.scan_iter(match=glob(prefix) + "*", count=CHUNK_KEYS)):
        chunk.append(key)
        if len(chunk) == CHUNK_KEYS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
