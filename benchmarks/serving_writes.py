"""Events that arrive at a constant rate while lookups are measured.

python -m benchmarks.serving_writes URL RATE
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

import numpy as np
import redis

from benchmarks.machine import Process, StoreServer
from headrace.stores.stream import EventStream

__all__ = ["writes"]

PUSH = 500
KEYS = 50_000


@contextlib.contextmanager
def writes(server: StoreServer, rate: int) -> Iterator[None]:
    """`rate` rides a second in pushes of PUSH, from a process of its own."""
    module = [sys.executable, "-m", "benchmarks.serving_writes", server.url, str(rate)]
    process = Process(module, server.folder / "writes.log")
    try:
        time.sleep(2.0)
        yield
        process.check()
    finally:
        process.stop()


def main(url: str, rate: int) -> None:
    rng, number = np.random.default_rng(9), 0
    with redis.Redis.from_url(url) as store:
        stream, started_s = EventStream(store, "serving"), time.monotonic()
        while True:
            moment = str(np.datetime64(time.time_ns() // 1_000, "us")).encode()
            lines = [b'{"driver":%d,"fare":9.5,"ts":"%sZ"}' % (d, moment) for d in rng.integers(0, KEYS, PUSH).tolist()]
            stream.append("rides", "ndjson", b"\n".join(lines), PUSH)
            number += 1
            time.sleep(max(0.0, started_s + number * PUSH / rate - time.monotonic()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
