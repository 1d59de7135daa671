"""The catalog where every process finds it: in the online store, and mirrored to a file in the data directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import redis

from headrace.catalog.definitions import Catalog, catalog_from_json, catalog_to_json
from headrace.catalog.project import CONFIG_FILE, HOW_TO_BEGIN, project_of
from headrace.errors import SettingsError, UnavailableError
from headrace.settings import Settings
from headrace.stores.keys import catalog_key

__all__ = [
    "find_catalog",
    "find_project",
    "load_catalog",
    "mirror_path",
    "read_mirror",
    "replace_catalog",
    "save_catalog",
]

_REPLACE = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


def mirror_path(settings: Settings) -> Path:
    """The file that mirrors the catalog."""
    return settings.data_dir / "catalog.json"


def load_catalog(store: redis.Redis, project: str) -> Catalog:
    """The catalog of `project` in the online store.

    Raises UnavailableError if there is none, DataError if it has another format.
    """
    catalog = find_catalog(store, project)
    if catalog is None:
        raise UnavailableError(f"The online store holds no catalog of project {project!r}; run headrace apply.")
    return catalog


def find_catalog(store: redis.Redis, project: str) -> Catalog | None:
    """The catalog of `project` in the online store, None if it was never applied there."""
    data: Any = store.get(catalog_key(project))
    return None if data is None else catalog_from_json(data)


def save_catalog(store: redis.Redis, settings: Settings, catalog: Catalog) -> None:
    """Write the catalog to the online store, then to its mirror; readers see the old one or the new one, whole."""
    data = catalog_to_json(catalog)
    store.set(catalog_key(catalog.project), data)
    _mirror(settings, data)


def replace_catalog(store: redis.Redis, settings: Settings, catalog: Catalog, previous: Catalog | None) -> None:
    """`save_catalog`, unless the store holds another than `previous`: then somebody else's, which this one does not
    know, and UnavailableError is raised. One that the store lost, or holds an older one of, it gets again."""
    key, data = catalog_key(catalog.project), catalog_to_json(catalog)
    raw: Any = store.get(key)
    held = None if raw is None else catalog_from_json(raw)
    known = held is None or held == previous or (previous is not None and held.version < previous.version)
    if not known or not store.eval(_REPLACE, 1, key, raw or b"", cast(Any, data)):
        raise UnavailableError(
            "The definitions are changed by one command at a time, and another one has changed them meanwhile; "
            "run it again."
        )
    _mirror(settings, data)


def _mirror(settings: Settings, data: bytes) -> None:
    path = mirror_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    with scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def read_mirror(settings: Settings) -> Catalog | None:
    """The mirrored catalog, None if there is none. Raises DataError if it has another format."""
    path = mirror_path(settings)
    return catalog_from_json(path.read_bytes()) if path.is_file() else None


def find_project(settings: Settings) -> str:
    """The project's name: what the repo's feature_store.yaml says, else what the mirrored catalog says.

    Raises SettingsError if there is neither.
    """
    if (settings.repo / CONFIG_FILE).is_file():
        return project_of(settings.repo)
    mirror = read_mirror(settings)
    if mirror is None:
        raise SettingsError(
            f"A project is known by its repo or its data directory, {settings.repo} has no {CONFIG_FILE} and "
            f"{settings.data_dir} no catalog; name the repo by --repo or HEADRACE_REPO, or {HOW_TO_BEGIN}."
        )
    return mirror.project
