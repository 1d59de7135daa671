"""Ours in the point-in-time benchmark, in a process of its own, which first answers few labels: imports are not timed.

    python -m benchmarks.point_in_time_ours FOLDER SERVICE LABELS OUT MEMORY

Prints one line of JSON: seconds from files to file, and the peak of the process's memory.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import orjson

import headrace
from benchmarks.machine import peak_memory_mb
from benchmarks.point_in_time_world import settings_of, write_few
from headrace.stores.connection import open_store


def main(folder: Path, service: str, labels: Path, out: Path, memory: str) -> None:
    settings = settings_of(folder)
    with open_store(settings):  # starts the server, which is no part of the join
        few = write_few(labels, out)
        headrace.training_set(service, few, settings=settings, memory=memory).to_parquet(out, manifest=False)
        started = time.perf_counter()
        rows = headrace.training_set(service, labels, settings=settings, memory=memory)
        rows.to_parquet(out, manifest=False)
        seconds = time.perf_counter() - started
    print(orjson.dumps({"seconds": seconds, "peak_mb": peak_memory_mb()}).decode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
