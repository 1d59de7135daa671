"""`headrace materialize` and `materialize-incremental`: rows of batch files into the online store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from headrace.cli.common import counted, with_settings
from headrace.errors import DataError
from headrace.settings import Settings

if TYPE_CHECKING:
    from materialize.batch import Materialized

__all__ = ["materialize_command", "materialize_incremental_command"]

_MEMORY = click.option(
    "--memory", metavar="SIZE", default="2GB", show_default=True, help="Most memory for the keys of one reading."
)


@click.command("materialize")
@click.argument("view", nargs=-1)
@click.option("--start", metavar="TIME", help="First event time, RFC 3339 (without a time zone: UTC) [all].")
@click.option("--end", metavar="TIME", help="Last event time, included [all].")
@_MEMORY
@with_settings
def materialize_command(
    settings: Settings, view: tuple[str, ...], start: str | None, end: str | None, memory: str
) -> None:
    """Load the newest row per key of each VIEW's batch source into the online store.

    Without a VIEW all that have a batch source and are served online. A key keeps what it holds if that is newer; it is
    safe to repeat, to stop, and to run beside worker and servers. A file that cannot be used is said, the other views
    go on; exit 1.
    """
    start_us, end_us = _time_us(start, "--start"), _time_us(end, "--end")
    if start_us is not None and end_us is not None and start_us > end_us:
        raise click.BadParameter(f"{start} is after --end {end}.", param_hint="--start")
    from materialize.batch import materialize

    memory_bytes = _bytes(memory)
    _run_all(settings, view, lambda name: materialize(settings, name, start_us, end_us, memory_bytes=memory_bytes))


@click.command("materialize-incremental")
@click.argument("view", nargs=-1)
@click.option("--end", metavar="TIME", help="Last event time, included [the present].")
@_MEMORY
@with_settings
def materialize_incremental_command(settings: Settings, view: tuple[str, ...], end: str | None, memory: str) -> None:
    """Load what came since the last time: rows from the newest one on that earlier runs have read.

    Without a VIEW all that have a batch source and are served online. A view that was built anew, or that the store has
    lost, is loaded whole. Rows that come into a file later with an earlier event time are not seen: headrace
    materialize VIEW loads them.
    """
    end_us = _time_us(end, "--end")
    from materialize.batch import materialize_incremental

    memory_bytes = _bytes(memory)
    _run_all(settings, view, lambda name: materialize_incremental(settings, name, end_us, memory_bytes=memory_bytes))


def _run_all(settings: Settings, views: Sequence[str], run: Callable[[str], Materialized]) -> None:
    from headrace.telemetry import configure_logging
    from materialize.batch import materializable_views

    configure_logging("materialize")
    names = list(dict.fromkeys(views)) or materializable_views(settings)
    if not names:
        click.echo("There is nothing to materialize: no view has a batch source and is served online.")
    failed = False
    for name in names:
        try:
            click.echo("; ".join(_told(run(name))))
        except DataError as error:
            if len(names) == 1:
                raise
            failed = True
            click.echo(f"Error: {name} was not materialized. {error}", err=True)
    if failed:
        sys.exit(1)


def _told(done: Materialized) -> Iterator[str]:
    """What one run did, in a line."""
    from headrace.moments import rfc3339

    since = "" if done.start_us is None else f" since {rfc3339(done.start_us)}"
    newest = "" if done.newest_us is None else f", newest row {rfc3339(done.newest_us)}"
    yield f"Materialized {counted(done.keys, 'key')} of {done.view}{since}{newest}: {done.written:,} written"
    if done.kept:
        yield f"{done.kept:,} kept what they had, which is newer"
    if done.forgotten:
        yield f"{done.forgotten:,} left out, forgotten"
    if done.null_keys:
        yield f"{counted(done.null_keys, 'row')} without a key"
    if done.refused:
        yield f"{counted(done.refused, 'row')} refused: no event time, one outside the years 1 to 9999, or an infinity"


def _bytes(size: str) -> int:
    from headrace.read.dataset import parse_bytes

    return parse_bytes(size)


def _time_us(text: str | None, option: str) -> int | None:
    """Microseconds UTC of a command line's time."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no time; write 2024-05-01T12:00:00Z.", param_hint=option) from None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
