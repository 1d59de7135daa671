"""From one catalog to the next without a gap: layouts arrive beside those that serve, take their place, and retire.

    previous --announced--> previous + arriving --settled--> target + retiring

Readers follow the catalog's views alone. Each view keeps its values under its own layout (fingerprint and generation),
so what is built for the next catalog never meets what serves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from headrace.catalog.definitions import Catalog, Entity, FeatureView, Layout

__all__ = ["RETIRE_US", "announced", "continued", "new_views", "rebuilt", "settled"]

RETIRE_US = 600_000_000
"""How long a layout is kept up to date after it served; a server that cannot confirm the catalog gives up before."""

Identity = tuple[str, str, int]


def _identity(view: FeatureView) -> Identity:
    return view.name, view.fingerprint, view.generation


def _arriving(catalog: Catalog, view: FeatureView) -> FeatureView | None:
    """The layout under construction of this definition."""
    same = (layout.view for layout in catalog.arriving)
    return next((other for other in same if (other.name, other.fingerprint) == (view.name, view.fingerprint)), None)


def continued(catalog: Catalog, previous: Catalog | None) -> Catalog:
    """`catalog` with the layouts of `previous`: a view of the same fingerprint keeps its generation, or takes that of
    a layout under construction.

    A new layout takes the catalog's version as its generation, so that no layout ever returns to old rows.
    """
    if previous is None:
        return catalog
    old = {view.name: view for view in previous.views}
    views = tuple(_with_generation(view, old.get(view.name), previous, catalog.version) for view in catalog.views)
    return replace(catalog, views=views, arriving=previous.arriving, retiring=previous.retiring)


def _with_generation(view: FeatureView, old: FeatureView | None, previous: Catalog, version: int) -> FeatureView:
    if old is not None and old.fingerprint == view.fingerprint:
        return replace(view, generation=old.generation)
    begun = _arriving(previous, view)
    if begun is not None:
        return replace(view, generation=begun.generation)
    return replace(view, generation=max(version, old.generation + 1 if old is not None else 1))


def rebuilt(catalog: Catalog, names: Collection[str]) -> Catalog:
    """The catalog after `catalog` in which the named views have new layouts of the same definition; those that are
    under construction already go on."""
    for name in names:
        catalog.view(name)
    version = catalog.version + 1
    views = tuple(
        _arriving(catalog, view) or replace(view, generation=version) if view.name in names else view
        for view in catalog.views
    )
    return replace(catalog, version=version, views=views)


def new_views(previous: Catalog | None, target: Catalog) -> tuple[FeatureView, ...]:
    """The views of `target` whose layout does not serve in `previous`."""
    serving = {_identity(view) for view in previous.views} if previous is not None else set()
    return tuple(view for view in target.views if _identity(view) not in serving)


def announced(previous: Catalog, target: Catalog) -> Catalog:
    """`previous` with the new layouts of `target` arriving, and what they need: the sources of `target`, those that it
    drops still there. `previous` itself if all of that was announced before."""
    views = new_views(previous, target)
    known = {_identity(layout.view) for layout in previous.arriving}
    fresh = tuple(Layout(view, _entities(target, view)) for view in views if _identity(view) not in known)
    staying = {source.name for source in target.sources}
    sources = (*target.sources, *(source for source in previous.sources if source.name not in staying))
    if not fresh and sorted(sources, key=lambda s: s.name) == sorted(previous.sources, key=lambda s: s.name):
        return previous
    return replace(
        previous,
        version=max(target.version, previous.version + 1),
        sources=sources,
        arriving=previous.arriving + fresh,
    )


def settled(previous: Catalog | None, target: Catalog, now_us: int, is_swept: Callable[[FeatureView], bool]) -> Catalog:
    """`target` one version after `previous`; what served in `previous` and no longer does retires.

    `now_us` is the store's clock. A retired layout is forgotten once it `is_swept`. A layout under construction goes
    on if `target` has the same definition, else it retires too.
    """
    if previous is None:
        return target
    serving = {_identity(view) for view in target.views}
    definitions = {(view.name, view.fingerprint) for view in target.views}
    beside = [layout for layout in previous.arriving if _identity(layout.view) not in serving]
    going_on = tuple(layout for layout in beside if (layout.view.name, layout.view.fingerprint) in definitions)
    ended = [Layout(view, _entities(previous, view)) for view in previous.views if _identity(view) not in serving]
    ended += [layout for layout in beside if layout not in going_on]
    retired = [layout for layout in previous.retiring if layout.until_us > now_us or not is_swept(layout.view)]
    return replace(
        target,
        version=previous.version + 1,
        arriving=going_on,
        retiring=(*retired, *(replace(layout, until_us=now_us + RETIRE_US) for layout in ended)),
    )


def _entities(catalog: Catalog, view: FeatureView) -> tuple[Entity, ...]:
    return tuple(catalog.entity(name) for name in view.entities)
