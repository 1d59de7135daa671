"""`feast apply` to the catalog: its views compiled as `headrace apply` compiles them, beside what was there."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from feast import Entity, FeatureView, OnDemandFeatureView, StreamFeatureView
from feast.feature_view import DUMMY_ENTITY_NAME
from feast.repo_config import RepoConfig

from headrace.catalog.compile import compile_repo, continue_catalog, places_of
from headrace.catalog.definitions import Catalog
from headrace.catalog.evolve import refuse_unsafe
from headrace.catalog.feast_types import value_type
from headrace.catalog.layouts import settled
from headrace.catalog.load import Repo
from headrace.catalog.retention import refuse_short_retention
from headrace.compute.check_transforms import check_transforms
from headrace.errors import DataError, DefinitionError
from headrace.feast_plugin.config import repo_of
from headrace.feast_plugin.kept_views import delete_kept
from headrace.feast_plugin.shared import Shared
from headrace.settings import Settings
from headrace.stores.catalogs import replace_catalog
from headrace.stores.layout_markers import LayoutMarkers, refuse_gap, store_time_us
from headrace.stores.markers import places
from headrace.stores.offline import OfflineStore

__all__ = ["apply_views", "take_down"]

Item = TypeVar("Item")


def apply_views(
    shared: Shared,
    config: RepoConfig,
    applied: Sequence[Any],
    deleted: Sequence[Any],
    entities: Sequence[Entity],
) -> None:
    """Bring the catalog to what Feast says of these views; everything else in it stays.

    A view that the catalog cannot hold is refused, or kept as Feast's values if the configuration says so. Raises
    DefinitionError or DataError for the first thing that cannot work; nothing is changed then.
    """
    previous = shared.newest_catalog()
    repo = Repo(repo_of(config), {"project": config.project}, _modules_below(repo_of(config)))
    known = _entities(previous, entities)
    held, others = _sorted_out(shared.settings, repo, applied, known, config.online_store.other_views == "keep")
    repo.objects = [*_used(known, held), *held]
    compiled = compile_repo(repo, clock=shared.settings.clock or (previous.clock if previous else None))
    gone = {view.name for view in deleted} | {view.name for view in others}
    target = continue_catalog(_merged(previous or replace(compiled, version=0, views=()), compiled, gone), previous)
    _refuse(shared, previous, target, repo, {view.name for view in compiled.views})
    if target != previous and (previous is not None or target.views):
        _make_current(shared, previous, target)
    shared.catalog(fresh=True)
    if deleted and config.online_store.other_views == "keep":
        delete_kept(shared, [view for view in deleted if previous is None or not previous.has_view(view.name)])


def take_down(shared: Shared, config: RepoConfig, tables: Sequence[Any]) -> None:
    """Take every view, and what refers to one, out of the catalog: Feast hands over `tables`, the stream views not
    among them. Archived events stay, sources and entities too, online values until they are swept."""
    previous = shared.newest_catalog()
    if previous is not None and previous.views:
        empty = replace(previous, version=previous.version + 1, views=(), on_demand_views=(), services=())
        _make_current(shared, previous, empty)
    shared.catalog(fresh=True)
    if config.online_store.other_views == "keep":
        delete_kept(shared, [table for table in tables if previous is None or not previous.has_view(table.name)])


def _modules_below(root: Path) -> dict[str, ModuleType]:
    """The definition files that Feast has imported, by their names."""
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).is_relative_to(root) and "site-packages" not in Path(file).parts:
            found[name] = module
    return found


def _entities(previous: Catalog | None, entities: Sequence[Entity]) -> dict[str, Entity]:
    """Feast's entities by name: those applied now, and those that the catalog knows from before."""
    known = {
        entity.name: Entity(
            name=entity.name,
            join_keys=[entity.join_key],
            value_type=value_type(entity.dtype),
            description=entity.description,
        )
        for entity in (previous.entities if previous else ())
    }
    return known | {entity.name: entity for entity in entities if entity.name != DUMMY_ENTITY_NAME}


def _used(known: dict[str, Entity], views: Iterable[FeatureView]) -> list[Entity]:
    names = dict.fromkeys(name for view in views for name in view.entities)
    return [known[name] for name in names if name in known]


def _sorted_out(
    settings: Settings, repo: Repo, applied: Sequence[Any], known: dict[str, Entity], keep: bool
) -> tuple[list[FeatureView], list[Any]]:
    """The views that the catalog holds, and those kept as Feast's values, each in the order of their names: Feast
    hands them over in none. Raises DefinitionError for a view that is neither."""
    held: list[FeatureView] = []
    others: list[Any] = []
    for view in _with_shared_sources(sorted(applied, key=lambda view: str(view.name))):
        try:
            _try_alone(settings, repo, view, known)
            held.append(view)
        except (DefinitionError, DataError) as error:
            if not keep or _computes(view):
                raise _with_remedy(error, view) from None
            warnings.warn(
                f"View {view.name!r} is kept as Feast's values, which Feast's SDK alone reads: {error}", stacklevel=4
            )
            others.append(view)
    return held, others


