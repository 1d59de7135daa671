"""The sweeper: removes what retired layouts left in the online store, some time after nobody reads them any more."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import redis

from headrace.catalog.definitions import Catalog, FeatureView
from headrace.errors import HeadraceError
from headrace.settings import Settings
from headrace.stores.catalogs import find_project, load_catalog
from headrace.stores.connection import open_store
from headrace.stores.keys import entity_prefix, layout_field
from headrace.stores.layout_markers import LayoutMarkers, store_time_us
from headrace.stores.view_writes import expiry_ms
from headrace.telemetry import get_logger

__all__ = ["GRACE_US", "sweep", "sweep_layout", "sweeping"]

GRACE_US = 60_000_000
"""How long after a layout is no longer kept up to date it is swept: a worker that is late has let go of it by then."""
EVERY_S = 5.0
_CHUNK = 1_000
_GLOB = re.compile(r"([*?\[\]\\^])")

_SWEEP = """
local swept = redis.call('HDEL', KEYS[1], ARGV[1])
if swept == 1 and ARGV[2] ~= '0' and redis.call('PTTL', KEYS[1]) == -1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return swept
"""

log = get_logger()


def sweep(store: redis.Redis, catalog: Catalog, now_us: int) -> dict[str, int]:
    """Sweeps the layouts whose time is over at `now_us`, by the store's clock; by layout, how many values that were."""
    layouts = LayoutMarkers(store, catalog.project)
    over = [layout.view for layout in catalog.retiring if layout.until_us + GRACE_US <= now_us]
    left = [view for view in over if not layouts.is_swept(view)]
    return {layout_field(view): sweep_layout(store, catalog, view) for view in left}


def sweep_layout(store: redis.Redis, catalog: Catalog, view: FeatureView) -> int:
    """Removes every value of one layout, then its markers; returns how many values there were.

    A key that no view of an endless window or without a TTL has any more begins to expire. Stopped halfway it is
    safe to do again: that the layout was ever begun is forgotten last.
    """
    layouts = LayoutMarkers(store, catalog.project)
    layouts.forget_ready(view)
    ttl_ms = expiry_ms(_without(catalog, view), view)
    swept, field = 0, layout_field(view)
    for keys in _chunks(store, entity_prefix(catalog.project, view.entities)):
        pipe = store.pipeline(transaction=False)
        for key in keys:
            pipe.eval(_SWEEP, 1, key, field, ttl_ms)
        swept += sum(pipe.execute())
    layouts.forget_build(view)
    return swept


def _without(catalog: Catalog, view: FeatureView) -> Catalog:
    return replace(catalog, retiring=tuple(layout for layout in catalog.retiring if layout.view != view))


def _chunks(store: redis.Redis, prefix: str) -> Iterator[list[bytes]]:
    """The keys that begin with `prefix`, some at a time; one may come twice."""
    found = store.scan_iter(match=_GLOB.sub(r"\\\1", prefix) + "*", count=_CHUNK)
    while chunk := list(itertools.islice(found, _CHUNK)):
        yield chunk


@contextmanager
def sweeping(settings: Settings) -> Iterator[None]:
    """Sweep from a thread, over a connection of its own, for the length of the block."""
    stop = threading.Event()
    thread = threading.Thread(target=_sweep_until, args=(settings, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _sweep_until(settings: Settings, stop: threading.Event) -> None:
    """Sweeps now and then; after a failure later."""
    while not stop.wait(EVERY_S):
        try:
            with open_store(settings) as store:
                catalog = load_catalog(store, find_project(settings))
                for layout, values in sweep(store, catalog, store_time_us(store)).items():
                    log.info("swept a retired layout", layout=layout, values=values)
        except (redis.RedisError, OSError, HeadraceError) as error:
            log.warning("could not sweep, trying again", error=str(error))
