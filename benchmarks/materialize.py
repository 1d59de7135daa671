"""The materialization benchmark: a batch file into the online store, beside Feast's `materialize` into the same server.

python -m benchmarks.materialize [--quick]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from benchmarks.machine import StoreServer, open_server, run_json
from benchmarks.materialize_world import FEATURES
from benchmarks.report import Result, higher, lower, missing, print_results, write_results

__all__ = ["FULL", "QUICK", "Size", "measure"]

Found = dict[str, float]


@dataclass(frozen=True, slots=True)
class Size:
    """Entities of ours and of Feast's, whose rate does not depend on how many there are (a note says both rates), in
    the first line and in the others."""

    rows: int
    feast: int
    rows_others: int
    feast_others: int


FULL = Size(1_000_000, 1_000_000, 1_000_000, 200_000)
QUICK = Size(1_000_000, 40_000, 200_000, 20_000)


def measure(size: Size) -> tuple[list[Result], list[str]]:
    """Every line, and notes on what else was seen."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        with open_server(folder / "everysec", "everysec") as server:
            write_files(folder, size)
            plain = _ours(server, folder, size.rows, 0)
            lasting = _feast(server, folder, size.feast, 0)
            again = _feast(server, folder, size.feast_others, 0)
            expiring = _ours(server, folder, size.rows_others, 1)
            mortal = _feast(server, folder, size.feast_others, 1)
        with open_server(folder / "always", "always") as server:
            durable = _ours(server, folder, size.rows_others, 0)
    work, other = (f"{n:,} entities x {FEATURES} features" for n in (size.rows, size.rows_others))
    whole, part = (f"Feast, {n:,} entities" for n in (size.feast, size.feast_others))
    results = [
        higher(f"{work}, empty store", "rows/s", plain["first"], lasting["first"], whole),
        higher(f"{work}, newer rows for all", "rows/s", plain["again"], again["again"], part),
        higher(f"{other}, keys expire, empty store", "rows/s", expiring["first"], mortal["first"], part),
        higher(f"{other}, keys expire, newer rows", "rows/s", expiring["again"], mortal["again"], part),
        higher(f"{other}, appendfsync always", "rows/s", durable["first"], plain["first"], "ours, everysec"),
        lower("peak memory of the process", "MB", plain["peak_mb"], lasting["peak_mb"], whole),
        missing("before the first row is written", "ms", plain["deciding_ms"], "ours alone"),
        missing("processor time per row, ours", "us", plain["cpu_us"], "ours alone"),
        missing("processor time per row, store server", "us", plain["server_us"], "ours alone"),
    ]
    seen = f"{lasting['first']:,.0f} rows/s of {size.feast:,}, {again['first']:,.0f} of {size.feast_others:,} entities"
    return results, [f"Feast's rate: {seen}."]


def write_files(folder: Path, size: Size) -> None:
    """first-N.parquet and again-N.parquet (a day later) of N entities, for every N that is needed."""
    rng = np.random.default_rng(1)
    drivers, now_us = rng.permutation(size.rows), time.time_ns() // 1_000
    for name, days in (("first", 2), ("again", 1)):
        times_us = now_us - 86_400_000_000 * days + rng.integers(0, 86_000_000_000, size.rows)
        values = {f"f{i}": rng.random(size.rows) for i in range(FEATURES)}
        moments = pa.array(times_us).cast(pa.timestamp("us", "UTC"))
        table = pa.table({"driver": drivers, "ts": moments, **values})
        for n in {size.rows, size.rows_others, size.feast, size.feast_others}:
            pq.write_table(table.slice(0, n), folder / f"{name}-{n}.parquet")


def _ours(server: StoreServer, folder: Path, n: int, expires: int) -> Found:
    _flush(server)
    before_s = server.process.cpu_s()
    files = (str(folder / f"first-{n}.parquet"), str(folder / f"again-{n}.parquet"))
    found = run_json("benchmarks.materialize_ours", server.url, str(server.folder), *files, str(expires), timeout_s=600)
    server_s = server.process.cpu_s() - before_s
    return {**found, "server_us": server_s / (2 * found["rows"]) * 1e6}


def _feast(server: StoreServer, folder: Path, n: int, expires: int) -> Found:
    _flush(server)
    with tempfile.TemporaryDirectory(dir=folder) as repo:
        files = (str(folder / f"first-{n}.parquet"), str(folder / f"again-{n}.parquet"))
        return run_json("benchmarks.feast_materialize", str(server.port), repo, *files, str(expires), timeout_s=1_200)


def _flush(server: StoreServer) -> None:
    with redis.Redis(port=server.port) as client:
        client.flushall()


def main() -> None:
    parser = argparse.ArgumentParser(description="The materialization benchmark.")
    parser.add_argument("--quick", action="store_true", help="Feast on fewer rows, about a minute")
    results, seen = measure(QUICK if parser.parse_args().quick else FULL)
    notes = [
        f"{os.cpu_count()} cores shared by the writer and the store server; one int64 key, float64 features, Parquet; "
        "append-only file on, everysec unless it says otherwise.",
        "A rate is rows divided by the time of the call that materializes, in a process of its own that had imported "
        "what it needs.",
        *seen,
    ]
    print_results("materialize", results, notes)
    print(write_results("materialize", results))


if __name__ == "__main__":
    main()
