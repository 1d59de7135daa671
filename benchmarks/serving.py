"""The lookup's benchmark: requests a second and latencies of our server and of Feast's, over one store.

python -m benchmarks.serving [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.http_load import WARM_UP_S
from benchmarks.machine import StoreServer, open_server, run_json, start_command
from benchmarks.plot import Curve, write_curves
from benchmarks.report import RESULTS, Result, higher, lower, missing, print_results, write_results
from benchmarks.serving_store import redis_benchmark
from benchmarks.serving_world import (
    SERVICES,
    Served,
    bodies,
    prepare,
    push_rides,
    serve_bare,
    serve_feast,
    serve_ours,
    wait_until_applied,
)
from benchmarks.serving_writes import writes

__all__ = ["FULL", "QUICK", "Point", "Size", "measure"]

ARROW, JSON = "application/vnd.apache.arrow.stream", "application/json"
CONNECTIONS = 8
OPEN_CONNECTIONS = 64
CASES = (("ten", 1), ("plain", 1), ("plain", 100))
WRITES_PER_S = 36_000
WARM_RUNS = 2


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything: keys in our store and in Feast's, seconds a figure, requests until memory is read again,
    shares of the greatest rate on the latency curve."""

    keys: int
    feast_keys: int
    ride_keys: int
    seconds: float
    requests: int
    shares: tuple[float, ...]
    with_writes: bool


FULL = Size(1_000_000, 10_000, 20_000, 10.0, 1_000_000, (0.1, 0.25, 0.5, 0.75, 0.9), True)
QUICK = Size(20_000, 2_000, 500, 3.0, 50_000, (0.25, 0.5), False)


class Point(NamedTuple):
    """Latencies at one rate of arrival, in milliseconds."""

    with_writes: bool
    offered_per_s: float
    p50_ms: float
    p99_ms: float


Rates = dict[tuple[str, int, str], dict[str, float]]


class Asked:
    """Load on servers, whose requests lie in files of one folder."""

    def __init__(self, folder: Path, size: Size) -> None:
        self._folder, self._size = folder, size

    def closed(self, served: Served, service: str, rows: int, keys: int, accept: str = JSON) -> dict[str, float]:
        """As fast as it answers, over CONNECTIONS connections; adds `cpu_us`, the processor time of a request."""
        before = served.process.cpu_s()
        found = self._load(served, service, rows, keys, accept, str(CONNECTIONS))
        asked = found["per_s"] * (self._size.seconds + WARM_UP_S)
        return {**found, "cpu_us": 1e6 * (served.process.cpu_s() - before) / max(asked, 1.0)}

    def warm(self, served: Served, keys: int) -> None:
        """Asks until what a server still does after its start (imports, first plans) is done."""
        for _ in range(WARM_RUNS):
            self.closed(served, "plain", 1, keys)

    def open(self, served: Served, service: str, rows: int, keys: int, rate: float) -> dict[str, float]:
        """At a constant rate of arrival, whatever happens."""
        return self._load(served, service, rows, keys, JSON, str(OPEN_CONNECTIONS), f"{rate:.1f}")

    def _load(self, served: Served, service: str, rows: int, keys: int, accept: str, *load: str) -> dict[str, float]:
        file = self._folder / f"{service}-{rows}-{keys}-{accept.partition('/')[2]}.bodies"
        if not file.exists():
            count = 20_000 // rows + 100
            file.write_bytes(b"\n".join([accept.encode(), *bodies(service, rows, keys, count)]))
        seconds = self._size.seconds
        found = run_json(
            "benchmarks.http_load", str(file), str(served.port), str(seconds), *load, timeout_s=seconds + 60
        )
        if found["refused"] or found["lost"]:
            served.answer(bodies(service, rows, keys, 1)[0], accept)
            raise RuntimeError(f"{service} x {rows} rows: {found['refused']:.0f} refused, {found['lost']:.0f} lost.")
        return found


