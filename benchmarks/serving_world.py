"""What the serving benchmark serves: one set of definitions and values, by our server and by Feast's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import Process, StoreServer, free_port, run_json, start_command
from headrace.settings import Settings

__all__ = [
    "FEATURES",
    "SERVICES",
    "VIEWS",
    "Served",
    "bodies",
    "prepare",
    "push_rides",
    "serve_bare",
    "serve_feast",
    "serve_ours",
    "wait_until_applied",
]

VIEWS, FEATURES = 5, 10
WINDOWED = 10
EVENTS_PER_KEY = 3
SERVICES = {"ten": "1 view x 10 features", "plain": "5 views x 10 features", "windowed": "10 views x 3 windows"}
UP_S = 180.0

DEFINITIONS = f"""
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64

driver = Entity(name="driver", join_keys=["driver"], value_type=ValueType.INT64)
types = [Int64 if i % 5 == 0 else Float64 for i in range({VIEWS * FEATURES})]
views = []
for v in range({VIEWS}):
    names = range(v * {FEATURES}, (v + 1) * {FEATURES})
    views.append(FeatureView(
        name=f"view{{v}}", entities=[driver], ttl=timedelta(0),
        schema=[Field(name=f"f{{i}}", dtype=types[i]) for i in names],
        source=FileSource(name=f"file{{v}}", path="values.parquet", timestamp_field="ts"),
    ))
view0, view1, view2, view3, view4 = views
ten = FeatureService(name="ten", features=[view0])
plain = FeatureService(name="plain", features=views)
"""
WINDOWS = f"""
from definitions import driver
from feast import FeatureService
from headrace.define import events, stream_view, windows

rides = events("rides", time="ts", columns={{"driver": "bigint", "fare": "double", "ts": "timestamp"}})
streams = [
    stream_view(f"rides{{v}}", driver, rides, windows("fare", ["sum"], over=["10m", "1h", "24h"]))
    for v in range({WINDOWED})
]
rides0, rides1, rides2, rides3, rides4, rides5, rides6, rides7, rides8, rides9 = streams
windowed = FeatureService(name="windowed", features=streams)
"""
STORE = "project: serving\nprovider: local\nregistry: registry.db\nonline_store: null\noffline_store:\n  type: file\n"


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers."""

    process: Process
    port: int
    started_s: float

    def answer(self, body: bytes, accept: str = "application/json") -> httpx.Response:
        """One reply. Raises RuntimeError for another status than 200."""
        headers = {"content-type": "application/json", "accept": accept}
        reply = httpx.post(
            f"http://127.0.0.1:{self.port}/get-online-features", content=body, headers=headers, timeout=30
        )
        if reply.status_code != 200:
            raise RuntimeError(f"{reply.status_code}: {reply.text[:300]}")
        return reply


def bodies(service: str, rows: int, keys: int, count: int, seed: int = 5) -> list[bytes]:
    """`count` requests of `rows` Zipf keys (exponent 1) among `keys`."""
    rng = np.random.default_rng(seed)
    upto = np.cumsum(1.0 / np.arange(1, keys + 1))
    names = rng.permutation(keys)
    found = names[np.searchsorted(upto, rng.random((count, rows)) * upto[-1])]
    asked: dict[str, Any] = {"feature_service": service}
    if service == "windowed":
        asked["full_feature_names"] = True
    return [orjson.dumps({**asked, "entities": {"driver": row}}) for row in found.tolist()]


def prepare(server: StoreServer, keys: int, feast_keys: int) -> None:
    """Applies the definitions and fills our store with `keys` drivers, and a file for Feast with `feast_keys`."""
    settings = server.settings()
    settings.repo.mkdir(parents=True, exist_ok=True)
    (settings.repo / "feature_store.yaml").write_text(STORE + "entity_key_serialization_version: 3\n")
    (settings.repo / "definitions.py").write_text(DEFINITIONS)
    (settings.repo / "streams.py").write_text(WINDOWS)
    table = _values(keys)
    pq.write_table(table, settings.repo / "values.parquet")
    pq.write_table(table.slice(0, feast_keys), server.folder / "feast.parquet")
    _command(settings, "apply")
    for v in range(VIEWS):
        _command(settings, "materialize", f"view{v}")


