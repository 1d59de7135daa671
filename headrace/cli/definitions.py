"""plan, apply, list and describe: from the definition files to the catalog, and what it holds."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import click
import orjson

from headrace.catalog.definitions import Catalog
from headrace.catalog.evolve import Change, changes, refuse_unsafe, shown_item
from headrace.catalog.layouts import new_views, settled
from headrace.catalog.project import project_of
from headrace.cli.common import counted, with_settings
from headrace.errors import DataError, HeadraceError, SettingsError, UnavailableError, UnknownNameError
from headrace.settings import Settings
from headrace.stores.catalogs import find_catalog, find_project, read_mirror, replace_catalog
from headrace.windows.window import format_duration

if TYPE_CHECKING:
    import redis

    from headrace.catalog.load import Repo

__all__ = ["apply_command", "describe_command", "list_command", "plan_command"]

CHANGED = 2
REFUSED = 1
MARKS = {"added": "+", "changed": "~", "removed": "-"}
KINDS = {
    "entities": "entity",
    "sources": "source",
    "views": "feature view",
    "on_demand_views": "on-demand feature view",
    "services": "feature service",
}
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command("plan")
@json_option
@with_settings
def plan_command(settings: Settings, as_json: bool) -> None:
    """Show what apply would change: exit 0 for nothing, 2 for changes, 1 for a refusal."""
    from headrace.catalog.feast_registry import try_to_register

    with _refusals(as_json):
        previous = _known_catalog(settings)
        repo, catalog, notes = _compile(settings, previous)
        try_to_register(repo, catalog)
        found = changes(previous, catalog)
        notes += _rebuild_notes(previous, catalog)
        _report(previous, catalog, found, notes + _model_notes(settings, previous, catalog), as_json, "would be")
    sys.exit(CHANGED if found else 0)


@click.command("apply")
@json_option
@click.option("--rebuild", is_flag=True, help="Build new and changed views first, while the present ones serve.")
@with_settings
def apply_command(settings: Settings, as_json: bool, rebuild: bool) -> None:
    """Compile the definitions, register them with Feast and make them the catalog of every process.

    A change of what a view's values mean is refused where the view already serves: with --rebuild the new values are
    built beside the present ones, and readers go from one to the other without a gap (see headrace rebuild --help).
    """
    from headrace.stores.connection import open_store
    from materialize.changing import changing_definitions

    with _refusals(as_json):
        project = project_of(settings.repo)
        with open_store(settings) as store, changing_definitions(store, project, settings.lease):
            previous = _newest(find_catalog(store, project), read_mirror(settings))
            repo, target, notes = _compile(settings, previous)
            catalog, registry = _make_current(settings, store, previous, repo, target, rebuild, notes)
        found = changes(previous, catalog)
        notes += _model_notes(settings, previous, catalog)
        _report(previous, catalog, found, notes, as_json, "is", registry)


def _make_current(
    settings: Settings,
    store: redis.Redis,
    previous: Catalog | None,
    repo: Repo,
    target: Catalog,
    rebuild: bool,
    notes: list[str],
) -> tuple[Catalog, str]:
    """Register `target` and make it the catalog, its new layouts built before if `rebuild`; what was saved, and where
    it was registered. Adds to the notes what a rebuild did."""
    from headrace.catalog.feast_registry import register, try_to_register
    from headrace.stores.layout_markers import LayoutMarkers, refuse_gap, store_time_us

    if rebuild and previous is not None and new_views(previous, target):
        from headrace.cli.rebuild import replay_bar, told
        from headrace.telemetry import configure_logging
        from materialize.rebuild import rebuild_to

        configure_logging("apply")
        try_to_register(repo, target)
        places: list[str] = []
        with replay_bar(", ".join(view.name for view in new_views(previous, target))) as report:
            done = rebuild_to(
                settings, store, previous, target, report, lambda last: places.append(register(repo, last))
            )
        notes.append(told(done))
        return done.catalog, places[0]
    layouts = LayoutMarkers(store, target.project)
    refuse_gap(previous, target, layouts.held().ready)
    catalog = target if target == previous else settled(previous, target, store_time_us(store), layouts.is_swept)
    registry = register(repo, catalog)
    replace_catalog(store, settings, catalog, previous)
    return catalog, registry


def _rebuild_notes(previous: Catalog | None, target: Catalog) -> list[str]:
    old = {view.name for view in previous.views} if previous else set()
    changed = [view.name for view in new_views(previous, target) if view.name in old]
    return [f"Values to be built anew: {', '.join(changed)}; headrace apply --rebuild."] if changed else []


@click.command("list")
@json_option
@with_settings
def list_command(settings: Settings, as_json: bool) -> None:
    """List the catalog's entities, sources, views and services, and layouts that arrive or retire."""
    from headrace.cli.layouts_shown import layouts_beside

    catalog = _applied(settings)
    beside = layouts_beside(catalog)
    if as_json:
        names: dict[str, Any] = {kind: [item.name for item in getattr(catalog, kind)] for kind in KINDS}
        names |= {state: [it.as_plain() for it in beside if it.state == state] for state in ("arriving", "retiring")}
        _print_json({"project": catalog.project, "version": catalog.version, "clock": catalog.clock, **names})
        return
    click.echo(f"project {catalog.project}, version {catalog.version}, clock {catalog.clock}")
    for attribute, kind in KINDS.items():
        for item in getattr(catalog, attribute):
            click.echo(f"{kind:24}{item.name:32}{_summary(item)}".rstrip())
    for layout in beside:
        click.echo(f"{layout.state + ' layout':24}{layout.view:32}{layout}")