def measure(size: Size) -> tuple[list[Result], list[Point]]:
    """Everything, and the points of the curve; each server is started and ended here."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        with open_server(folder, "everysec") as server:
            prepare(server, size.keys, size.feast_keys)
            asked = Asked(folder, size)
            with serve_feast(server, bodies("plain", 1, size.feast_keys, 1)[0]) as feast:
                theirs, feast_rows = _feast(asked, feast, size)
            with serve_ours(server, bodies("plain", 1, size.keys, 1)[0]) as ours:
                _fill_windows(server, ours, size)
                mine, rows = _ours(asked, ours, size, theirs, feast_rows)
                rows += _bounds(asked, server, ours, size, mine)
                curve, points = _curve(asked, server, ours, size, mine, theirs)
                return [*rows, *curve, *_memory(asked, ours, size, feast_rows)], points


def _fill_windows(server: StoreServer, ours: Served, size: Size) -> None:
    worker = start_command(server, "worker")
    try:
        wait_until_applied(ours, push_rides(ours, size.ride_keys))
    finally:
        worker.stop()


def _feast(asked: Asked, feast: Served, size: Size) -> tuple[Rates, dict[str, float]]:
    asked.warm(feast, size.feast_keys)
    rates = {(service, rows, JSON): asked.closed(feast, service, rows, size.feast_keys) for service, rows in CASES}
    half = rates["plain", 1, JSON]["per_s"] / 2
    rates["plain", 1, "half"] = asked.open(feast, "plain", 1, size.feast_keys, half)
    return rates, {"started_s": feast.started_s, "memory_mb": feast.process.memory_mb()}


def _ours(asked: Asked, ours: Served, size: Size, theirs: Rates, feast: dict[str, float]) -> tuple[Rates, list[Result]]:
    asked.warm(ours, size.keys)
    rates: Rates = {}
    rows = []
    for service, n in CASES:
        found = rates[service, n, JSON] = asked.closed(ours, service, n, size.keys)
        work = f"{n} row{'s' if n > 1 else ''}, {SERVICES[service]}"
        rows.append(higher(work, "requests/s", found["per_s"], theirs[service, n, JSON]["per_s"], "Feast's server"))
        cpu = theirs[service, n, JSON]["cpu_us"]
        rows.append(lower(f"{work}, processor time of the server", "us", found["cpu_us"], cpu, "Feast's server"))
    arrow = asked.closed(ours, "plain", 100, size.keys, ARROW)["per_s"]
    feast_json = theirs["plain", 100, JSON]["per_s"]
    work = f"100 rows, {SERVICES['plain']}, Arrow"
    rows.append(higher(work, "requests/s", arrow, feast_json, "Feast's server, JSON"))
    windowed = rates["windowed", 1, JSON] = asked.closed(ours, "windowed", 1, size.ride_keys)
    plain = rates["plain", 1, JSON]["per_s"]
    work = f"1 row, {SERVICES['windowed']}"
    rows.append(higher(work, "requests/s", windowed["per_s"], plain, f"ours, {SERVICES['plain']}"))
    rows.append(lower("start to first answer", "s", ours.started_s, feast["started_s"], "Feast's server"))
    return rates, rows


def _bounds(asked: Asked, server: StoreServer, ours: Served, size: Size, mine: Rates) -> list[Result]:
    reply = ours.answer(bodies("plain", 1, size.keys, 1)[0]).content
    rate, rows = mine["plain", 1, JSON]["per_s"], []
    for kind, name in (("asgi", "ours, a bare route of FastAPI"), ("protocol", "ours, a bare protocol")):
        with serve_bare(server, kind, reply) as bare:
            found = asked.closed(bare, "plain", 1, size.keys)
        rows.append(higher(f"1 row, {SERVICES['plain']}", "requests/s", rate, found["per_s"], name))
    for pipeline in (1, 16):
        per_s = redis_benchmark(server, CONNECTIONS, pipeline)
        work, name = f"1 row, {SERVICES['plain']}", f"redis-benchmark, the same HMGET, pipeline {pipeline}"
        if per_s is None:
            rows.append(missing(work, "requests/s", rate, "redis-benchmark is not on PATH (Debian: redis-tools)"))
        else:
            rows.append(higher(work, "requests/s", rate, per_s, name))
    return rows


def _curve(
    asked: Asked, server: StoreServer, ours: Served, size: Size, mine: Rates, theirs: Rates
) -> tuple[list[Result], list[Point]]:
    """Latencies against load, without and with writes going on."""
    best, half = mine["plain", 1, JSON]["per_s"], theirs["plain", 1, "half"]
    rows, points = [], []
    for share in size.shares:
        found = asked.open(ours, "plain", 1, size.keys, share * best)
        points.append(Point(False, share * best, found["p50_ms"], found["p99_ms"]))
        work = f"1 row, {SERVICES['plain']}, {share * best:,.0f} requests/s offered ({share:.0%})"
        for name in ("p50_ms", "p99_ms"):
            rows.append(lower(f"{work}, {name[:-3]}", "ms", found[name], half[name], "Feast's server at half its rate"))
    if size.with_writes:
        with _worker_and_writes(server):
            for share in size.shares[:3]:
                found = asked.open(ours, "plain", 1, size.keys, share * best)
                points.append(Point(True, share * best, found["p50_ms"], found["p99_ms"]))
                work = f"1 row, {share * best:,.0f} requests/s offered beside {WRITES_PER_S:,} events/s"
                rows += [missing(f"{work}, {name[:-3]}", "ms", found[name], "ours") for name in ("p50_ms", "p99_ms")]
    return rows, points


def _draw(points: Sequence[Point]) -> Path:
    """The curve as a picture."""
    curves = []
    for with_writes, beside in ((False, ""), (True, f" beside {WRITES_PER_S:,} events/s")):
        of = [point for point in points if point.with_writes == with_writes]
        for name in ("p50_ms", "p99_ms") if of else ():
            places = [(point.offered_per_s, getattr(point, name)) for point in of]
            curves.append(Curve(f"{name[:-3]}{beside}", places, is_dashed=with_writes))
    title = f"One server process, 1 row of {SERVICES['plain']}"
    return write_curves(RESULTS / "serving.svg", title, "requests/s offered", "ms", curves)


@contextlib.contextmanager
def _worker_and_writes(server: StoreServer) -> Iterator[None]:
    worker = start_command(server, "worker")
    try:
        with writes(server, WRITES_PER_S):
            yield
    finally:
        worker.stop()


def _memory(asked: Asked, ours: Served, size: Size, feast: dict[str, float]) -> list[Result]:
    """Resident memory of the server's one worker, before and after many requests."""
    before, done = ours.process.memory_mb(), 0.0
    while done < size.requests:
        done += asked.closed(ours, "plain", 1, size.keys)["per_s"] * size.seconds
    after = ours.process.memory_mb()
    return [
        lower("resident memory of one worker", "MB", before, feast["memory_mb"], "Feast's server"),
        lower(f"resident memory after {done:,.0f} more requests", "MB", after, before, "ours, before"),
    ]


def notes(size: Size) -> Sequence[str]:
    return (
        f"{os.cpu_count()} cores shared by one server process, the store server and the load; {size.keys:,} keys "
        f"({size.feast_keys:,} in Feast's store), Zipf (exponent 1); closed loop over {CONNECTIONS} connections.",
        "Latencies: open loop, a constant rate of arrival, each counted from the moment its request was due.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The lookup's benchmark.")
    parser.add_argument("--quick", action="store_true", help="a smaller run, about two minutes")
    size = QUICK if parser.parse_args().quick else FULL
    results, points = measure(size)
    print_results("serving", results, notes(size))
    print(write_results("serving", results))
    print(_draw(points))


if __name__ == "__main__":
    main()
