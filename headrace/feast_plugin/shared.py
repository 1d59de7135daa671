"""What the plug-in's classes share within a process: connections, the catalog, and the plans of its lookups.

Feast makes a store object per FeatureStore and hands the configuration to every call; connections outlive them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import redis
from feast.repo_config import RepoConfig

from headrace.catalog.definitions import Catalog, ViewReference
from headrace.feast_plugin.config import settings_of
from headrace.read.plans import LookupPlan, plan_references
from headrace.settings import Settings
from headrace.stores.catalogs import find_catalog, read_mirror
from headrace.stores.connection import open_store
from headrace.stores.online import OnlineStore

__all__ = ["Shared", "close_shared", "shared_of"]

CATALOG_S = 1.0
"""How long a catalog is used before the store is asked again: what it names is kept up to date ten minutes longer."""
MOST_PLANS = 1_000


class Shared:
    """One project in one store, for all threads of this process."""

    def __init__(self, settings: Settings, project: str) -> None:
        self.settings = settings
        self.project = project
        self.writing = threading.Lock()
        self._opening = threading.RLock()
        self._store: redis.Redis | None = None
        self._online: OnlineStore | None = None
        self._catalog: tuple[float, Catalog] | None = None
        self._plans: dict[tuple[int, tuple[ViewReference, ...]], LookupPlan] = {}

    @property
    def store(self) -> redis.Redis:
        """The store, opened when first asked for. Raises SettingsError if it does not answer."""
        with self._opening:
            if self._store is None:
                self._store = open_store(self.settings)
            return self._store

    @property
    def online(self) -> OnlineStore:
        """Values in the store; hold `writing` while using it."""
        with self._opening:
            if self._online is None:
                self._online = OnlineStore(self.store)
            return self._online

    def catalog(self, fresh: bool = False) -> Catalog:
        """The catalog in force, at most CATALOG_S old, asked anew if `fresh`; an empty one before the first apply."""
        now_s = time.monotonic()
        held = self._catalog
        if fresh or held is None or now_s - held[0] > CATALOG_S:
            found = self.newest_catalog() or Catalog(self.project, 0, "wall")
            same = held is not None and held[1] == found
            self._catalog = held = (now_s, held[1] if same and held is not None else found)
        return held[1]

    def catalog_of(self, *views: str) -> Catalog:
        """The catalog in force, asked anew if it lacks one of `views`: somebody may have applied it just now."""
        catalog = self.catalog()
        return catalog if all(map(catalog.has_view, views)) else self.catalog(fresh=True)

    def newest_catalog(self) -> Catalog | None:
        """The later of the store's catalog and the mirrored one: a store may have been emptied."""
        mirror = read_mirror(self.settings)
        known = [find_catalog(self.store, self.project), mirror if mirror and mirror.project == self.project else None]
        return max((one for one in known if one is not None), key=lambda one: one.version, default=None)

    def plan(self, catalog: Catalog, references: Sequence[ViewReference]) -> LookupPlan:
        """The plan of references, made once per catalog."""
        key = (catalog.version, tuple(references))
        plan = self._plans.get(key)
        if plan is None or plan.catalog is not catalog:
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            plan = self._plans[key] = plan_references(catalog, references)
        return plan

    def close(self) -> None:
        """Closes what is open; it opens again when asked for."""
        with self._opening:
            if self._store is not None:
                self._store.close()
            self._store = self._online = self._catalog = None


_KNOWN: dict[tuple[int, Path, str | None, str], Shared] = {}
_KNOWN_LOCK = threading.Lock()


def shared_of(config: RepoConfig) -> Shared:
    """What this process shares of the project and the store that `config` names."""
    settings = settings_of(config)
    key = (os.getpid(), settings.data_dir.absolute(), settings.redis_url, config.project)
    with _KNOWN_LOCK:
        held = _KNOWN.get(key)
        if held is None or held.settings != settings:
            held = _KNOWN[key] = Shared(settings, config.project)
        return held


def close_shared() -> None:
    """Closes every connection that the plug-in holds in this process."""
    with _KNOWN_LOCK:
        for (pid, *_), shared in _KNOWN.items():
            if pid == os.getpid():
                shared.close()
        _KNOWN.clear()
