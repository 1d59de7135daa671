"""What the store alone can do: redis-benchmark on the HMGET of a lookup."""

from __future__ import annotations

import shutil
import subprocess

import redis

from benchmarks.machine import StoreServer
from headrace.stores.keys import entity_key, entity_prefix

__all__ = ["redis_benchmark"]

REQUESTS = 200_000


def redis_benchmark(server: StoreServer, clients: int, pipeline: int) -> float | None:
    """HMGETs a second of one driver's views, None without redis-benchmark on PATH."""
    command = shutil.which("redis-benchmark")
    if command is None:
        return None
    key = entity_key(entity_prefix("serving", ("driver",)), [1])
    with redis.Redis(port=server.port) as store:
        fields = [field for field in store.hkeys(key) if field.startswith(b"view")]
    options = ["-p", str(server.port), "-n", str(REQUESTS), "-c", str(clients), "-P", str(pipeline), "--csv"]
    done = subprocess.run(
        [command, *options, "HMGET", key, *fields], capture_output=True, text=True, check=True, timeout=120
    )
    return float(done.stdout.strip().splitlines()[-1].split(",")[1].strip('"'))