def _values(keys: int) -> pa.Table:
    rng, moment = np.random.default_rng(3), datetime.now(UTC).replace(microsecond=0)
    columns: dict[str, Any] = {"driver": np.arange(keys)}
    for i in range(VIEWS * FEATURES):
        columns[f"f{i}"] = rng.integers(0, 1_000_000, keys) if i % 5 == 0 else rng.random(keys) * 1_000
    table = pa.table(columns)
    return table.append_column("ts", pa.array([moment] * keys, pa.timestamp("us", "UTC")))


def _command(settings: Settings, *arguments: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "headrace", *arguments]
    done = subprocess.run(command, env=_environment(settings), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"headrace {' '.join(arguments)} failed: {done.stderr[-1_000:]}")


def _environment(settings: Settings) -> dict[str, str]:
    named = {
        "HEADRACE_REPO": str(settings.repo),
        "HEADRACE_DATA_DIR": str(settings.data_dir),
        "HEADRACE_REDIS_URL": str(settings.redis_url),
    }
    return {**os.environ, **named}


@contextlib.contextmanager
def serve_ours(server: StoreServer, body: bytes, *options: str) -> Iterator[Served]:
    """`headrace serve` with `options`, once it has answered `body`."""
    port = free_port()
    started_s = time.perf_counter()
    process = start_command(server, "serve", "--port", str(port), *options)
    with _until_up(process, port, body, started_s) as served:
        yield served


@contextlib.contextmanager
def serve_feast(server: StoreServer, body: bytes) -> Iterator[Served]:
    """Feast's own server, one worker, over the same store server."""
    run_json("benchmarks.feast_serving", "load", str(server.port), str(server.folder), timeout_s=600.0)
    port = free_port()
    started_s = time.perf_counter()
    arguments = ["serve", str(server.port), str(server.folder), str(port)]
    process = Process([sys.executable, "-m", "benchmarks.feast_serving", *arguments], server.folder / "feast.log")
    with _until_up(process, port, body, started_s) as served:
        yield served


@contextlib.contextmanager
def serve_bare(server: StoreServer, kind: str, reply: bytes) -> Iterator[Served]:
    """A server that answers `reply` to everything: `asgi` (FastAPI's route on uvicorn) or `protocol`."""
    port, file = free_port(), server.folder / f"{kind}.reply"
    file.write_bytes(reply)
    started_s = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.bare_server", kind, str(port), str(file)]
    process = Process(command, server.folder / "bare.log")
    with _until_up(process, port, b"{}", started_s) as served:
        yield served


@contextlib.contextmanager
def _until_up(process: Process, port: int, body: bytes, started_s: float) -> Iterator[Served]:
    try:
        while True:
            process.check()
            try:
                Served(process, port, 0.0).answer(body)
                break
            except (httpx.HTTPError, RuntimeError):
                if time.perf_counter() - started_s > UP_S:
                    raise
            time.sleep(0.01)
        yield Served(process, port, time.perf_counter() - started_s)
    finally:
        process.stop()


def push_rides(served: Served, keys: int) -> int:
    """A few rides of every driver, spread over the last day; returns how many."""
    rng, now_us = np.random.default_rng(4), time.time_ns() // 1_000
    drivers = np.repeat(np.arange(keys), EVENTS_PER_KEY)
    times_us = now_us - rng.integers(1_000_000, 20 * 3_600_000_000, len(drivers))
    moments = np.datetime_as_string(times_us.astype("datetime64[us]"))
    rows = zip(drivers.tolist(), (rng.random(len(drivers)) * 90).tolist(), moments.tolist(), strict=True)
    lines = [b'{"driver":%d,"fare":%.2f,"ts":"%sZ"}' % (d, fare, moment.encode()) for d, fare, moment in rows]
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}", timeout=30) as http:
        for start in range(0, len(lines), 1_000):
            _push(http, lines[start : start + 1_000])
    return len(lines)


def _push(http: httpx.Client, lines: Sequence[bytes]) -> None:
    headers = {"content-type": "application/x-ndjson"}
    http.post("/push", params={"source": "rides"}, content=b"\n".join(lines), headers=headers).raise_for_status()


def wait_until_applied(served: Served, events: int) -> None:
    """Returns once the worker has applied what was pushed. Raises RuntimeError if it does not in UP_S."""
    deadline = time.monotonic() + UP_S
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}", timeout=30) as http:
        while (rides := http.get("/streams").json()["rides"])["head"] != rides["applied"]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Of {events} rides {rides['lag']} are not applied.")
            time.sleep(0.05)
