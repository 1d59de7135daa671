"""`headrace forget`: take an entity out of the online store, the archive and the dead letters, with a receipt."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from headrace.cli.common import counted, make_console, with_settings
from headrace.settings import Settings

__all__ = ["forget_command"]


@click.command("forget")
@click.argument("words", nargs=-1, required=True, metavar="ENTITY KEY...")
@click.option("--timeout", "timeout_s", default=120.0, show_default=True, help="Seconds to wait for the receipt.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON; asks nothing.")
@with_settings
def forget_command(settings: Settings, words: tuple[str, ...], timeout_s: float, yes: bool, as_json: bool) -> None:
    """Delete everything about KEY of ENTITY that arrived until now; what arrives later is a new beginning.

    Keys of several entities that hold it go too. One key of several entities: headrace forget card=c1 shop=7. Needs a
    worker and an archiver; exit 1 while the archiver's part is waiting.
    """
    from headrace.read.forgetting import forget_keys, parse_keys
    from headrace.stores.catalogs import find_project, load_catalog
    from headrace.stores.connection import open_store

    project = find_project(settings)
    store = open_store(settings)
    catalog = load_catalog(store, project)
    entities, keys = parse_keys(catalog, words)
    if not (yes or as_json):
        click.confirm(f"Delete {counted(len(keys), 'key')} of {', '.join(entities)} for good?", abort=True)
    receipt = forget_keys(store, catalog, entities, keys, settings.stream_keep, timeout_s)
    if as_json:
        click.echo(json.dumps(receipt, indent=2))
    else:
        _print(receipt)
    sys.exit(1 if receipt["archive"]["state"] == "waiting" else 0)


def _print(receipt: dict[str, Any]) -> None:
    console = make_console()
    console.print(f"Forgotten of {', '.join(receipt['entities'])}, up to {receipt['forgotten_up_to']}:")
    for view, count in receipt["online"]["values_deleted"].items():
        console.print(f"  online    {view}: {counted(count, 'value')}")
    archive = receipt["archive"]
    if archive["state"] == "waiting":
        console.print("  archive   waiting for the archiver: start one with headrace archive (or headrace up)")
    else:
        for source, count in archive["events"].items():
            console.print(f"  archive   {source}: {counted(count, 'event')}")
        console.print(f"  archive   {counted(archive['dead_letters'], 'dead letter')}")
        console.print(f"  archive   {counted(archive['served'], 'served row')}")
        console.print(f"  disk      {counted(archive['files'], 'file')} that held them or were no longer used")
    for source, until in receipt["stream"].items():
        console.print(f"  stream    {source}: raw entries: {until}")
    console.print(f"  log       the tables' logs keep their statistics until {receipt['table_log_until']}")
    for digest in receipt["tombstones"]:
        console.print(f"  tombstone {digest}")
    if receipt["still_in_until_rebuilt"]:
        views = receipt["still_in_until_rebuilt"]
        console.print(f"Views of other entities count the deleted events until: headrace rebuild {' '.join(views)}")
