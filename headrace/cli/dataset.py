"""`headrace dataset` and `headrace materialize`: training rows out of the archive, batch rows into the store."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.common import counted, make_console, with_settings
from headrace.errors import DataError
from headrace.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["dataset_command", "materialize_command"]

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("dataset")
@click.option("--service", required=True, help="Feature service whose features to add.")
@click.option("--labels", required=True, type=_FILE, help="Parquet or CSV file of label rows with event_timestamp.")
@click.option("--out", required=True, type=_FILE, help="Parquet or CSV file to write.")
@click.option("--full-feature-names", is_flag=True, help="Name features view__feature.")
@with_settings
def dataset_command(settings: Settings, service: str, labels: Path, out: Path, full_feature_names: bool) -> None:
    """Build a point-in-time-correct training set.

    Every label row gets the features as they were at its event_timestamp (without a time zone: UTC). The output has
    the label columns in their order, then the features in the service's order; row order is kept.
    """
    from headrace.read.dataset import build_dataset
    from headrace.read.history import History
    from headrace.stores.offline import OfflineStore
    from headrace.stores.tables import file_format_of, write_file

    file_format_of(out)
    catalog = _catalog(settings)
    history = History(OfflineStore(settings.data_dir), settings.repo)
    with _stages() as on_stage:
        table = build_dataset(
            catalog, service, labels, history, full_feature_names=full_feature_names, on_stage=on_stage
        )
    if not table.num_rows:
        raise DataError(f"A training set has a row per label row, {labels} has none; nothing was written.")
    write_file(table, out)
    _print_summary(table, _label_count(table, catalog, service), out)


def _catalog(settings: Settings) -> Any:
    from headrace.stores.catalogs import find_project, load_catalog
    from headrace.stores.connection import open_store

    project = find_project(settings)
    store = open_store(settings)
    try:
        return load_catalog(store, project)
    finally:
        store.close()


@contextmanager
def _stages() -> Iterator[Any]:
    """A progress bar on standard error, as a function that is told the next stage."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("labels", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _label_count(table: pa.Table, catalog: Any, service: str) -> int:
    """How many leading columns are the labels' own."""
    features = sum(len(reference.features) for reference in catalog.service(service).references)
    return int(table.num_columns) - features


def _print_summary(table: pa.Table, label_columns: int, out: Path) -> None:
    from rich.table import Table

    names = table.column_names[label_columns:]
    shown = Table("feature", "type", "null", box=None, pad_edge=False, title_justify="left")
    shown.title = f"{counted(table.num_rows, 'row')}, {counted(len(names), 'feature')}"
    shown.columns[2].justify = "right"
    for name in names:
        column = table[name]
        rate = column.null_count / len(column) if len(column) else 0.0
        shown.add_row(name, str(column.type), f"{rate:.1%}")
    make_console().print(shown, soft_wrap=False)
    click.echo(f"Wrote {out}")


@click.command("materialize")
@click.argument("view")
@click.option("--start", help="First event time, RFC 3339 (without a time zone: UTC) [all].")
@click.option("--end", help="Last event time, included [all].")
@with_settings
def materialize_command(settings: Settings, view: str, start: str | None, end: str | None) -> None:
    """Load the newest row per key of VIEW's batch source into the online store.

    A key keeps what it holds if that is newer; it is safe to repeat and to run beside the stream.
    """
    from headrace.telemetry import configure_logging
    from materialize.batch import materialize_view

    configure_logging("materialize")
    count = materialize_view(settings, view, _time_us(start, "--start"), _time_us(end, "--end"))
    click.echo(f"Materialized {counted(count, 'key')} of {view}")


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
