"""The worker as a process: it takes the lease or stands by, and starts again from the markers when something fails."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import redis
import structlog

from headrace.catalog.definitions import Catalog, catalog_to_json
from headrace.errors import HeadraceError, SettingsError, StaleCatalogError, UnavailableError
from headrace.settings import Settings
from headrace.stores.catalogs import find_project, load_catalog, read_mirror
from headrace.stores.connection import open_store
from headrace.stores.keys import catalog_key
from headrace.stores.logs import Logs
from headrace.stores.offline import OfflineStore
from headrace.stores.stream import EventStream
from materialize.forgotten_again import take_out_again
from materialize.lease import Lease
from materialize.sweep import sweeping
from materialize.worker import BLOCK_MS, Worker

__all__ = ["run_worker"]

_CATALOG_CHECK_S = 1.0
_BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0)

log = structlog.get_logger(__name__)


def run_worker(settings: Settings, stop: threading.Event) -> None:
    """Works until `stop` is set, or stands by while another worker does; a new catalog or a failing store starts it
    again from the markers.

    Raises SettingsError or UnavailableError when the set-up cannot work at all.
    """
    store = open_store(settings)
    project = find_project(settings)
    offline = OfflineStore(settings.data_dir)
    _look_for_forgotten(store, settings, offline, _catalog(store, settings, project))
    failures, lease = 0, Lease(store, project, "worker", settings.lease)
    with lease.renewed(), sweeping(settings):
        while lease.wait(stop):
            try:
                with closing(Worker(store, offline, _catalog(store, settings, project), settings)) as worker:
                    worker.start()
                    log.info("worker started", catalog=worker.catalog.version)
                    failures = 0
                    _work(worker, store, stop, lease)
            except StaleCatalogError:
                stop.wait(_BACKOFF_S[0])
            except SettingsError:
                raise
            except Exception as error:  # the outermost loop: whatever it is, the log still has the events
                log.error("worker starts again", error=str(error), kind=type(error).__name__)
                stop.wait(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
    store.close()


def _look_for_forgotten(store: redis.Redis, settings: Settings, offline: OfflineStore, catalog: Catalog) -> None:
    """What this process wrote in its last life, and could not look after; the worker at work goes on meanwhile."""
    with closing(Logs(EventStream(store, catalog.project), catalog, settings)) as logs:
        try:
            take_out_again(logs, offline, catalog)
        except (redis.RedisError, HeadraceError) as error:
            log.error("what was forgotten could not be looked for again", error=str(error))


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


def _work(worker: Worker, store: redis.Redis, stop: threading.Event, lease: Lease) -> None:
    """Steps until told to stop, the lease is lost, the catalog changes, or a stopped partition can go on."""
    checked, more = time.monotonic(), False
    while not stop.is_set() and lease.held:
        worker.step(0 if more else BLOCK_MS)
        more = more and worker.take_imports()
        if time.monotonic() - checked > _CATALOG_CHECK_S:
            if not worker.follow(load_catalog(store, worker.catalog.project)) or worker.look():
                return
            worker.obey()
            checked, more = time.monotonic(), True
