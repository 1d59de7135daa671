"""`headrace explain` and `headrace doctor`: look behind a value, and behind a set-up."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime, timedelta

import click

from headrace.cli.common import make_console, with_settings
from headrace.errors import RequestError
from headrace.settings import Settings

__all__ = ["doctor_command", "explain_command"]

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
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
    """Show what stands behind the values of VIEW for KEY: whether online and archive agree, rows, tiles, age.

    KEY has one value per join key, in the declared order. Example: headrace explain origin_departures JFK
    """
    from headrace.cli.explained import as_plain, print_explanation
    from headrace.read.explain import explain
    from headrace.read.history import History
    from headrace.stores.catalogs import find_project, load_catalog
    from headrace.stores.connection import open_store
    from headrace.stores.offline import OfflineStore

    t_us = None if at is None else _parse_moment_us(at)
    project = find_project(settings)
    store = open_store(settings)
    catalog = load_catalog(store, project)
    history = History(OfflineStore(settings.data_dir), settings.repo)
    found = explain(store, history, catalog, view, key, t_us, time.time_ns() // 1_000)
    if as_json:
        click.echo(json.dumps(as_plain(found), default=str, indent=2))
    else:
        print_explanation(found, limit)


def _parse_moment_us(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise RequestError(
            f"--at must be an RFC 3339 time, got {text!r}; write it like 2013-06-01T12:00:00Z."
        ) from None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


@click.command("doctor")
@click.option("--url", help="URL of the server to check [default: the one that runs over the data directory].")
@click.option("--port", type=click.IntRange(1, 65535), help="Its port on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@with_settings
def doctor_command(settings: Settings, url: str | None, port: int | None, as_json: bool) -> None:
    """Check the set-up part by part and say what to mend. Exit 1 when something cannot work."""
    from headrace.cli.checks import run_checks

    findings = run_checks(settings, url or (f"http://127.0.0.1:{port}" if port else None))
    if as_json:
        click.echo(json.dumps([finding.as_plain() for finding in findings], indent=2))
    else:
        console = make_console()
        for finding in findings:
            console.print(finding.level.ljust(4), style=COLOURS[finding.level], end=" ")
            console.print(f"{finding.part}: {finding.text}")
    sys.exit(1 if any(finding.level == "fail" for finding in findings) else 0)