def _with_shared_sources(views: Sequence[Any]) -> list[Any]:
    """The views; of those whose stream sources are equal, each has the same: Feast reads copies from its registry."""
    shared: list[Any] = []
    given = []
    for view in views:
        source = getattr(view, "stream_source", None)
        known = [one for one in shared if type(one) is type(source) and one == source]
        if known and known[0] is not source:
            view = copy.copy(view)
            view.stream_source = known[0]
        elif source is not None:
            shared.append(source)
        given.append(view)
    return given


def _try_alone(settings: Settings, repo: Repo, view: Any, known: dict[str, Entity]) -> None:
    """Raises DefinitionError or DataError for a view that does not compile."""
    if isinstance(view, OnDemandFeatureView):
        raise DefinitionError(
            f"On-demand feature view {view.name!r}: write_to_online_store is not supported; leave it out: it is "
            "computed at read time."
        )
    compile_repo(replace(repo, objects=[*_used(known, [view]), view]), clock=settings.clock)


def _computes(view: Any) -> bool:
    """Whether the view's values are computed from events, which Feast alone does not do."""
    return isinstance(view, StreamFeatureView) and bool(view.aggregations or view.udf)


def _with_remedy(error: Exception, view: Any) -> Exception:
    if _computes(view):
        return error
    return type(error)(
        f"{error} Or say other_views: keep under online_store in feature_store.yaml: then Feast's SDK alone reads and "
        f"writes view {view.name!r}."
    )


def _merged(base: Catalog, compiled: Catalog, gone: set[str]) -> Catalog:
    """`base` with what was compiled in the place of what had its name, and without the views `gone`."""
    views = tuple(view for view in _replaced(base.views, compiled.views) if view.name not in gone)
    names = {view.name for view in views}
    features = {view.name: {feature.name for feature in view.features} for view in views}
    on_demand = tuple(view for view in base.on_demand_views if _is_whole(view.inputs, names, features))
    features |= {view.name: {feature.name for feature in view.features} for view in on_demand}
    names |= {view.name for view in on_demand}
    return replace(
        base,
        version=base.version + 1,
        entities=_replaced(base.entities, compiled.entities),
        sources=_replaced(base.sources, compiled.sources),
        views=views,
        on_demand_views=on_demand,
        services=tuple(service for service in base.services if _is_whole(service.references, names, features)),
    )


def _is_whole(references: Iterable[Any], names: set[str], features: dict[str, set[str]]) -> bool:
    """Whether everything that is referred to is still there."""
    return all(ref.view in names and set(ref.features) <= features[ref.view] for ref in references)


def _replaced(old: Sequence[Item], new: Sequence[Item]) -> tuple[Item, ...]:
    """The old items in their order, each as it is now, then those that are new."""
    fresh = {item.name: item for item in new}  # type: ignore[attr-defined]
    kept = [fresh.pop(item.name, item) for item in old]  # type: ignore[attr-defined]
    return (*kept, *fresh.values())


def _refuse(shared: Shared, previous: Catalog | None, target: Catalog, repo: Repo, compiled: set[str]) -> None:
    """Raises DefinitionError or DataError for what `headrace apply` would refuse too."""
    refuse_unsafe(previous, target)
    refuse_short_retention(target.sources, target.views)
    _refuse_other_keys(previous, target, compiled)
    archive = OfflineStore(shared.settings.data_dir)
    for source in {source.name: source for source, _ in places(target)}.values():
        archive.refuse_other_types(source)
    check_transforms(target, places_of(repo))


def _refuse_other_keys(previous: Catalog | None, target: Catalog, compiled: set[str]) -> None:
    """Raises DefinitionError for an entity that changes under a view that was not applied with it."""
    old = {entity.name: entity for entity in previous.entities} if previous else {}
    staying = [other for other in target.views if other.name not in compiled]
    for view, name in [(other, name) for other in staying for name in other.entities]:
        entity = target.entity(name)
        if (old[name].join_key, old[name].dtype) != (entity.join_key, entity.dtype):
            raise DefinitionError(
                f"An entity keeps its join key and type, {name!r} of view {view.name!r} had {old[name].join_key} "
                f"{old[name].dtype} and would have {entity.join_key} {entity.dtype}; apply that view too."
            )


def _make_current(shared: Shared, previous: Catalog | None, target: Catalog) -> None:
    layouts = LayoutMarkers(shared.store, target.project)
    refuse_gap(previous, target, layouts.held().ready)
    catalog = settled(previous, target, store_time_us(shared.store), layouts.is_swept)
    replace_catalog(shared.store, shared.settings, catalog, previous)
