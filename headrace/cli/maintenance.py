"""`headrace compact`: orders to the archiver that owns the tables."""

from __future__ import annotations

import click

from headrace.cli.common import with_settings
from headrace.errors import RequestError
from headrace.settings import Settings

__all__ = ["compact_command"]


@click.command("compact")
@click.argument("source", nargs=-1)
@click.option("--all", "every", is_flag=True, help="The tables of every source.")
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds to wait for the archiver.")
@with_settings
def compact_command(settings: Settings, source: tuple[str, ...], every: bool, timeout_s: float) -> None:
    """Have the archiver merge the small files of SOURCE and delete those that left the table long ago.

    It does so by itself when a day has many; this is for doing it now. Rows written into a view are the source
    writes/VIEW.
    """
    from headrace.stores.catalogs import find_project, load_catalog
    from headrace.stores.connection import open_store
    from headrace.stores.markers import places
    from headrace.stores.orders import order_compaction

    if every == bool(source):
        raise RequestError("compact takes the names of sources or --all, and got " + ("both." if every else "neither."))
    project = find_project(settings)
    store = open_store(settings)
    known = list(dict.fromkeys(item.name for item, _ in places(load_catalog(store, project))))
    for name in known if every else source:
        click.echo(f"{name}: {order_compaction(store, project, name, timeout_s)}")
