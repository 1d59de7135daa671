"""`headrace push` and `headrace streams`: events into the stream, and how far they have come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.common import counted, make_console, with_settings
from headrace.settings import Settings

if TYPE_CHECKING:
    from headrace.catalog.definitions import Source

__all__ = ["push_command", "streams_command"]

FULL_PAUSE_S = 0.5
FORMATS = {".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson", ".csv": "csv", ".parquet": "parquet"}


@click.command("push")
@click.argument("source")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--format", "kind", type=click.Choice(["ndjson", "csv", "parquet"]), help="Unset: by the file's suffix.")
@with_settings
def push_command(settings: Settings, source: str, file: Path, kind: str | None) -> None:
    """Push the events of FILE (NDJSON, CSV or Parquet) to SOURCE, straight into its stream.

    When the stream's budget is used up it says so, waits until worker and archiver have caught up, and goes on.
    Events that cannot be typed become dead letters with a reason; the others go on. Without an event id in the
    source's definition, pushing a file twice counts its events twice.
    """
    from headrace.errors import DataError
    from headrace.stores.catalogs import find_project, load_catalog
    from headrace.stores.connection import open_store
    from headrace.stores.payloads import refuse_topic
    from headrace.stores.stream import EventStream

    kind = kind or FORMATS.get(file.suffix.lower())
    if kind is None:
        raise DataError(f"A file's suffix must be one of {', '.join(FORMATS)}, got {file.name!r}; add --format.")
    project = find_project(settings)
    store = open_store(settings)
    catalog = load_catalog(store, project)
    target, stream = catalog.source(source), EventStream(store, catalog.project, settings.stream_budget)
    refuse_topic(target)
    started = time.monotonic()
    total = _push_file(stream, target, file, kind, catalog.version)
    seconds = max(time.monotonic() - started, 1e-9)
    click.echo(f"Pushed {counted(total, 'event')} to {source} in {seconds:.1f} s ({total / seconds:,.0f} events/s).")


def _push_file(stream: Any, source: Source, file: Path, kind: str, version: int) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from headrace.cli.event_files import read_batches

    columns = (TextColumn(source.name), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn())
    count = TextColumn("{task.fields[events]:,} events")
    total = 0
    with Progress(*columns, count, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(source.name, total=1.0, events=0)
        for fraction, batches in read_batches(source, file, kind):
            for batch in batches:
                held = (batch.format, batch.payload, batch.count, batch.partition)
                _append(partial(stream.append, source.name, *held, version), total)
                total += batch.count
            progress.update(task, completed=fraction, events=total)
    return total


def _append(append: Callable[[], object], before: int) -> None:
    """Append, waiting as long as the stream is full."""
    from headrace.errors import StreamFullError

    said = False
    while True:
        try:
            append()
            return
        except StreamFullError as error:
            if not said:
                click.echo(f"{error} Waiting after {counted(before, 'event')}; Ctrl-C stops.", err=True)
                said = True
            time.sleep(FULL_PAUSE_S)


@click.command("streams")
@click.option("--json", "as_json", is_flag=True, help="Print what GET /streams answers, rates and dead_letters.")
@click.option("--over", default=1.0, show_default=True, help="Seconds over which the rates are measured.")
@with_settings
def streams_command(settings: Settings, as_json: bool, over: float) -> None:
    """Show for each source how far its events are applied and archived, its lag, rates and watermark, and how many of
    its events were late, repeated or dead."""
    from headrace.stores.catalogs import find_project, load_catalog
    from headrace.stores.connection import open_store

    project = find_project(settings)
    store = open_store(settings)
    catalog = load_catalog(store, project)
    before, started = _report(store, catalog, settings), time.monotonic()
    time.sleep(over)
    report, seconds = _report(store, catalog, settings), time.monotonic() - started
    for name, row in report.items():
        _add_rates(row, before.get(name, row), seconds)
    for source, count in _dead_letters(settings).items():
        if source in report:
            report[source]["dead_letters"] = count
    if as_json:
        import orjson

        click.echo(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode())
    else:
        _print_table(report)


def _add_rates(row: dict[str, Any], before: Mapping[str, Any], seconds: float) -> None:
    """Events per second by stage, between two reports."""
    done = {stage: count - before["events"][stage] for stage, count in row["events"].items()}
    row["rates"] = {stage: round(count / seconds, 1) for stage, count in done.items()}


def _dead_letters(settings: Settings) -> dict[str, int]:
    """Events of each source that are in no view."""
    from headrace.stores.offline import OfflineStore

    counts = OfflineStore(settings.data_dir).dead_letter_counts()
    return {source: count for (source, layout), count in counts.items() if layout is None}


def _report(store: Any, catalog: Any, settings: Settings) -> dict[str, Any]:
    from contextlib import closing

    from headrace.stores.counters import read_counts, sources_counts
    from headrace.stores.keys import markers_key
    from headrace.stores.logs import Logs
    from headrace.stores.stream import EventStream
    from headrace.stores.stream_reports import ReportQuery

    query = ReportQuery(catalog)
    markers = store.hmget(markers_key(catalog.project), query.fields) if query.fields else []
    counts = sources_counts(read_counts(store, catalog.project))
    with closing(Logs(EventStream(store, catalog.project), catalog, settings)) as logs:
        report = query.report(markers, logs.heads(query.places))
    return {name: row | {"counts": counts.get(name, {})} for name, row in report.items()}


def _print_table(report: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.table import Table

    names = ("source", "events", "lag", "behind", "in/s", "out/s", "late", "repeated", "dead", "watermark", "applied")
    table = Table(*names, box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for name, row in report.items():
        counts, rates = row["counts"], row["rates"]
        lag = "?" if row["lag"] is None else f"{row['lag']:,}"
        behind = "?" if row["lag_seconds"] is None else f"{row['lag_seconds']:.1f} s"
        outcomes = (counts.get("late", 0), counts.get("repeated", 0), row.get("dead_letters", 0))
        table.add_row(
            name,
            f"{row['events']['pushed']:,}",
            lag,
            behind,
            *(f"{rates[stage]:,.0f}" for stage in ("pushed", "applied")),
            *(f"{number:,}" for number in outcomes),
            row["watermark"] or "-",
            "\n".join(_places(row["applied"])) or "-",
        )
    make_console().print(table, soft_wrap=False)
    for row in report.values():
        for role, text in row["stopped"].items():
            click.echo(f"The {role} has stopped: {text}")
    if any(row.get("dead_letters") for row in report.values()):
        click.echo("Dead letters are events in no view; see why: headrace dead-letters")


def _places(positions: Mapping[str, str]) -> Iterator[str]:
    for partition, position in positions.items():
        yield position if len(positions) == 1 and partition == "0" else f"{partition}: {position}"
