"""The peer of materialization: Feast's `materialize` into Redis, in a process of its own.

    python -m benchmarks.feast_materialize PORT FOLDER FIRST_FILE AGAIN_FILE EXPIRES

Prints one line of JSON: rows per second of both files, peak memory.
"""

from __future__ import annotations

import resource
import shutil
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from benchmarks.materialize_world import FEATURES, TTL_S

DATABASE = 1


def _store(port: int, folder: Path, expires: bool) -> Any:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64

    online = {"type": "redis", "connection_string": f"localhost:{port},db={DATABASE}"}
    config = RepoConfig(
        project="bench",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store={**online, "key_ttl_seconds": TTL_S} if expires else online,
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.INT64)
    view = FeatureView(
        name="driver_stats",
        entities=[driver],
        ttl=timedelta(seconds=TTL_S),
        schema=[Field(name=f"f{i}", dtype=Float64) for i in range(FEATURES)],
        source=FileSource(name="stats", path=str(folder / "stats.parquet"), timestamp_field="ts"),
    )
    store.apply([driver, view])
    return store


def _rate(store: Any, path: str, folder: Path) -> float:
    """Rows per second of one file."""
    shutil.copy(path, folder / "stats.parquet")
    now = datetime.now(UTC)
    started = time.perf_counter()
    store.materialize(now - timedelta(days=7), now, ["driver_stats"], disable_event_timestamp=False)
    return float(pq.read_metadata(path).num_rows / (time.perf_counter() - started))


def main(port: int, folder: Path, files: list[str], expires: bool) -> None:
    shutil.copy(files[0], folder / "stats.parquet")
    store = _store(port, folder, expires)
    first, again = (_rate(store, path, folder) for path in files)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(orjson.dumps({"first": first, "again": again, "peak_mb": peak_mb}).decode())


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:5], sys.argv[5] == "1")
