"""`headrace preview`: a view of the repo on sample events, before anything is applied."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.common import make_console, with_settings
from headrace.errors import DataError, RequestError
from headrace.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.catalog.definitions import Catalog, FeatureView
    from headrace.read.preview import Preview

__all__ = ["preview_command"]

FORMATS = {".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson", ".csv": "csv", ".parquet": "parquet"}


@click.command("preview")
@click.argument("view")
@click.option(
    "--events",
    "file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Sample events of the view's source: NDJSON, CSV or Parquet.",
)
@click.option("--at", help="Moment of the features, RFC 3339 (without a zone: UTC); default just after the last event.")
@click.option("--limit", default=20, show_default=True, help="Most rows to print of each table.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@with_settings
def preview_command(settings: Settings, view: str, file: Path, at: str | None, limit: int, as_json: bool) -> None:
    """Run VIEW of the repo on sample events: the rows after its transform, dead letters, and the features per key.

    Nothing is applied, no store is touched. Events arrive in the file's order, at the largest event time so far.
    """
    from headrace.catalog.compile import compile_repo, places_of
    from headrace.catalog.load import load_repo
    from headrace.compute.check_transforms import check_transforms
    from headrace.read.preview import preview_entries

    repo = load_repo(settings.repo)
    catalog = compile_repo(repo, clock="event")
    found = catalog.view(view)
    check_transforms(_alone(catalog, found), places_of(repo))
    shown = preview_entries(catalog, found, _entries(catalog, found, file), _moment(at))
    if as_json:
        _print_json(shown)
    else:
        _print(shown, limit)


def _alone(catalog: Catalog, view: FeatureView) -> Catalog:
    from dataclasses import replace

    return replace(catalog, views=(view,))


def _entries(catalog: Catalog, view: FeatureView, file: Path) -> list[Any]:
    """The file's events as entries of the view's source, all in one partition."""
    from dataclasses import replace

    from headrace.cli.event_files import read_batches
    from headrace.stores.stream import Entry

    kind = FORMATS.get(file.suffix.lower())
    if kind is None:
        raise DataError(f"A file's suffix must be one of {', '.join(FORMATS)}, got {file.name!r}; name it so.")
    if view.source is None:
        raise RequestError(f"A preview runs on events, view {view.name!r} reads a file; name a view of a PushSource.")
    source = replace(catalog.source(view.source), partitions=1)
    batches = [batch for _, part in read_batches(source, file, kind) for batch in part]
    return [Entry(1 + i, batch.format, batch.count, 0, batch.payload) for i, batch in enumerate(batches)]


def _moment(text: str | None) -> datetime | None:
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise RequestError(
            f"--at must be an RFC 3339 time, got {text!r}; write it like 2013-06-01T12:00:00Z."
        ) from None


def _print_json(shown: Preview) -> None:
    import orjson

    tables = {name: getattr(shown, name).to_pylist() for name in ("rows", "dead", "features")}
    body = orjson.dumps({**tables, "at": shown.at}, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z)
    click.echo(body.decode())


def _print(shown: Preview, limit: int) -> None:
    _print_table("rows that count", shown.rows, limit)
    if shown.dead.num_rows:
        _print_table("events that do not", shown.dead, limit)
    _print_table(f"features at {shown.at.isoformat()}", shown.features, limit)


def _print_table(title: str, rows: pa.Table, limit: int) -> None:
    from rich.table import Table

    console = make_console()
    console.print(f"{title}: {rows.num_rows:,}")
    table = Table(*rows.column_names, box=None, pad_edge=False)
    for row in rows.slice(0, limit).to_pylist():
        table.add_row(*("-" if value is None else str(value) for value in row.values()))
    console.print(table, soft_wrap=False)
    if rows.num_rows > limit:
        console.print(f"... and {rows.num_rows - limit:,} more (--limit)")
