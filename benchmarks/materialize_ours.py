"""Ours in the materialization benchmark, in a process of its own.

    python -m benchmarks.materialize_ours URL FOLDER FIRST_FILE AGAIN_FILE EXPIRES

Prints one line of JSON: rows per second of both files, peak memory, processor time.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from pathlib import Path

import orjson

from benchmarks.materialize_world import FEATURES, TTL_S
from headrace.catalog.definitions import BatchSource, Catalog, Column, DType, Entity, FeatureView
from headrace.settings import Settings
from headrace.stores.batch_files import BatchScan
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from materialize import batch
from materialize.newest import find_newest

KEY = Column("driver", DType.INT64)
VALUES = tuple(Column(f"f{i}", DType.FLOAT64) for i in range(FEATURES))


def catalog(path: str, expires: bool) -> Catalog:
    """The view over one file; its layout stays the same whatever the file."""
    source = BatchSource("stats", path, "ts", (KEY, *VALUES, Column("ts", DType.TIMESTAMP)))
    ttl_us = TTL_S * 1_000_000 if expires else 0
    view = FeatureView("driver_stats", "batch", ("driver",), VALUES, "0123456789ab", batch=source, ttl_us=ttl_us)
    return Catalog("bench", 1, "wall", (Entity("driver", "driver", DType.INT64),), views=(view,))


def run(settings: Settings, path: str, expires: bool) -> tuple[int, float]:
    """Rows written, and seconds."""
    with open_store(settings) as store:
        save_catalog(store, settings, catalog(path, expires))
    started = time.perf_counter()
    done = batch.materialize(settings, "driver_stats", progress=False)
    return done.written, time.perf_counter() - started


def deciding_s(path: str) -> float:
    """Seconds until the newest row of every key is known."""
    started = time.perf_counter()
    scan = BatchScan(catalog(path, False).views[0], (KEY, *VALUES), Path())
    find_newest(lambda: scan.parts([KEY]), [KEY.name], batch.DEFAULT_MEMORY)
    return time.perf_counter() - started


def main(url: str, folder: Path, files: list[str], expires: bool) -> None:
    settings = Settings(repo=folder / "repo", data_dir=folder / "data", redis_url=url)
    settings.repo.mkdir(exist_ok=True)
    (settings.repo / "feature_store.yaml").write_text("project: bench\nprovider: local\n")
    with contextlib.redirect_stdout(sys.stderr):
        cpu_s = time.process_time()
        first, again = (run(settings, path, expires) for path in files)
        cpu_s = time.process_time() - cpu_s
    found = {
        "rows": first[0],
        "first": first[0] / first[1],
        "again": again[0] / again[1],
        "deciding_ms": deciding_s(files[0]) * 1e3,
        "cpu_us": cpu_s / (first[0] + again[0]) * 1e6,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(orjson.dumps(found).decode())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:5], sys.argv[5] == "1")
