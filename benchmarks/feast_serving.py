"""The peer of the lookup: Feast's own feature server over Redis, in a process of its own.

    python -m benchmarks.feast_serving load STORE_PORT FOLDER
    python -m benchmarks.feast_serving serve STORE_PORT FOLDER PORT

`load` writes FOLDER/feast.parquet into database 1 of the store server by Feast's `materialize`, and prints as JSON how
many rows a second that took; `serve` answers with one worker until it is ended.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from benchmarks.serving_world import DEFINITIONS, VIEWS

__all__ = ["open_feast"]

DATABASE = 1


def open_feast(port: int, folder: Path) -> Any:
    """A FeatureStore over the definitions of the serving benchmark, not yet applied."""
    from feast import FeatureStore, RepoConfig

    repo = folder / "feast"
    repo.mkdir(exist_ok=True)
    (repo / "definitions.py").write_text(DEFINITIONS)
    config = RepoConfig(
        project="serving",
        provider="local",
        registry=str(repo / "registry.db"),
        online_store={"type": "redis", "connection_string": f"localhost:{port},db={DATABASE}"},
        entity_key_serialization_version=3,
        repo_path=repo,
    )
    return FeatureStore(config=config)


def load(port: int, folder: Path) -> None:
    store = open_feast(port, folder)
    shutil.copy(folder / "feast.parquet", folder / "feast" / "values.parquet")
    sys.path.insert(0, str(folder / "feast"))
    found = importlib.import_module("definitions")
    store.apply([found.driver, *found.views, found.ten, found.plain])
    rows = pq.read_metadata(folder / "feast.parquet").num_rows
    started = time.perf_counter()
    store.materialize(datetime.now(UTC) - timedelta(days=1), datetime.now(UTC) + timedelta(minutes=1))
    print(orjson.dumps({"per_s": rows * VIEWS / (time.perf_counter() - started)}).decode())


def serve(store_port: int, folder: Path, port: int) -> None:
    logging.disable(logging.INFO)
    open_feast(store_port, folder).serve("127.0.0.1", port, workers=1, max_requests=10**9)


if __name__ == "__main__":
    if sys.argv[1] == "load":
        load(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        serve(int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