@click.command("describe")
@click.argument("name")
@json_option
@with_settings
def describe_command(settings: Settings, name: str, as_json: bool) -> None:
    """Describe the entity, source, view or service NAME: types, windows, hops, fingerprint, code."""
    catalog = _applied(settings)
    found = [
        {"definition": kind, **_plain(item)}
        for attribute, kind in KINDS.items()
        for item in getattr(catalog, attribute)
        if item.name == name
    ]
    if not found:
        known = ", ".join(item.name for kind in KINDS for item in getattr(catalog, kind)) or "nothing"
        raise UnknownNameError(f"There is no {name!r}; the catalog has: {known}.")
    if as_json:
        _print_json(found[0] if len(found) == 1 else found)
        return
    for item in found:
        for key, value in item.items():
            _print_field(key, value)


class _refusals:
    """Print a refusal as JSON where JSON is asked for; otherwise main prints it as it does every error."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.as_json and isinstance(error, HeadraceError):
            _print_json({"refused": str(error), "changes": []})
            sys.exit(REFUSED)


def _compile(settings: Settings, previous: Catalog | None) -> tuple[Repo, Catalog, list[str]]:
    """The repo's catalog, found safe after `previous`, its functions tried; and notes for the user."""
    from headrace.catalog.compile import compile_repo, name_notes, notes_of, places_of
    from headrace.catalog.load import load_repo
    from headrace.compute.check import check_functions, input_columns
    from headrace.compute.check_transforms import check_transforms
    from headrace.stores.markers import places
    from headrace.stores.offline import OfflineStore

    repo = load_repo(settings.repo)
    catalog = compile_repo(repo, clock=settings.clock, previous=previous)
    refuse_unsafe(previous, catalog)
    archive = OfflineStore(settings.data_dir)
    for source in {source.name: source for source, _ in places(catalog)}.values():
        archive.refuse_other_types(source)
    types = {view.name: input_columns(catalog, view) for view in catalog.on_demand_views}
    notes = notes_of(repo) + name_notes(catalog)
    notes += check_functions(catalog.on_demand_views, types, places_of(repo))
    return repo, catalog, notes + check_transforms(catalog, places_of(repo))


def _model_notes(settings: Settings, previous: Catalog | None, catalog: Catalog) -> list[str]:
    """What the changes mean for the champions: those that can no longer score, and those whose inputs change."""
    from headrace.read.model_fit import changed_inputs, misfits

    broken = misfits(settings.data_dir, catalog)
    notes = [f"{text}. Until then /predict answers 503." for text in broken.values()]
    for name, views in changed_inputs(settings.data_dir, previous, catalog).items():
        if name not in broken:
            notes.append(
                f"Model {name!r} was trained on other values of {', '.join(views)}; "
                f"train it again once they are built: headrace train --name {name}."
            )
    return notes


