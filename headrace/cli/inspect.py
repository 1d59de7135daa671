"""`headrace explain` and `headrace doctor`: look behind a value, and behind a set-up."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.common import with_settings
from headrace.errors import RequestError
from headrace.settings import Settings

if TYPE_CHECKING:
    from headrace.read.explain import Explanation

__all__ = ["doctor_command", "explain_command"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@click.command("explain")
@click.argument("view")
@click.argument("key", nargs=-1, required=True)
@click.option("--at", help="Moment to explain, RFC 3339 (without a zone: UTC); default the present.")
@click.option("--limit", default=20, show_default=True, help="Most events and tiles to print.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@with_settings
def explain_command(
    settings: Settings, view: str, key: tuple[str, ...], at: str | None, limit: int, as_json: bool
) -> None:
    """Show the events, tiles, positions and age behind the values of VIEW for KEY.

    KEY has one value per join key, in the declared order. Example: headrace explain origin_departures JFK
    """
    from headrace.read.explain import explain
    from headrace.stores.catalogs import find_project, load_catalog
    from headrace.stores.connection import open_store
    from headrace.stores.offline import OfflineStore

    store = open_store(settings)
    catalog = load_catalog(store, find_project(settings))
    t_us = None if at is None else _parse_moment_us(at)
    found = explain(store, OfflineStore(settings.data_dir), catalog, view, key, t_us, time.time_ns() // 1_000)
    if as_json:
        click.echo(json.dumps(_as_plain(found), default=str, indent=2))
    else:
        _print(found, limit)


def _parse_moment_us(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise RequestError(
            f"--at must be an RFC 3339 time, got {text!r}; write it like 2013-06-01T12:00:00Z."
        ) from None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def _moment(time_us: int | None) -> str | None:
    return None if time_us is None else (_EPOCH + timedelta(microseconds=time_us)).isoformat()


def _as_plain(found: Explanation) -> dict[str, Any]:
    online = {**found.online, "newest_event_time": _moment(found.online["newest_us"])}
    return {
        "view": found.view,
        "key": found.key,
        "t": _moment(found.t_us),
        "online": online,
        "offline": found.offline,
        "events": None if found.events is None else found.events.to_pylist(),
        "agree": found.agree,
    }


def _print(found: Explanation, limit: int) -> None:
    from rich.console import Console

    console = Console()
    online = found.online
    console.print(f"[bold]{found.view}[/] {found.key} at {_moment(found.t_us)}")
    console.print(
        f"layout {online['layout']} ({'ready' if online['ready'] else 'not ready'}), key {online['redis_key']}"
    )
    if online["newest_us"] is None:
        console.print("the online store holds no value for this key")
    else:
        age_s = (found.t_us - online["newest_us"]) / 1e6
        console.print(f"newest event {_moment(online['newest_us'])}, {age_s:.3f} s before t; {online['bytes']} bytes")
        console.print(f"revision {online['revision']}, merged up to {online['positions']}")
    _print_values(console, found)
    _print_tiles(console, online["tiles"], limit)
    _print_events(console, found, limit)
    if found.agree is not None:
        console.print("online and offline agree" if found.agree else "[red]online and offline differ[/]")


def _print_values(console: Any, found: Explanation) -> None:
    from rich.table import Table

    online = found.online["values"]
    if online is None:
        console.print("t precedes the newest event: the online store cannot answer for it, the archive can")
    table = Table("feature", "online", "from the archive")
    for name in online or found.offline or {}:
        table.add_row(name, *(_cell(values, name) for values in (online, found.offline)))
    console.print(table)


def _cell(values: dict[str, Any] | None, name: str) -> str:
    if values is None:
        return "-"
    return "null" if values[name] is None else str(values[name])


def _print_tiles(console: Any, tiles: list[dict[str, Any]], limit: int) -> None:
    from rich.table import Table

    if not tiles:
        return
    table = Table("hop", "tile starts", "events from here on come to", title=f"{len(tiles)} suffix rows")
    for tile in tiles[-limit:]:
        hop = f"{tile['hop_us'] / 1e6:g} s" if tile["hop_us"] else "lifetime"
        table.add_row(hop, _moment(tile["tile_start_us"]), ", ".join(f"{k} {v}" for k, v in tile["state"].items()))
    console.print(table)


def _print_events(console: Any, found: Explanation, limit: int) -> None:
    from rich.table import Table

    if found.events is None:
        return
    rows = found.events.slice(max(found.events.num_rows - limit, 0)).to_pylist()
    table = Table(*found.events.column_names, title=f"{found.events.num_rows} archived events that count")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@with_settings
def doctor_command(settings: Settings, as_json: bool) -> None:
    """Check the set-up part by part and say what to mend. Exit 1 when something cannot work."""
    from headrace.cli.checks import run_checks

    findings = run_checks(settings)
    if as_json:
        click.echo(json.dumps([finding.as_plain() for finding in findings], indent=2))
    else:
        from rich.console import Console

        marks = {"ok": "[green]ok  [/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}
        for finding in findings:
            Console().print(f"{marks[finding.level]} {finding.part}: {finding.text}", highlight=False)
    sys.exit(1 if any(finding.level == "fail" for finding in findings) else 0)
