"""`headrace recover`: what a store has lost, what of it comes back from where, and bringing it back."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from headrace.cli.common import counted, with_settings
from headrace.errors import UnavailableError
from headrace.settings import Settings

if TYPE_CHECKING:
    import redis

    from headrace.catalog.definitions import Catalog
    from materialize.recover import Findings

__all__ = ["recover_command"]


@click.command("recover")
@click.option("--yes", is_flag=True, help="Do it; without this it only says what it found and would do.")
@click.option("--accept-loss", is_flag=True, help="Go on without the events that are nowhere; they are counted first.")
@with_settings
def recover_command(settings: Settings, yes: bool, accept_loss: bool) -> None:
    """Say what the online store and the streams have lost, and bring back what can be.

    For a store that was lost, came back empty or behind, a stream that was trimmed or cut too far. Changes nothing
    without --yes. Views are built anew from the archive and the stream; a view that is being built answers 503, all
    others go on. Events that neither has are listed by place and number: worker and archiver stop there until they are
    accepted as lost with --yes --accept-loss, and then go on behind them without a restart. Safe to repeat, and beside
    running processes. Exit 1 when something is left to mend.
    """
    from headrace.stores.catalogs import find_catalog, find_project, read_mirror
    from headrace.stores.connection import open_store
    from headrace.stores.offline import OfflineStore
    from materialize.recover import diagnose

    project, store = find_project(settings), open_store(settings)
    held = find_catalog(store, project)
    catalog = held or read_mirror(settings)
    if catalog is None or catalog.project != project:
        raise UnavailableError(
            f"Recovery goes by the catalog, neither the store nor {settings.data_dir} has one of project {project!r}; "
            "run headrace apply."
        )
    found = diagnose(store, OfflineStore(settings.data_dir), catalog, settings)
    for line in _report(found, catalog, held is None):
        click.echo(line)
    if found.healthy and held is not None:
        return
    if not yes:
        click.echo("Nothing was changed; do it with headrace recover --yes" + _loss_option(found))
        sys.exit(1)
    if found.broken and not accept_loss:
        click.echo(
            "Nothing was changed: these events are lost for good. Go on without them: add --accept-loss", err=True
        )
        sys.exit(1)
    _mend(settings, store, catalog, found)


def _loss_option(found: Findings) -> str:
    return " --accept-loss" if found.broken else ""


def _report(found: Findings, catalog: Catalog, catalog_lost: bool) -> Iterator[str]:
    """What is wrong, what will be done, and what is served meanwhile."""
    if found.healthy and not catalog_lost:
        yield f"Nothing to recover: all {counted(len(catalog.views), 'view')} ready, no stream has a gap."
        return
    if catalog_lost:
        yield f"The store holds no catalog; version {catalog.version} comes back from the data directory."
    for broken in found.broken:
        yield f"Lost: {broken}. Stopped there: {' and '.join(broken.roles)}."
    for name, partition in found.ahead:
        yield f"{name}, partition {partition}: the archive holds more than the views; they catch up from it."
    if found.unready:
        names = ", ".join(view.name for view in found.unready)
        yield f"Not ready: {names}; built anew from the log. Until then 503 for them."
    if found.doubtful:
        names = ", ".join(view.name for view in found.doubtful)
        yield f"Holding lost events: {names}; built anew without them once the loss is accepted, 503 until then."
    if found.built:
        yield f"To merge for that: {counted(found.events, 'archived event')}, and what the streams hold after them."
    for view in found.materialized:
        yield f"{view.name}: the rows of its batch source are materialized again."
    ready = [view.name for view in catalog.views if view not in found.built]
    if ready:
        yield f"Served meanwhile, right as of the positions that lookups state: {', '.join(ready)}."


def _mend(settings: Settings, store: redis.Redis, catalog: Catalog, found: Findings) -> None:
    from headrace.stores.catalogs import find_catalog, save_catalog
    from materialize.batch import materialize_view
    from materialize.recover import accept_losses, count_entities, raise_ends

    started = time.monotonic()
    if find_catalog(store, catalog.project) is None:
        save_catalog(store, settings, catalog)
        click.echo(f"Catalog version {catalog.version} is back.")
    raise_ends(store, catalog, found)
    accept_losses(store, catalog, found)
    for broken in found.broken:
        click.echo(f"Accepted and recorded: {broken}.")
    _build(settings, store, catalog, found)
    for view in found.materialized:
        rows = materialize_view(settings, view.name)
        click.echo(f"{view.name}: {counted(rows, 'row')} of its batch source materialized.")
    seconds = time.monotonic() - started
    entities = count_entities(store, catalog, found.built) if found.built else 0
    rate = f", {seconds / entities * 1e6:,.0f} s per million entities" if entities else ""
    click.echo(f"Recovered in {seconds:.1f} s: {counted(len(found.built), 'view')} built, {entities:,} entities{rate}.")
    if any("archiver" in broken.roles for broken in found.broken):
        click.echo("The archiver goes on within a second, or when it is started next.")


def _build(settings: Settings, store: redis.Redis, catalog: Catalog, found: Findings) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from headrace.stores.offline import OfflineStore
    from materialize.recover import build_views

    columns = (TextColumn("building"), BarColumn(), TextColumn("{task.completed:,} events"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("building", total=found.events or None)
        mine = build_views(
            settings, store, OfflineStore(settings.data_dir), catalog, lambda n: progress.advance(task, n)
        )
    if not mine:
        click.echo("The worker that is at work did it.")