def _newest(stored: Catalog | None, mirror: Catalog | None) -> Catalog | None:
    """The later of two; a store that was emptied must not make versions and generations start again."""
    known = [catalog for catalog in (stored, mirror) if catalog is not None]
    return max(known, key=lambda catalog: catalog.version, default=None)


def _known_catalog(settings: Settings) -> Catalog | None:
    """The catalog as of the last apply: the mirror's, and the configured store's if it answers; None before any.

    An embedded store needs no look: its mirror lies in the same data directory.
    """
    mirror = read_mirror(settings)
    if settings.redis_url is None:
        return mirror
    from headrace.stores.connection import open_store

    try:
        store = open_store(settings)
        try:
            return _newest(find_catalog(store, find_project(settings)), mirror)
        finally:
            store.close()
    except (OSError, SettingsError, UnavailableError) as error:
        click.echo(f"Note: the online store does not answer, comparing with the mirrored catalog ({error}).", err=True)
        return mirror


def _applied(settings: Settings) -> Catalog:
    catalog = _known_catalog(settings)
    if catalog is None:
        raise DataError(f"Nothing was applied yet in {settings.data_dir}; run headrace apply.")
    return catalog


def _report(
    previous: Catalog | None,
    catalog: Catalog,
    found: list[Change],
    notes: list[str],
    as_json: bool,
    verb: str,
    registry: str | None = None,
) -> None:
    if as_json:
        body = {"project": catalog.project, "version": catalog.version, "clock": catalog.clock}
        before = previous.version if previous else None
        more = {"changes": [dataclasses.asdict(change) for change in found], "notes": notes, "refused": None}
        _print_json(body | {"previous_version": before} | more | ({"registry": registry} if registry else {}))
        return
    for change in found:
        click.echo(f"{MARKS[change.action]} {change.kind} {change.name}")
        for detail in change.details:
            click.echo(f"    {detail}")
    for note in notes:
        click.echo(f"Note: {note}")
    click.echo(
        f"{len(found) or 'No'} change{'' if len(found) == 1 else 's'}; project {catalog.project} {verb} at "
        f"version {catalog.version}, clock {catalog.clock}."
    )
    if registry:
        click.echo(f"Feast registry: {registry}")


def _summary(item: Any) -> str:
    """What tells an item apart at a glance."""
    kind = type(item).__name__
    if kind == "Entity":
        return f"{item.join_key} {item.dtype}"
    if kind == "Source":
        return f"{counted(len(item.columns), 'column')}, event time {item.timestamp}"
    if kind == "FeatureView":
        return f"{item.kind}, by {', '.join(item.entities)}, {counted(len(item.features), 'feature')}"
    if kind == "OnDemandView":
        return f"{item.mode}, {counted(len(item.features), 'feature')}"
    return counted(sum(len(reference.features) for reference in item.references), "feature")


def _plain(item: Any) -> dict[str, Any]:
    plain: dict[str, Any] = orjson.loads(orjson.dumps(dataclasses.asdict(item)))
    return plain


def _print_field(key: str, value: Any) -> None:
    """One field of a description: scalars on one line, records one a line, code as it is."""
    if isinstance(value, list) and value:
        click.echo(f"{key}:")
        for part in value:
            click.echo(f"  {shown_item(part)}")
    elif isinstance(value, str) and "\n" in value:
        click.echo(f"{key}:")
        click.echo("\n".join(f"  {line}" for line in value.splitlines()))
    elif key.endswith("_us") and isinstance(value, int):
        click.echo(f"{key.removesuffix('_us')}: {format_duration(value) if value else 'none'}")
    elif isinstance(value, dict):
        click.echo(f"{key}:")
        for name, part in value.items():
            _print_field(f"  {name}", part)
    elif value not in (None, "", []):
        click.echo(f"{key}: {value}")


def _print_json(body: Any) -> None:
    click.echo(orjson.dumps(body, option=orjson.OPT_INDENT_2).decode())
