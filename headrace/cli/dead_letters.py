"""`headrace dead-letters`: events that are in no view, or not in one, with their reasons; and their replay."""

from __future__ import annotations

from typing import Any

import click

from headrace.cli.common import counted, make_console, with_settings
from headrace.errors import RequestError
from headrace.settings import Settings

__all__ = ["dead_letters_command"]

LONGEST_PAYLOAD = 120


@click.group("dead-letters", invoke_without_command=True)
@click.option("--source", help="Only those of this source.")
@click.option("--view", help="Only those that this view skips.")
@click.option("--since", help="Only those that arrived since then, RFC 3339 (without a zone: UTC).")
@click.option("--limit", default=50, show_default=True, help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="Print them as a JSON list.")
@with_settings
@click.pass_context
def dead_letters_command(
    context: click.Context,
    settings: Settings,
    source: str | None,
    view: str | None,
    since: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List dead letters, oldest first.

    Those of a source are in no view: mend what they break, then replay them. Those of a view are archived and in the
    other views: mend the view's definition, then headrace apply --rebuild.
    """
    if context.invoked_subcommand is not None:
        return
    from headrace.read.dead_letters import list_letters

    store, offline, catalog = _open(settings)
    if source is not None and not source.startswith("writes/"):
        catalog.source(source)
    if view is not None:
        catalog.view(view)
    found = list_letters(store, offline, catalog, source=source, view=view, since_us=_moment_us(since))
    shown = found[-limit:] if limit > 0 else []
    if as_json:
        _print_json(shown)
    else:
        _print(shown, len(found))


@dead_letters_command.command("replay")
@click.option("--source", required=True, help="The source whose dead letters come again.")
@with_settings
def replay_command(settings: Settings, source: str) -> None:
    """Push the dead letters of a source that its definition now accepts, as new events, each once."""
    from headrace.read.dead_letters import replay_letters

    done = replay_letters(*_open(settings), source)
    click.echo(f"Replayed {counted(done.replayed, 'dead letter')} of {source}.")
    if done.still_dead:
        click.echo(f"{counted(len(done.still_dead), 'dead letter')} would be dead again, such as: ")
        _print(done.still_dead[:5], len(done.still_dead))


def _open(settings: Settings) -> tuple[Any, Any, Any]:
    from headrace.stores.catalogs import find_project, load_catalog
    from headrace.stores.connection import open_store
    from headrace.stores.offline import OfflineStore

    project = find_project(settings)
    store = open_store(settings)
    return store, OfflineStore(settings.data_dir), load_catalog(store, project)


def _moment_us(text: str | None) -> int | None:
    from datetime import UTC, datetime, timedelta

    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise RequestError(
            f"--since must be an RFC 3339 time, got {text!r}; write it like 2013-06-01T12:00:00Z."
        ) from None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _print_json(letters: list[dict[str, Any]]) -> None:
    import orjson

    plain = [{name: value for name, value in row.items() if name not in ("layout", "replayed")} for row in letters]
    for row in plain:
        row["payload"] = row["payload"].decode(errors="replace")
    click.echo(orjson.dumps(plain, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z).decode())


def _print(letters: list[dict[str, Any]], total: int) -> None:
    from rich.table import Table

    if not letters:
        click.echo("No dead letters.")
        return
    table = Table("source", "view", "position", "arrived", "reason", "payload", box=None, pad_edge=False)
    for row in letters:
        payload = row["payload"].decode(errors="replace")
        short = payload if len(payload) <= LONGEST_PAYLOAD else payload[:LONGEST_PAYLOAD] + "..."
        place = f"{row['partition']}: {row['offset']}-{row['index']}"
        table.add_row(row["source"], row["view"] or "-", place, f"{row['arrival_time']:%F %T}", row["reason"], short)
    make_console().print(table, soft_wrap=False)
    if total > len(letters):
        click.echo(f"{len(letters):,} of {total:,} (--limit)")
