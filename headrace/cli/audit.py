"""`headrace audit`: are served values those that the definitions give over the log?"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.common import counted, make_console, with_settings
from headrace.settings import Settings

if TYPE_CHECKING:
    from headrace.read.audit import AuditReport

__all__ = ["audit_command"]


@click.command("audit")
@click.argument("service")
@click.option("--from", "start", help="Rows served from this moment on (RFC 3339).")
@click.option("--to", "end", help="Rows served before this moment (RFC 3339).")
@click.option("--sample", type=click.IntRange(1), help="At most so many rows, spread evenly [all].")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@with_settings
def audit_command(
    settings: Settings, service: str, start: str | None, end: str | None, sample: int | None, as_json: bool
) -> None:
    """Recompute logged rows of SERVICE from the archive, and say per feature what differs and why.

    \b
    equal       served as the definition gives it, however one looks
    lag         events had arrived that the worker had not applied yet
    late        events came after the row was served, with earlier event times
    degraded    not from the store (a cached value, a default, null)
    definition  the view was served by another definition than the present one
    pending     the archive does not hold its events yet: run the audit again
    unaudited   from a batch file, or computed on demand
    bug         not what the events at its positions come to: exit code 1

    A service is logged once it has tags={"log_rate": "0.01"}: the share of its requests whose answers are kept.

    \b
      headrace audit fraud_v1
      headrace audit fraud_v1 --from 2026-11-01T00:00:00Z --sample 1000 --json
    """
    from headrace.compute.columns import parse_moment
    from headrace.read.audit import audit
    from headrace.read.history import History
    from headrace.stores.catalogs import find_project, load_catalog
    from headrace.stores.connection import open_store
    from headrace.stores.offline import OfflineStore

    since_us, until_us = (None if text is None else parse_moment(text) for text in (start, end))
    store = open_store(settings)
    catalog = load_catalog(store, find_project(settings))
    history = History(OfflineStore(settings.data_dir), settings.repo)
    with _progress() as on_progress:
        report = audit(
            catalog, history, service, since_us=since_us, until_us=until_us, sample=sample, on_progress=on_progress
        )
    if as_json:
        click.echo(json.dumps(_plain(report), indent=2))
    else:
        _print(report)
    sys.exit(1 if report.bugs else 0)


def _plain(report: AuditReport) -> dict[str, Any]:
    return {
        "service": report.service,
        "rows": report.rows,
        "bugs": report.bugs,
        "outcomes": {feature: dict(counts) for feature, counts in report.outcomes.items()},
        "findings": [dataclasses.asdict(finding) for finding in report.findings],
    }


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(transient=True, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("served rows", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print(report: AuditReport) -> None:
    from rich.table import Table

    from headrace.read.audit import OUTCOMES

    if not report.rows:
        click.echo(
            f"No rows of {report.service} were logged then; a service is logged with tags={{'log_rate': '0.01'}}, "
            "and rows reach the archive within seconds."
        )
        return
    met = [outcome for outcome in OUTCOMES if any(counts[outcome] for counts in report.outcomes.values())]
    shown = Table("feature", *met, box=None, pad_edge=False, title_justify="left")
    shown.title = f"{report.service}: {counted(report.rows, 'served row')}"
    for column in shown.columns[1:]:
        column.justify = "right"
    for feature, counts in report.outcomes.items():
        shown.add_row(feature, *[f"{counts[outcome]:,}" for outcome in met])
    console = make_console()
    console.print(shown, soft_wrap=False)
    for finding in report.findings:
        console.print(_line(finding))
    if report.bugs:
        console.print(f"{counted(report.bugs, 'value')} differ from what the events at their positions come to.")


def _line(finding: Any) -> str:
    sides = f"served {finding.served!r}, at its positions {finding.at_positions!r}"
    sides += f", as known {finding.as_known!r}, by event time {finding.by_event_time!r}"
    return f"{finding.outcome}: {finding.feature} of request {finding.request_id} row {finding.row}: {sides}"
