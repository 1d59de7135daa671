"""The stream benchmark: how fast the worker is, how fresh its values are, what they cost to keep and to read.

python -m benchmarks.stream [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import StoreServer, open_server, run_json
from benchmarks.report import Result, higher, lower, missing, print_results, write_results
from benchmarks.stream_freshness import freshness
from benchmarks.stream_sizes import bytes_per_entity, row_times
from benchmarks.stream_worker import Drained, Pipeline, pipeline

__all__ = ["FULL", "QUICK", "Size", "measure"]

WORK = "3 windows x 4 functions x 2 entities"
FLOOR_RATE = 36_000


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything; `end` is how many of the first and of the last events are compared."""

    history: int
    events: int
    end: int
    always: int
    rates: tuple[int, ...]
    seconds: float
    feast_s: float
    bytewax: int
    repeats: int = 200


FULL = Size(200_000, 10_000_000, 1_000_000, 1_000_000, (3_600, 12_000, 36_000, 60_000, 90_000), 15.0, 15.0, 200_000)
QUICK = Size(200_000, 800_000, 200_000, 300_000, (3_600, 36_000), 4.0, 4.0, 20_000)


def measure(size: Size) -> list[Result]:
    """Everything, each store server and process started and ended here."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        with _pipeline(Path(folder) / "everysec", "everysec", size.history) as running:
            fresh = _freshness(running, size)
            drained = running.peak(size.events)
            feast = _feast(running.server, size)
            at_rest = _at_rest(running, feast["bytes"], size)
        with _pipeline(Path(folder) / "always", "always", size.history // 2) as running:
            always = running.peak(size.always)
    return [*_speed(drained, always, feast, size), *fresh, *_costs(drained, size), *at_rest]


@contextlib.contextmanager
def _pipeline(folder: Path, appendfsync: str, history: int) -> Iterator[Pipeline]:
    with open_server(folder, appendfsync) as server, pipeline(server) as running:
        running.history(history)
        yield running


def _feast(server: StoreServer, size: Size) -> dict[str, float]:
    return run_json("benchmarks.feast_push", str(server.port), str(server.folder), str(size.feast_s))


def _speed(drained: Drained, always: Drained, feast: dict[str, float], size: Size) -> list[Result]:
    core, wall = drained.per_core(), drained.per_wall()
    push = "Feast push of computed values, rows/s"
    rows = [
        higher(f"{WORK}, everysec, per core of worker time", "events/s", core, feast["per_core"], f"{push} per core"),
        higher(f"{WORK}, everysec, by the wall", "events/s", wall, feast["per_wall"], f"{push} by the wall"),
        higher(f"{WORK}, always, per core of worker time", "events/s", always.per_core(), core, "ours, everysec"),
        higher(f"{WORK}, always, by the wall", "events/s", always.per_wall(), wall, "ours, everysec"),
    ]
    work = f"{WORK}, everysec, per core of worker time"
    if importlib.util.find_spec("bytewax") is None:
        return [*rows, missing(work, "events/s", core, "bytewax is not installed (extra bench)")]
    for keys, kind in ((50_000, "the same 50,000 keys"), (100, "100 keys, its best")):
        found = run_json("benchmarks.bytewax_windows", str(size.bytewax), str(keys))
        rows.append(higher(work, "events/s", core, found["per_core"], f"bytewax, 1 window of 1 sum, no sink, {kind}"))
    return rows


def _freshness(running: Pipeline, size: Size) -> list[Result]:
    curve = [freshness(running, rate, size.seconds) for rate in size.rates]
    base, rows = curve[0], []
    for point in curve:
        work = f"accepted to served at {point.offered_per_s:,} events/s ({point.accepted_per_s:,.0f} accepted)"
        name = f"ours at {base.offered_per_s:,} events/s"
        rows.append(lower(f"{work}, p50", "ms", point.p50_ms, base.p50_ms, name))
        rows.append(lower(f"{work}, p99", "ms", point.p99_ms, base.p99_ms, name))
    return rows


def _costs(drained: Drained, size: Size) -> list[Result]:
    first = drained.samples[0][2] + size.end
    last = drained.samples[-1][2] - size.end
    early, late = drained.per_core(upto=first), drained.per_core(after=last)
    written = drained.written_bytes / drained.events
    return [
        higher(f"last {size.end:,} of {drained.events:,} events, per core", "events/s", late, early, "ours, the first"),
        lower("sent to the store per event", "bytes", written, 105.0, "ours, the event's JSON"),
    ]


def _at_rest(running: Pipeline, feast_bytes: float, size: Size) -> list[Result]:
    store, rows = running.store, []
    for tiles in (1, 10, 100):
        held = bytes_per_entity(store, tiles)
        rows.append(lower(f"kept per entity and view, {tiles} tiles", "bytes", held, feast_bytes, "Feast, 12 values"))
    base = row_times(store, 1, size.repeats)
    for tiles in (10, 60, 180):
        found, work = row_times(store, tiles, size.repeats), f"1 row, 10 views x 3 windows, {tiles} tiles"
        rows.append(lower(f"decode {work}", "us", found.decode, base.decode, "ours at 1 tile"))
        rows.append(lower(f"columns of {work}", "us", found.columns, base.columns, "ours at 1 tile"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="The stream benchmark.")
    parser.add_argument("--quick", action="store_true", help="a smaller run, about two minutes")
    results = measure(QUICK if parser.parse_args().quick else FULL)
    notes = [
        f"{os.cpu_count()} cores shared by worker, archiver, store server and load; 50,000 Zipf keys (exponent 1), "
        "JSON events of 105 bytes, pushes of 1,000.",
        "Per core of worker time: events divided by the processor seconds, user and system, of the worker's process.",
    ]
    print_results("stream", results, notes)
    print(write_results("stream", results))


if __name__ == "__main__":
    main()
