"""Requests that must be answered by a moment, whatever is still missing then.

One timer serves all of them: it looks every few milliseconds while anything is under way.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from itertools import count
from typing import Protocol

from headrace.telemetry import get_logger

__all__ = ["Deadlines", "Pending"]

TICK_S = 0.002
LATE_S = 0.01

log = get_logger()


class Pending(Protocol):
    """Something that is under way."""

    is_settled: bool

    def expire(self) -> None:
        """Its time is up, and it is not settled."""


class Deadlines:
    """Tells what is under way when its time is up. Only the event loop touches it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Pending]] = []
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0

    def watch(self, pending: Pending, at_s: float) -> None:
        """Expires `pending` soon after `at_s` of time.monotonic(), unless it is settled by then."""
        heapq.heappush(self._heap, (at_s, next(self._numbers), pending))
        if self._timer is None:
            self._wait(TICK_S)

    def _wait(self, seconds: float) -> None:
        self._due_s = time.monotonic() + seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        now_s, heap, self._timer = time.monotonic(), self._heap, None
        if now_s > self._due_s + LATE_S:
            self._wait(0.0)  # the loop was held up: what lies in the sockets is read first
            return
        while heap and (heap[0][0] <= now_s or heap[0][2].is_settled):
            pending = heapq.heappop(heap)[2]
            if pending.is_settled:
                continue
            try:
                pending.expire()
            except Exception as error:
                log.error("a request could not be answered at its deadline", exc_info=error)
        if heap:
            self._wait(min(max(heap[0][0] - now_s, TICK_S), 5 * TICK_S))
