"""The peers of the point-in-time benchmark, each in a process of its own. Feast first answers few labels: imports are
not timed.

    python -m benchmarks.point_in_time_peers feast FOLDER LABELS OUT
    python -m benchmarks.point_in_time_peers duckdb FOLDER LABELS OUT

Prints one line of JSON: seconds from files to file, and the peak of the process's memory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import orjson
import pyarrow.parquet as pq

from benchmarks.machine import peak_memory_mb
from benchmarks.point_in_time_world import DAY_US, FEATURES, FUNCTIONS, TTL_DAYS, WINDOWS_DAYS, World, write_few
from headrace.windows.window import default_hop_us


def _feast(folder: Path, labels: Path, out: Path) -> float:
    """Feast's file offline store: the newest row at or before each label's time, within the TTL."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64

    registry = str(folder / "registry.db")
    config = RepoConfig(
        project="bench", provider="local", registry=registry, online_store=None, entity_key_serialization_version=3
    )
    store = FeatureStore(config=config)
    shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.INT64)
    names = [f"f{i}" for i in range(FEATURES)]
    view = FeatureView(
        name="stats",
        entities=[shop],
        ttl=timedelta(days=TTL_DAYS),
        schema=[Field(name=name, dtype=Float64) for name in names],
        source=FileSource(name="rows", path=str(World(folder).rows_path), timestamp_field="event_timestamp"),
    )
    store.apply([shop, view])
    for path in (write_few(labels, out), labels):
        started = time.perf_counter()
        entities = pq.read_table(path).to_pandas()
        job = store.get_historical_features(entity_df=entities, features=[f"stats:{name}" for name in names])
        pq.write_table(job.to_arrow(), out)
    return time.perf_counter() - started


def _duckdb(folder: Path, labels: Path, out: Path) -> float:
    """RANGE frames over events and labels together, in whole microseconds, its fastest way; the frame of each label
    reaches back to the beginning of a hop, as our windows do."""
    import duckdb

    files = [str(path) for path in sorted((folder / "data" / "offline" / "events" / "payments").rglob("*.parquet"))]
    calls = {"count": "count(amount)", "sum": "sum(amount)", "max": "max(amount)"}
    columns = ", ".join(f"{name}_{days}d" for days in WINDOWS_DAYS for name in FUNCTIONS)
    found = ", ".join(f"{calls[name]} OVER w{days} AS {name}_{days}d" for days in WINDOWS_DAYS for name in FUNCTIONS)
    windows = ", ".join(f"w{days} AS (PARTITION BY card ORDER BY t {_frame(days)})" for days in WINDOWS_DAYS)
    rows = f"""
        SELECT card, epoch_us(event_time) AS t, amount, NULL::BIGINT AS n
        FROM read_parquet({files}, hive_partitioning = false) WHERE NOT is_repeat
        UNION ALL SELECT card, epoch_us(event_timestamp), NULL, n FROM read_parquet('{labels}')"""
    asked = (
        f"SELECT n, {columns} FROM (SELECT n, {found} FROM ({rows}) WINDOW {windows}) WHERE n IS NOT NULL ORDER BY n"
    )
    started = time.perf_counter()
    duckdb.execute(f"COPY ({asked}) TO '{out}' (FORMAT parquet)")
    return time.perf_counter() - started


def _frame(days: int) -> str:
    window_us, hop_us = days * DAY_US, default_hop_us(days * DAY_US)
    return f"RANGE BETWEEN ({window_us} + (t - {window_us}) % {hop_us}) PRECEDING AND 1 PRECEDING"


_PEERS: dict[str, Callable[[Path, Path, Path], float]] = {"feast": _feast, "duckdb": _duckdb}


def main(peer: str, folder: Path, labels: Path, out: Path) -> None:
    seconds = _PEERS[peer](folder, labels, out)
    print(orjson.dumps({"seconds": seconds, "peak_mb": peak_memory_mb()}).decode())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
