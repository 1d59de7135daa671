"""Registers the repo with Feast, so that its SDK, CLI and UI know what was applied.

What is registered are copies: views with the schema that was compiled, so that Feast opens no batch file to infer
one, under a configuration without online store, so that it creates and deletes nothing there.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, OnDemandFeatureView, Project, RepoConfig
from feast.feature_view import DUMMY_ENTITY_NAME
from feast.feature_view_projection import FeatureViewProjection
from feast.repo_config import RegistryConfig

from headrace.catalog.compile import sources_of, views_of
from headrace.catalog.definitions import Catalog, Column, ViewReference
from headrace.catalog.feast_types import feast_type, value_type
from headrace.catalog.load import FEAST_WARNINGS, Repo
from headrace.catalog.project import CONFIG_FILE
from headrace.errors import HeadraceError, SettingsError

__all__ = ["register", "try_to_register"]

NOT_REGISTERED = ("online_store", "batch_engine")


def register(repo: Repo, catalog: Catalog) -> str:
    """Bring Feast's registry to what `catalog` says of `repo`; returns where the registry is.

    Raises SettingsError if feature_store.yaml or the registry is not as Feast wants it.
    """
    with _refusals():
        config = _config(repo)
        if _is_file(config):
            path = repo.root / config.registry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            config.registry.path = str(path)
        store = FeatureStore(config=config)
        store.apply(_copies(repo, catalog))
        _forget(store, repo)
        return _place(store.config.registry.path)


def try_to_register(repo: Repo, catalog: Catalog) -> None:
    """Raises SettingsError for what `register` would refuse, by a registry that is thrown away; changes nothing."""
    with _refusals(), tempfile.TemporaryDirectory() as folder:
        config = _config(repo)
        if not config.registry.path:
            raise SettingsError("The registry has no path; write registry: data/registry.db in feature_store.yaml.")
        kept = {key: value for key, value in repo.config.items() if key not in (*NOT_REGISTERED, "registry")}
        scratch = RegistryConfig(path=str(Path(folder) / "registry.db"))
        config = RepoConfig(**kept, online_store=None, registry=scratch)
        config.repo_path = repo.root
        FeatureStore(config=config).apply(_copies(repo, catalog))


@contextmanager
def _refusals() -> Iterator[None]:
    """What Feast refuses as our error, its usual warnings unsaid."""
    with warnings.catch_warnings():
        for message in FEAST_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        except HeadraceError:
            raise
        except Exception as error:
            raise SettingsError(
                f"Feast refuses to register the definitions: {type(error).__name__}: {error}; "
                "correct feature_store.yaml or the definition."
            ) from error


def _config(repo: Repo) -> RepoConfig:
    """The user's configuration without what Feast would change or compute with."""
    if not repo.config.get("registry"):
        raise SettingsError(
            f"{repo.root / CONFIG_FILE} names no registry, which Feast requires; add the line "
            "'registry: data/registry.db'."
        )
    kept = {key: value for key, value in repo.config.items() if key not in NOT_REGISTERED}
    config = RepoConfig(**kept, online_store=None)
    config.repo_path = repo.root
    return config


def _is_file(config: RepoConfig) -> bool:
    return config.registry.registry_type == "file" and "://" not in config.registry.path


def _place(path: str) -> str:
    """The registry's path or URL, without a password."""
    if "://" not in path:
        return path
    parts = urlsplit(path)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def _copies(repo: Repo, catalog: Catalog) -> list[Any]:
    """Everything that Feast knows a kind for, in an order that it can register."""
    projects = repo.of(Project) or [Project(name=repo.project)]
    copies: list[Any] = [*projects, *sources_of(repo), *(_entity(entity, catalog) for entity in repo.of(Entity))]
    copies += [_view(view, catalog) for view in views_of(repo)]
    copies += [_on_demand(view, catalog) for view in repo.of(OnDemandFeatureView)]
    return copies + [_service(service, catalog) for service in repo.of(FeatureService)]


def _entity(entity: Entity, catalog: Catalog) -> Entity:
    filled = copy.copy(entity)
    filled.value_type = value_type(catalog.entity(entity.name).dtype)
    return filled


def _fields(columns: tuple[Column, ...], declared: list[Field]) -> list[Field]:
    """Feast fields of the compiled columns; a declared one is kept with its description and tags."""
    known = {field.name: field for field in declared}
    return [known.get(item.name) or Field(name=item.name, dtype=feast_type(item.dtype)) for item in columns]


def _view(view: FeatureView, catalog: Catalog) -> FeatureView:
    compiled = catalog.view(view.name)
    filled: FeatureView = copy.copy(view)
    filled.features = _fields(compiled.features, view.features)
    filled.entity_columns = _fields(catalog.join_keys(compiled), view.entity_columns)
    filled.projection = copy.copy(view.projection)
    filled.projection.features = filled.features
    return filled


def _on_demand(view: OnDemandFeatureView, catalog: Catalog) -> OnDemandFeatureView:
    """A copy whose schema Feast takes as it is: apply has run the function already, and casts what it gives."""
    filled: OnDemandFeatureView = copy.copy(view)
    references = iter(catalog.on_demand_view(view.name).inputs)
    by_view = {reference.view: reference for reference in references}
    filled.source_feature_view_projections = {
        name: _projection(projection, by_view[projection.name], catalog)
        for name, projection in view.source_feature_view_projections.items()
    }
    filled.entities = [DUMMY_ENTITY_NAME]
    filled.infer_features = lambda: None
    return filled


def _projection(projection: FeatureViewProjection, reference: ViewReference, catalog: Catalog) -> FeatureViewProjection:
    name = reference.view
    view = catalog.on_demand_view(name) if catalog.is_on_demand(name) else catalog.view(name)
    columns = {feature.name: feature for feature in view.features}
    filled = copy.copy(projection)
    filled.features = _fields(tuple(columns[name] for name in reference.features), projection.features)
    filled.desired_features = []
    return filled


def _service(service: FeatureService, catalog: Catalog) -> FeatureService:
    """A copy with its features resolved; references written as strings are left to Feast."""
    filled = copy.copy(service)
    references = [
        reference
        for item, reference in zip(service._features, catalog.service(service.name).references, strict=True)
        if not isinstance(item, str)
    ]
    filled.feature_view_projections = [
        _projection(projection, reference, catalog)
        for projection, reference in zip(service.feature_view_projections, references, strict=True)
    ]
    filled._features = [item for item in service._features if isinstance(item, str)]
    filled._pending_feature_refs = list(service._pending_feature_refs)
    return filled


def _forget(store: FeatureStore, repo: Repo) -> None:
    """Delete from the registry what it has of this project and the repo no longer has, by name."""
    registry, project = store.registry, store.project
    found = registry.proto()
    views = {view.name for view in [*views_of(repo), *repo.of(OnDemandFeatureView)]}
    views_found = [*found.feature_views, *found.stream_feature_views, *found.on_demand_feature_views]
    entities = {DUMMY_ENTITY_NAME, *(entity.name for entity in repo.of(Entity))}
    for delete, records, kept in (
        (registry.delete_feature_view, views_found, views),
        (registry.delete_entity, found.entities, entities),
        (registry.delete_feature_service, found.feature_services, {item.name for item in repo.of(FeatureService)}),
    ):
        for record in records:
            if record.spec.project == project and record.spec.name not in kept:
                delete(record.spec.name, project, commit=False)
    kept = {source.name for source in sources_of(repo)}
    for source in found.data_sources:
        if source.project == project and source.name not in kept:
            registry.delete_data_source(source.name, project, commit=False)
    registry.commit()
