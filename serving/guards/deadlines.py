"""Requests that must be answered by a moment, whatever is still missing then.

One timer serves all of them: it looks every few milliseconds while anything is under way. What is settled is let go of
at once: a request that lives until its deadline would go from one generation of the garbage collector to the next.
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

    def expire(self) -> None:
        """Its time is up, and nobody has said that it is settled."""


class Deadlines:
    """Tells what is under way when its time is up. Only the event loop touches it."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int]] = []
        self._waiting: dict[int, Pending] = {}
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0

    def watch(self, pending: Pending, at_s: float) -> int:
        """Expires `pending` soon after `at_s` of time.monotonic(), unless it is settled by then; returns the number by
        which `settle` knows it."""
        number = next(self._numbers)
        self._waiting[number] = pending
        heapq.heappush(self._due, (at_s, number))
        if self._timer is None:
            self._wait(TICK_S)
        return number

    def settle(self, number: int) -> None:
        """What has this number needs to be watched no more."""
        self._waiting.pop(number, None)

    def _wait(self, seconds: float) -> None:
        self._due_s = time.monotonic() + seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        now_s, due, self._timer = time.monotonic(), self._due, None
        if now_s > self._due_s + LATE_S:
            self._wait(0.0)  # the loop was held up: what lies in the sockets is read first
            return
        while due and (due[0][0] <= now_s or due[0][1] not in self._waiting):
            pending = self._waiting.pop(heapq.heappop(due)[1], None)
            if pending is None:
                continue
            try:
                pending.expire()
            except Exception as error:
                log.error("a request could not be answered at its deadline", exc_info=error)
        if due:
            self._wait(min(max(due[0][0] - now_s, TICK_S), 5 * TICK_S))
