"""The feature log: what sampled lookups answered, off the path of the requests.

A request is sampled by its id, so that all who log by the id log the same ones; one without an id is given one if it is
drawn. The answer goes into a bounded queue as it is; a task makes rows of it in a thread and hands them to the archiver
(headrace/stores/served.py). What there is no room for is dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import zlib
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import redis
import redis.asyncio
from prometheus_client import CollectorRegistry, Counter, Gauge

from headrace.read.lookup import LookupResult
from headrace.read.online.reads import Asked
from headrace.read.served_rows import served_rows
from headrace.stores.served import send_served
from headrace.telemetry import get_logger

__all__ = ["FeatureLog"]

FLUSH_S = 0.5
ROWS_AT_ONCE = 1_000

log = get_logger()


class _Sampled(NamedTuple):
    service: str
    request_id: str
    rate: float
    result: LookupResult
    asked: Asked
    replies: Sequence[Any] | None
    served_us: int


class FeatureLog:
    """The log of one server process; only its event loop touches it. `most_rows` wait at most."""

    def __init__(self, most_rows: int, registry: CollectorRegistry) -> None:
        self._most_rows, self._rows = most_rows, 0
        self._queue: deque[_Sampled] = deque()
        self._counted = Counter(
            "headrace_feature_log_rows", "Sampled rows by outcome.", ("service", "outcome"), registry=registry
        )
        self._waiting = Gauge(
            "headrace_feature_log_queue_rows",
            "Sampled rows that wait in the servers.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def offer(
        self,
        service: str,
        rate: float,
        request_id: str | None,
        result: LookupResult,
        asked: Asked,
        replies: Sequence[Any] | None,
        served_us: int,
    ) -> None:
        """Takes an answer if its request is drawn and there is room for its rows."""
        if request_id is None:
            if random.random() >= rate:
                return
            request_id = uuid4().hex
        elif zlib.crc32(request_id.encode()) >= rate * 2**32:
            return
        rows = result.request.rows
        if self._rows + rows > self._most_rows:
            self._counted.labels(service, "dropped").inc(rows)
            return
        self._rows += rows
        self._queue.append(_Sampled(service, request_id, rate, result, asked, replies, served_us))

    async def run(self, store: redis.asyncio.Redis, project: str, stopping: asyncio.Event) -> None:
        """Hands over what waits, now and then, until `stopping`, and then what is left."""
        while not stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), FLUSH_S)
            await self.flush(store, project)

    async def flush(self, store: redis.asyncio.Redis, project: str) -> None:
        """Hands over what waits. What cannot be handed over is dropped: the log must not hold up what it logs."""
        self._waiting.set(self._rows)
        while self._queue:
            some = self._take()
            for service in dict.fromkeys(sampled.service for sampled in some):
                await self._send(store, project, service, [of for of in some if of.service == service])
        self._waiting.set(self._rows)

    def _take(self) -> list[_Sampled]:
        some, rows = [], 0
        while self._queue and rows < ROWS_AT_ONCE:
            some.append(self._queue.popleft())
            rows += some[-1].result.request.rows
        self._rows -= rows
        return some

    async def _send(self, store: redis.asyncio.Redis, project: str, service: str, some: list[_Sampled]) -> None:
        rows = sum(sampled.result.request.rows for sampled in some)
        try:
            table = await asyncio.to_thread(_table, some)
            done = await send_served(store, project, service, table)
        except (redis.RedisError, OSError) as error:
            done = False
            log.warning("served rows could not be logged", service=service, rows=rows, error=str(error))
        except Exception as error:  # the log's outermost loop: whatever it is, answers go on
            done = False
            log.error("served rows could not be made", service=service, rows=rows, exc_info=error)
        self._counted.labels(service, "logged" if done else "dropped").inc(rows)


def _table(some: Sequence[_Sampled]) -> Any:
    return served_rows([(of.request_id, of.rate, of.result, of.asked, of.replies, of.served_us) for of in some])
