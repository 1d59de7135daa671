"""`headrace ingest`: past events from files straight into the archive, then into the views."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.common import counted, with_settings
from headrace.errors import DataError, RequestError, SettingsError, UnavailableError
from headrace.settings import Settings

if TYPE_CHECKING:
    import redis
    from rich.progress import Progress

    from headrace.catalog.definitions import Catalog, Source

__all__ = ["ingest_command"]

ANSWER_S = 30.0
STOP_S = 30.0
VIEWS_IDLE_S = 3.0
MOST_REASONS = 5


@click.command("ingest")
@click.argument("source")
@click.option("--from", "path", required=True, metavar="PATH", help="A file, a folder, a Delta table or a quoted glob.")
@click.option("--format", "kind", type=click.Choice(["ndjson", "csv", "parquet"]), help="Unset: by each file's suffix.")
@click.option("--map", "renamed", multiple=True, metavar="NAME=COLUMN", help="Where the files call a column otherwise.")
@click.option("--null", "absent", multiple=True, metavar="NAME", help="A column that the files lack: it is null.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the views hold the events.")
@with_settings
def ingest_command(
    settings: Settings,
    source: str,
    path: str,
    kind: str | None,
    renamed: tuple[str, ...],
    absent: tuple[str, ...],
    wait: bool,
) -> None:
    """Import the past events in PATH (Parquet, CSV, NDJSON, Delta) into the archive of SOURCE, and into its views.

    A file is known by its content: given again, or in a folder that has grown, only what is new is added, also after
    an import that was interrupted. Rows that do not fit become dead letters; columns that do not are refused before
    anything is written. The archiver does the work, so it must be able to read PATH; while none runs, this command
    starts one. Events that also came by the stream count twice: import those from before it.
    """
    from headrace.stores.catalogs import find_project, load_catalog
    from headrace.stores.connection import open_store
    from headrace.stores.import_files import find_files
    from materialize.ingest import refuse_unfit

    project = find_project(settings)
    store = open_store(settings)
    catalog = load_catalog(store, project)
    target = catalog.source(source)
    columns = _mapping(renamed)
    files = find_files(path, [columns.get(column.name, column.name) for column in target.columns], kind)
    refuse_unfit(target, files, columns, absent)
    body = {"files": [file.as_plain() for file in files], "renamed": columns, "absent": list(absent)}
    started = time.monotonic()
    with _bars() as bars, _an_archiver(settings, store, catalog) as archiver:
        done = _import(store, project, target, body, bars, archiver)
        seconds = time.monotonic() - started
        reached = not wait or _fill_views(store, catalog, target, bars)
    _print_result(target, done, seconds)
    if wait and catalog.views_of(source):
        names = ", ".join(view.name for view in catalog.views_of(source))
        say = "hold them" if reached else "take them up when a worker runs (headrace up, or headrace worker)"
        click.echo(f"The views of {source} {say}: {names}.")


def _mapping(renamed: Sequence[str]) -> dict[str, str]:
    """NAME=COLUMN pairs by name."""
    pairs = [text.partition("=") for text in renamed]
    wrong = [text for text, (name, sign, column) in zip(renamed, pairs, strict=True) if not (name and sign and column)]
    if wrong:
        raise RequestError(f"--map takes NAME=COLUMN, the source's name and the file's, got {wrong[0]!r}.")
    return {name: column for name, _, column in pairs}


@contextlib.contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
    rows = TextColumn("{task.fields[rows]:,} rows {task.fields[note]}")
    shown = sys.stderr.isatty()
    with Progress(*columns, rows, TimeRemainingColumn(), console=Console(stderr=True), disable=not shown) as bars:
        yield bars


@contextlib.contextmanager
def _an_archiver(settings: Settings, store: redis.Redis, catalog: Catalog) -> Iterator[subprocess.Popen[str] | None]:
    """An archiver of this command's own, while no other owns the data directory: it archives the streams too, and
    stops cleanly at the end."""
    from headrace.cli.supervisor import command_of
    from headrace.stores.offline import archiver_ownership

    try:
        with archiver_ownership(settings.data_dir):
            may_start = _is_archive_of(settings, store, catalog)
    except SettingsError:
        may_start = False
    if not may_start:
        yield None
        return
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    child = subprocess.Popen(command_of("archiver", settings), text=True, start_new_session=True, **pipes)
    try:
        yield child
    finally:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=STOP_S)
        child.kill()


def _is_archive_of(settings: Settings, store: redis.Redis, catalog: Catalog) -> bool:
    """Whether the project is archived in this data directory: a second archive would begin with half of the log."""
    from headrace.stores.markers import Markers, places
    from headrace.stores.offline import OfflineStore

    names = [(source.name, partition) for source, partition in places(catalog)]
    offline, marks = OfflineStore(settings.data_dir), Markers(store, catalog.project).applied("archived", names)
    return all(mark is None or mark.offset <= max(offline.archived_offset(*place), 0) for place, mark in marks.items())


def _import(
    store: redis.Redis,
    project: str,
    source: Source,
    body: dict[str, Any],
    bars: Progress,
    archiver: subprocess.Popen[str] | None,
) -> dict[str, Any]:
    """Give the order and follow its receipts to the end; returns the last one's detail.

    Raises DataError when it failed, UnavailableError when nobody takes it.
    """
    import orjson

    from headrace.stores.orders import give_order, last_receipt, receipts_after

    after = last_receipt(store, project)
    order = give_order(store, project, "import", source.name, body)
    task = bars.add_task(f"import {source.name}", total=None, rows=0, note="")
    heard_s, answered = time.monotonic(), False
    while True:
        for place, receipt in receipts_after(store, project, after, 0.5):
            after = place
            if receipt["id"] != order:
                continue
            heard_s, answered = time.monotonic(), True
            if receipt["state"] == "failed":
                raise DataError(receipt["detail"])
            if receipt["state"] != "started":
                told: dict[str, Any] = orjson.loads(receipt["detail"])
                note = f"file {min(told['done'] + 1, told['files'])} of {told['files']}"
                bars.update(task, total=max(told["bytes"], 1), completed=told["read"], rows=told["rows"], note=note)
                if receipt["state"] == "done":
                    bars.update(task, completed=max(told["bytes"], 1))
                    return told
        if time.monotonic() > heard_s + ANSWER_S:
            _refuse_silence(answered)
            heard_s = time.monotonic()
        if archiver is not None and archiver.poll() not in (None, 0):
            raise UnavailableError(_last_words(archiver))


def _refuse_silence(answered: bool) -> None:
    if answered:
        click.echo("Waiting for the archiver; the import goes on when one runs (headrace archive).", err=True)
        return
    raise UnavailableError(
        f"An import needs the archiver of this project, and none answered within {ANSWER_S:g} s; start it where the "
        "archive lies (headrace archive, or headrace up), able to read the files: it will carry the order out."
    )


def _last_words(archiver: subprocess.Popen[str]) -> str:
    _, errors = archiver.communicate()
    lines = [line for line in (errors or "").splitlines() if line.strip()]
    return f"The archiver of this import ended: {lines[-1] if lines else f'code {archiver.returncode}'}"


def _fill_views(store: redis.Redis, catalog: Catalog, source: Source, bars: Progress) -> bool:
    """Wait until the worker has merged all imports; False if none works on it."""
    from headrace.stores.keys import lease_key
    from headrace.stores.markers import IMPORTS, Markers

    place, markers = (source.name, IMPORTS), Markers(store, catalog.project)
    archived = markers.applied("archived", [place])[place]
    if archived is None or not catalog.views_of(source.name):
        return True
    task = bars.add_task("views", total=archived.total, rows=0, note="")
    seen, moved_s = -1, time.monotonic()
    while True:
        applied = markers.applied("source", [place])[place]
        offset, total = (applied.offset, applied.total) if applied else (0, 0)
        bars.update(task, completed=total, rows=total)
        if offset >= archived.offset:
            return True
        is_worked_on = bool(store.exists(lease_key(catalog.project, "worker")))
        if offset > seen or is_worked_on:
            seen, moved_s = offset, time.monotonic()
        if time.monotonic() > moved_s + VIEWS_IDLE_S:
            return False
        time.sleep(0.1)


def _print_result(source: Source, done: dict[str, Any], seconds: float) -> None:
    files = counted(done["files"], "file") + (f", {done['known']:,} of them in before" if done["known"] else "")
    click.echo(f"Imported {counted(done['imported'], 'event')} to {source.name} from {files}, in {seconds:.1f} s.")
    if done["repeated"]:
        click.echo(f"{counted(done['repeated'], 'event')} of them repeat others and count nowhere.")
    if done["dropped"]:
        click.echo(f"{counted(done['dropped'], 'row')} left out: an expectation drops them, or retention has.")
    if done["dead"]:
        click.echo(
            f"{counted(done['dead'], 'row')} became dead letters (headrace dead-letters --source {source.name}):"
        )
        for reason, n in sorted(done["reasons"].items(), key=lambda item: -item[1])[:MOST_REASONS]:
            click.echo(f"  {n:>9,}  {reason}")
