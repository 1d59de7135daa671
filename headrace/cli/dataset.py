"""`headrace dataset`: training rows out of the archive."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.common import counted, make_console, with_settings
from headrace.errors import DataError
from headrace.settings import Settings

if TYPE_CHECKING:
    from headrace.read.training_set import TrainingSet

__all__ = ["dataset_command"]

_FILE = click.Path(path_type=Path)


@click.command("dataset")
@click.option("--service", help="Feature service whose features to add.")
@click.option("--features", help="Instead: features as VIEW:FEATURE,VIEW:FEATURE.")
@click.option("--labels", type=_FILE, help="Label rows: Parquet (file or folder), Delta, CSV or NDJSON.")
@click.option("--entities", type=_FILE, help="Instead: entities, each at --at, or on a grid of times.")
@click.option("--all-entities", is_flag=True, help="Instead: every key that the features' views know.")
@click.option("--at", help="One moment for entities [the present].")
@click.option("--every", metavar="DURATION", help="A grid: step, like 1h or 1d.")
@click.option("--from", "start", metavar="TIME", help="A grid: its first moment.")
@click.option("--to", "end", metavar="TIME", help="A grid: its end, not included.")
@click.option("--out", required=True, type=_FILE, help="File to write: .parquet or .csv.")
@click.option("--as-known", is_flag=True, help="Count only events that had arrived by a row's time.")
@click.option("--full-feature-names", is_flag=True, help="Name features VIEW__FEATURE.")
@click.option("--memory", metavar="SIZE", help="Most memory to use; what does not fit is spilled beside --out [2GB].")
@click.option("--manifest", type=_FILE, help="Where to write the manifest [OUT.manifest.json].")
@click.option("--no-manifest", is_flag=True, help="Write none.")
@click.option("--from-manifest", type=_FILE, help="Build the rows of a manifest again.")
@click.option("--allow-changed", is_flag=True, help="With it: what has changed since is stated, not refused.")
@click.option("--trust-functions", is_flag=True, help="With it: run functions that only the manifest has.")
@with_settings
def dataset_command(settings: Settings, out: Path, **given: Any) -> None:
    """Build a point-in-time-correct training set, or the rows to score a batch of.

    Every label row gets the features as they were at its event_timestamp: a windowed view counts events before that
    moment, a plain or batch view shows its newest row up to it. Nothing from after a row's time is in it. Times
    without a zone are UTC. The output has the label columns, then the features; rows keep their order.

    \b
    Label rows from a file (join keys, event_timestamp, whatever else you like):
      headrace dataset --service fraud_v1 --labels labels.parquet --out train.parquet
    Entities at every hour of a month:
      headrace dataset --service fraud_v1 --entities cards.csv --every 1h \\
          --from 2024-05-01 --to 2024-06-01 --out grid.parquet
    Every entity as it is now, to score them all:
      headrace dataset --service fraud_v1 --all-entities --out score.parquet
    The same rows again, after later applies, events and compactions:
      headrace dataset --from-manifest train.parquet.manifest.json --out again.parquet

    A manifest lies beside the rows: the definitions, positions in the log, hashes of files, options and null rates. An
    interrupted run leaves what was there before. docs/training-sets.md has more.
    """
    from headrace.read.training_set import manifest_path
    from headrace.stores.tables import file_format_of

    file_format = file_format_of(out)
    _refuse_mixtures(given)
    with _interruptible():
        rows = _rebuilt(settings, given) if given["from_manifest"] else _asked(settings, given)
        if not rows.num_rows:
            raise DataError("A training set has a row per label row, there are none; nothing was written.")
        write = rows.to_csv if file_format == "csv" else rows.to_parquet
        with _progress() as on_progress:
            write(out, manifest=given["manifest"] or not given["no_manifest"], on_progress=on_progress)
    _print_summary(rows, out)
    if not given["no_manifest"]:
        click.echo(f"Wrote {given['manifest'] or manifest_path(out)}")


def _refuse_mixtures(given: dict[str, Any]) -> None:
    """Raises UsageError for options that contradict one another."""
    if given["manifest"] and given["no_manifest"]:
        raise click.UsageError("--manifest and --no-manifest contradict each other; give one.")
    rows = [name for name in ("labels", "entities", "all_entities") if given[name]]
    if given["from_manifest"]:
        asked = ("service", "features", "all_entities", "at", "every", "start", "end", "as_known", "full_feature_names")
        wrong = [name for name in asked if given[name]]
        if wrong or len(rows) > 1:
            option = {"start": "from", "end": "to"}.get(wrong[0], wrong[0]) if wrong else "labels"
            raise click.UsageError(f"A manifest says what to build; leave out --{option.replace('_', '-')}.")
        return
    for option in ("allow_changed", "trust_functions"):
        if given[option]:
            raise click.UsageError(f"--{option.replace('_', '-')} goes with --from-manifest; leave it out.")
    if bool(given["service"]) == bool(given["features"]):
        raise click.UsageError("Say which features: --service NAME, or --features VIEW:FEATURE,...")
    if len(rows) != 1:
        raise click.UsageError("Say which rows, by one of --labels FILE, --entities FILE and --all-entities.")
    if given["labels"] and any(given[name] for name in ("at", "every", "start", "end")):
        raise click.UsageError("Label rows have their own times; --at, --every, --from, --to go with entities.")


def _asked(settings: Settings, given: dict[str, Any]) -> TrainingSet:
    from headrace.read.dataset import DEFAULT_MEMORY
    from headrace.read.grid import grid
    from headrace.read.training_set import training_set

    times = {name: given[name] for name in ("at", "every", "start", "end")}
    features = given["service"] or [name.strip() for name in given["features"].split(",")]
    options = {name: given[name] for name in ("as_known", "full_feature_names")}
    labels = given["labels"] or grid(given["entities"], **times)
    return training_set(features, labels, settings=settings, memory=given["memory"] or DEFAULT_MEMORY, **options)


def _rebuilt(settings: Settings, given: dict[str, Any]) -> TrainingSet:
    from headrace.read.training_set import rebuild_training_set

    options = {name: given[name] for name in ("memory", "allow_changed", "trust_functions")}
    labels = given["labels"] or given["entities"]
    return rebuild_training_set(given["from_manifest"], labels, settings=settings, **options)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM leave by the same way, so that nothing is left behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        click.echo("Interrupted; nothing was written.", err=True)
        raise click.exceptions.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar on standard error with what is being done and the time left, as a function that is told how far it is."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    shown = sys.stderr.isatty()
    with Progress(*columns, *left, transient=True, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("labels", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _print_summary(rows: TrainingSet, out: Path) -> None:
    from rich.table import Table

    manifest = rows.summary
    shown = Table("feature", "type", "null", box=None, pad_edge=False, title_justify="left")
    features = [item for item in manifest if item.is_feature]
    shown.title = f"{counted(rows.num_rows, 'row')}, {counted(len(features), 'feature')}"
    shown.columns[2].justify = "right"
    has_beyond = any(item.beyond for item in features)
    if has_beyond:
        shown.add_column("out of range", justify="right")
    for item in features:
        beyond = [f"{item.beyond:,}"] if has_beyond else []
        shown.add_row(item.name, item.type, f"{item.nulls / rows.num_rows:.1%}", *beyond)
    make_console().print(shown, soft_wrap=False)
    for difference in rows.differences:
        click.echo(f"Differs from the manifest: {difference}.")
    click.echo(f"Wrote {out}")
