"""Freshness: from the moment an event is accepted to the moment a lookup serves it, at a fixed offered rate.

    python -m benchmarks.stream_freshness URL RATE SECONDS CARD FILE

The publisher (this module as a process) appends pushes of 100 events on a schedule that never waits for anything
(open loop); one event of each push is a probe, whose amount is the push's number. `freshness` looks up the probe's
largest amount every 10 ms: every number up to it is served, so a figure is up to 10 ms too long. The clock is the
machine's monotonic one.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import redis
from numpy.typing import NDArray

from benchmarks.machine import Process
from benchmarks.stream_events import PROJECT, SOURCE, Events, catalog
from benchmarks.stream_worker import Pipeline
from headrace.read.lookup import lookup, parse_request
from headrace.read.plans import plan_features
from headrace.stores.connection import open_store_async
from headrace.stores.stream import EventStream

__all__ = ["Freshness", "freshness"]

PUSH = 100
POLL_S = 0.01
LATEST_S = 20.0
PROBE = b'{"id":"%b-%d","card":"%b","shop":"probe","amount":%d,"ts":"%sZ"}'


@dataclass(frozen=True, slots=True)
class Freshness:
    """Milliseconds at the offered rate; `accepted_per_s` is what the stream took of it."""

    offered_per_s: int
    accepted_per_s: float
    p50_ms: float
    p99_ms: float
    worst_ms: float


def publish(url: str, rate: int, seconds: float, card: str, file: Path) -> None:
    """Appends on schedule, then writes to `file` when each push was accepted, monotonic seconds as a JSON list."""
    pushes, spacing_s = int(rate * seconds / PUSH), PUSH / rate
    lead_s = 1.0 + 5e-6 * pushes * PUSH
    first_s, first_us = time.monotonic() + lead_s, time.time_ns() // 1_000 + int(lead_s * 1e6)
    events, name = Events(seed=rate), card.encode()
    payloads = []
    for number in range(1, pushes + 1):
        times_us = np.full(PUSH - 1, first_us + int((number - 1) * spacing_s * 1e6))
        moment = str(np.datetime_as_string(times_us[0].astype("datetime64[us]"))).encode()
        lines = events.lines(times_us).replace(b'"id":"e', b'"id":"%b-' % name)
        payloads.append(lines + b"\n" + PROBE % (name, number, name, number, moment))
    with redis.Redis.from_url(url) as store:
        stream = EventStream(store, PROJECT)
        file.write_bytes(orjson.dumps(_append_all(stream, payloads, first_s, spacing_s)))


def _append_all(stream: EventStream, payloads: list[bytes], first_s: float, spacing_s: float) -> list[float]:
    accepted = []
    for number, payload in enumerate(payloads):
        wait_s = first_s + number * spacing_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        stream.append(SOURCE, "ndjson", payload, PUSH)
        accepted.append(time.monotonic())
    return accepted


def freshness(running: Pipeline, rate: int, seconds: float) -> Freshness:
    """What lookups see while `rate` events a second are offered for `seconds`."""
    card = f"probe-{time.monotonic_ns()}"
    file = running.server.folder / f"{card}.json"
    module = [sys.executable, "-m", "benchmarks.stream_freshness"]
    arguments = [running.server.url, str(rate), str(seconds), card, str(file)]
    publisher = Process([*module, *arguments], running.server.folder / "publisher.log")
    try:
        seen = asyncio.run(
            _probe(running, card, int(rate * seconds / PUSH), seconds + 5e-6 * rate * seconds + LATEST_S)
        )
    finally:
        publisher.stop()
    accepted = np.array(orjson.loads(file.read_bytes()))
    waits_ms = (_served_s(seen, len(accepted)) - accepted) * 1e3
    p50, p99, worst = np.quantile(waits_ms, [0.5, 0.99, 1.0]).tolist()
    return Freshness(rate, len(accepted) * PUSH / (float(accepted[-1] - accepted[0])), p50, p99, worst)


def _served_s(seen: list[tuple[float, int]], n: int) -> NDArray[np.float64]:
    """When each of the pushes 1 to n was first served."""
    moments, upto = np.array([s for s, _ in seen]), np.array([number for _, number in seen])
    served: NDArray[np.float64] = moments[np.searchsorted(upto, np.arange(1, n + 1))]
    return served


async def _probe(running: Pipeline, card: str, last: int, timeout_s: float) -> list[tuple[float, int]]:
    """(moment, newest push served) whenever a lookup shows a newer one, up to the last."""
    plan = plan_features(catalog(), ["card_spend:max_600s"], False)
    request = parse_request(plan, {"card": [card]})
    store = open_store_async(running.server.settings())
    seen: list[tuple[float, int]] = []
    deadline = time.monotonic() + timeout_s
    while not seen or seen[-1][1] < last:
        found = await lookup(store, plan, request, None, time.time_ns() // 1_000)
        newest = int(found.columns[-1][0].as_py() or 0)
        if newest > (seen[-1][1] if seen else 0):
            seen.append((time.monotonic(), newest))
        elif time.monotonic() > deadline:
            raise RuntimeError(f"Only {newest} of {last} pushes were served in time.")
        await asyncio.sleep(POLL_S)
    await store.aclose()
    return seen


if __name__ == "__main__":
    publish(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))
