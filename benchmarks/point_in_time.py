"""The point-in-time benchmark: training rows against Feast's file store and DuckDB's window frames.

python -m benchmarks.point_in_time [--quick | --nightly]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import run_json
from benchmarks.point_in_time_world import FEATURES, FUNCTIONS, WINDOWS_DAYS, World
from benchmarks.report import Result, higher, lower, missing, print_results, write_results

__all__ = ["FULL", "NIGHTLY", "QUICK", "Size", "measure"]

MEMORY = "2GB"
MEMORY_MB = 2_000
TIMEOUT_S = 3_600.0
FUNCTIONS_NAMED = f"{len(WINDOWS_DAYS)} windows x ({', '.join(FUNCTIONS)})"

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything. `rows` 0 leaves the as-of join out, `peered` False runs ours alone; events have a tenth
    as many labels, at most `most_labels`."""

    rows: int
    events: tuple[int, ...]
    labels: int = 100_000
    most_labels: int = 1_000_000
    peered: bool = True

    def labels_of(self, events: int) -> int:
        return min(events // 10, self.most_labels)


FULL = Size(1_000_000, (2_500_000, 5_000_000, 10_000_000))
QUICK = Size(1_000_000, (1_000_000, 2_000_000, 4_000_000))
NIGHTLY = Size(0, (100_000_000,), peered=False)


def measure(size: Size) -> list[Result]:
    """Everything, each side in a process of its own; the answers of both are held against each other."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        results = _as_of(Path(folder), size) if size.rows else []
        return [*results, *_windows(Path(folder), size)]


def _as_of(folder: Path, size: Size) -> list[Result]:
    world = World(folder / "rows")
    world.begin()
    world.write_rows(size.rows)
    labels = world.write_labels(size.labels)
    ours, ours_out = _ours(world, "rows", labels)
    feast, feast_out = _peer("feast", world, labels)
    _refuse_other_rows(ours_out, feast_out, [f"f{i}" for i in range(FEATURES)])
    work = f"as-of join, {size.labels:,} labels x {size.rows:,} rows x {FEATURES} features"
    name = "Feast get_historical_features, file store"
    return [
        lower(work, "s", ours["seconds"], feast["seconds"], name),
        lower(f"{work}, peak memory", "MB", ours["peak_mb"], feast["peak_mb"], name),
    ]


def _windows(folder: Path, size: Size) -> list[Result]:
    rates: dict[int, float] = {}
    results: list[Result] = []
    for events in size.events:
        world = World(folder / str(events))
        world.begin()
        world.write_events(events)
        labels = world.write_labels(size.labels_of(events))
        ours, ours_out = _ours(world, "windows", labels)
        rates[events] = events / ours["seconds"]
        if events == size.events[-1]:
            results += _largest(world, events, size, ours, ours_out, labels)
    first = size.events[0]
    for events in size.events[1:]:
        results.append(higher(f"{events:,} events", "events/s", rates[events], rates[first], f"ours, {first:,} events"))
    return results


def _largest(world: World, events: int, size: Size, ours: Figures, out: Path, labels: Path) -> list[Result]:
    many = f"{size.labels_of(events):,} labels x {events:,} events"
    work = f"windowed join, {many} x {FUNCTIONS_NAMED}, from Delta to Parquet"
    memory = lower(f"{work}, peak memory", "MB", ours["peak_mb"], MEMORY_MB, f"ours, what --memory {MEMORY} allows")
    if not size.peered:
        return [missing(work, "s", ours["seconds"], "no peer at this size"), memory]
    if importlib.util.find_spec("duckdb") is None:
        return [missing(work, "s", ours["seconds"], "DuckDB is not installed (extra bench)"), memory]
    found, found_out = _peer("duckdb", world, labels)
    columns = [f"{function}_{days}d" for days in WINDOWS_DAYS for function in FUNCTIONS]
    _refuse_other_rows(out, found_out, columns)
    name = "DuckDB RANGE frames"
    return [
        lower(work, "s", ours["seconds"], found["seconds"], name),
        lower(f"{work}, peak memory", "MB", ours["peak_mb"], found["peak_mb"], name),
        memory,
    ]


def _ours(world: World, service: str, labels: Path) -> tuple[Figures, Path]:
    out = world.folder / "ours.parquet"
    arguments = [str(world.folder), service, str(labels), str(out), MEMORY]
    return run_json("benchmarks.point_in_time_ours", *arguments, timeout_s=TIMEOUT_S), out


def _peer(name: str, world: World, labels: Path) -> tuple[Figures, Path]:
    out = world.folder / f"{name}.parquet"
    arguments = [name, str(world.folder), str(labels), str(out)]
    return run_json("benchmarks.point_in_time_peers", *arguments, timeout_s=TIMEOUT_S), out


def _refuse_other_rows(ours: Path, theirs: Path, columns: list[str]) -> None:
    """Raises RuntimeError unless both hold the same values, floats to 1e-9, a label that the peer leaves out, as Feast
    does without a row for it, being all null."""
    found, other = pq.read_table(ours), pq.read_table(theirs).sort_by("n")
    kept = np.zeros(found.num_rows, np.bool_)
    kept[np.asarray(other["n"])] = True
    left_out, found = found.filter(pa.array(~kept)), found.filter(pa.array(kept))
    for name in columns:
        one, same = (table[name].combine_chunks() for table in (found, other))
        values, theirs_too = (np.asarray(column.cast(pa.float64())) for column in (one, same))
        near = np.isclose(values, theirs_too, 1e-9, 0.0, equal_nan=True)
        if len(one) != len(same) or not near.all() or left_out[name].null_count != left_out.num_rows:
            raise RuntimeError(f"The answers differ in {name}: {ours} and {theirs}.")


def main() -> None:
    parser = argparse.ArgumentParser(description="The point-in-time benchmark.")
    parser.add_argument("--quick", action="store_true", help="a smaller run, about two minutes")
    parser.add_argument("--nightly", action="store_true", help="100,000,000 events in 2 GB")
    asked = parser.parse_args()
    results = measure(QUICK if asked.quick else NIGHTLY if asked.nightly else FULL)
    notes = [
        f"{os.cpu_count()} cores; events of 50,000 Zipf keys (exponent 1) over {WINDOWS_DAYS[-1]} days; each side in a "
        "process of its own, timed from files to a Parquet file, imports aside; memory is the process's peak.",
        "The answers of both sides are held against each other, value by value.",
    ]
    print_results("point_in_time", results, notes)
    print(write_results("point_in_time", results))


if __name__ == "__main__":
    main()
