"""The peer of the stream: Feast's push of already computed values into Redis, in a process of its own.

    python -m benchmarks.feast_push PORT FOLDER SECONDS

Prints one line of JSON: rows per second of processor time and of the wall, bytes of the store per entity.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import redis

ROWS = 1_000
FEATURES = 12
KEYS = 50_000
DATABASE = 1


def _store(port: int, folder: Path) -> Any:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig, ValueType
    from feast.types import Float64

    config = RepoConfig(
        project="bench",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store={"type": "redis", "connection_string": f"localhost:{port},db={DATABASE}"},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    card = Entity(name="card", join_keys=["card"], value_type=ValueType.STRING)
    batch = FileSource(name="history", path=str(folder / "history.parquet"), timestamp_field="ts")
    view = FeatureView(
        name="card_spend",
        entities=[card],
        ttl=timedelta(days=1),
        schema=[Field(name=f"f{i}", dtype=Float64) for i in range(FEATURES)],
        source=PushSource(name="payments", batch_source=batch),
    )
    store.apply([card, view])
    return store


def _rows(rng: np.random.Generator) -> pd.DataFrame:
    frame = pd.DataFrame(rng.random((ROWS, FEATURES)), columns=[f"f{i}" for i in range(FEATURES)])
    frame["card"] = [f"c{i:05d}" for i in rng.integers(0, KEYS, ROWS).tolist()]
    frame["ts"] = datetime.now(UTC)
    return frame


def main(port: int, folder: Path, seconds: float) -> None:
    from feast.data_source import PushMode

    store, rng = _store(port, folder), np.random.default_rng(1)
    frames = [_rows(rng) for _ in range(5)]
    store.push("payments", frames[0], to=PushMode.ONLINE)
    done, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        store.push("payments", frames[done % len(frames)], to=PushMode.ONLINE)
        done += 1
    rows = done * ROWS
    found = {
        "per_core": rows / (time.process_time() - cpu),
        "per_wall": rows / (time.perf_counter() - wall),
        "bytes": _bytes_per_key(port),
    }
    print(orjson.dumps(found).decode())


def _bytes_per_key(port: int) -> float:
    with redis.Redis(port=port, db=DATABASE) as client:
        sizes: list[Any] = [client.memory_usage(key) for key in client.scan_iter(count=500)]
    return float(np.mean(sizes[:500]))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
