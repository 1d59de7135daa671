"""What a benchmark found: printed as a table, and written to `benchmarks/results/NAME.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table

__all__ = ["RESULTS", "Result", "higher", "lower", "missing", "print_results", "write_results"]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Result:
    """One line of a benchmark. `ratio` says how many times better ours is, whatever the unit; `peer_name` begins with
    the peer's name, or with `ours` where one of our own figures is compared with another; None was not measured."""

    work: str
    unit: str
    ours: float | None
    peer: float | None
    peer_name: str
    ratio: float | None


def higher(work: str, unit: str, ours: float, peer: float, peer_name: str) -> Result:
    """A line of which more is better: rates."""
    return Result(work, unit, ours, peer, peer_name, ours / peer if peer else None)


def lower(work: str, unit: str, ours: float, peer: float, peer_name: str) -> Result:
    """A line of which less is better: times, bytes."""
    return Result(work, unit, ours, peer, peer_name, peer / ours if ours else None)


def missing(work: str, unit: str, ours: float, peer_name: str) -> Result:
    """A line whose peer could not be run; `peer_name` says why."""
    return Result(work, unit, ours, None, peer_name, None)


def print_results(title: str, results: Sequence[Result], notes: Sequence[str] = ()) -> None:
    """The table on standard output, then the notes that say under what conditions."""
    table = Table(title=title, title_justify="left")
    for name in ("work", "unit", "ours", "peer"):
        table.add_column(name, justify="left" if name in ("work", "unit") else "right")
    table.add_column("peer's name")
    table.add_column("ratio", justify="right")
    for row in results:
        ratio = "-" if row.ratio is None else f"{row.ratio:,.2f}x"
        table.add_row(row.work, row.unit, _shown(row.ours), _shown(row.peer), row.peer_name, ratio)
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)


def write_results(name: str, results: Sequence[Result]) -> Path:
    """Writes `benchmarks/results/NAME.json` and returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_bytes(orjson.dumps([asdict(row) for row in results], option=orjson.OPT_INDENT_2))
    return path


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
