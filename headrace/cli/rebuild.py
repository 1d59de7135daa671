"""`headrace rebuild`, and what `headrace apply --rebuild` shares with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from headrace.cli.common import counted, with_settings
from headrace.settings import Settings

if TYPE_CHECKING:
    from materialize.rebuild import Rebuilt

__all__ = ["rebuild_command", "replay_bar", "told"]


@click.command("rebuild")
@click.argument("view", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@with_settings
def rebuild_command(settings: Settings, view: tuple[str, ...], as_json: bool) -> None:
    """Compute the values of each VIEW anew from the whole log, while the present ones go on serving.

    \b
    Use it when stored values are in doubt. The definition stays: for a changed
    one, headrace apply --rebuild does the same before it switches.

    \b
    1. A new layout of the view is built beside the old one, from the archive
       and then the stream, until it is ahead of the worker.
    2. The worker keeps both up to date; a few seconds later the catalog names
       the new one, and servers take it within a second.
    3. Ten minutes later the worker sweeps the old one.

    Readers see correct values throughout, and memory holds the view twice for ten minutes. Worker and server may run or
    not. Stopped or killed, run it again: it goes on from the values that are there. Run it where the archive is
    (HEADRACE_DATA_DIR).
    """
    from headrace.telemetry import configure_logging
    from materialize.rebuild import rebuild_views

    configure_logging("rebuild")
    with replay_bar(", ".join(view)) as report:
        done = rebuild_views(settings, view, report)
    if as_json:
        import orjson

        body = {"views": list(done.views), "events": done.events, "seconds": round(done.seconds, 3)}
        click.echo(orjson.dumps(body | {"version": done.catalog.version}, option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo(told(done))


def told(done: Rebuilt) -> str:
    """What a rebuild did, in a line."""
    views = ", ".join(done.views)
    return (
        f"Rebuilt {views} from {counted(done.events, 'event')} in {done.seconds:.1f} s; serving from catalog version "
        f"{done.catalog.version}. The old values are swept in ten minutes, by a worker."
    )


@contextmanager
def replay_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, if that is a terminal, as a function that is told how many events were replayed and of
    how many."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(f"rebuild {what}", markup=False), BarColumn(), TextColumn("{task.completed:,} events"))
    shown = sys.stderr.isatty()
    with Progress(
        *columns, TimeRemainingColumn(), transient=True, console=Console(stderr=True), disable=not shown
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
