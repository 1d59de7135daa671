"""Whether a model still fits the catalog: its service must give every column that it was fitted on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from headrace.catalog.definitions import Catalog, DType, ViewReference
from headrace.stores.models import Manifest, champion_manifests

__all__ = ["changed_inputs", "misfit", "misfits", "served_columns"]


def misfits(data_dir: Path, catalog: Catalog) -> dict[str, str]:
    """What is wrong, and what to do, by name of the champions that cannot score under `catalog`."""
    found = {manifest.name: misfit(manifest, catalog) for manifest in champion_manifests(data_dir)}
    return {name: text for name, text in found.items() if text is not None}


def misfit(manifest: Manifest, catalog: Catalog) -> str | None:
    """Why the model cannot score under `catalog` and the remedy, None when it can."""
    reason = _reason(manifest, catalog)
    if reason is None:
        return None
    return (
        f"Model {manifest.name!r} version {manifest.version} was trained on catalog version "
        f"{manifest.catalog_version}, and {reason}; train it on what there is now: headrace train --name "
        f"{manifest.name}"
    )


def changed_inputs(data_dir: Path, previous: Catalog | None, catalog: Catalog) -> dict[str, list[str]]:
    """By name of the champions that read them: views whose values `catalog` computes otherwise than `previous`."""
    if previous is None:
        return {}
    before, after = _fingerprints(previous), _fingerprints(catalog)
    changed = {name for name, fingerprint in after.items() if before.get(name, fingerprint) != fingerprint}
    services = {service.name: service.references for service in catalog.services}
    read = {
        manifest.name: _views(catalog, services.get(manifest.service, ())) for manifest in champion_manifests(data_dir)
    }
    return {name: sorted(changed & views) for name, views in read.items() if changed & views}


def _fingerprints(catalog: Catalog) -> dict[str, str]:
    stored = {view.name: view.fingerprint for view in catalog.views}
    return stored | {view.name: view.fingerprint for view in catalog.on_demand_views}


def _views(catalog: Catalog, references: Iterable[ViewReference]) -> set[str]:
    """The views behind `references`, those that on-demand views read among them."""
    views: set[str] = set()
    for reference in references:
        views.add(reference.view)
        if catalog.is_on_demand(reference.view):
            views |= _views(catalog, catalog.on_demand_view(reference.view).inputs)
    return views


def _reason(manifest: Manifest, catalog: Catalog) -> str | None:
    if manifest.service not in {service.name for service in catalog.services}:
        return f"its feature service {manifest.service!r} is gone"
    columns = served_columns(catalog, manifest.service)
    missing = [item.name for item in manifest.inputs if item.name not in columns]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return f"service {manifest.service!r} no longer gives {shown}"
    for item in manifest.inputs:
        if not _fits(item.dtype, columns[item.name]):
            return f"service {manifest.service!r} gives {item.name} as {columns[item.name]}, not as {item.dtype}"
    return None


def _fits(fitted: DType, given: DType) -> bool:
    """Models read strings as categories and all else that they read as numbers."""
    if given.is_list or given is DType.TIMESTAMP:
        return False
    return (fitted is DType.STRING) == (given is DType.STRING)


def served_columns(catalog: Catalog, service: str) -> Mapping[str, DType]:
    """Types of what a lookup of `service` gives: join keys under their request's names, features as
    `view__feature`."""
    columns: dict[str, DType] = {}
    for reference in catalog.service(service).references:
        on_demand = catalog.is_on_demand(reference.view)
        features = (catalog.on_demand_view if on_demand else catalog.view)(reference.view).features
        columns |= {f"{reference.name}__{f.name}": f.dtype for f in features if f.name in reference.features}
        columns |= _keys(catalog, reference)
    return columns


def _keys(catalog: Catalog, reference: ViewReference) -> dict[str, DType]:
    if catalog.is_on_demand(reference.view):
        inputs = catalog.on_demand_view(reference.view).inputs
        return {name: dtype for item in inputs for name, dtype in _keys(catalog, item).items()}
    renamed = dict(reference.join_key_map)
    return {renamed.get(key.name, key.name): key.dtype for key in catalog.join_keys(catalog.view(reference.view))}
