"""Whether a request may come in: under overload the least important are refused first, and the others keep their
latency.

A server of one thread that gets more than it can do falls behind in its event loop, long before its store does; so how
late a timer is tells how overloaded it is. A loop that is late though it has time to sleep was only kept from running,
by other processes, and refusing would not help it. A controller turns that into one number, the pressure: from 0 to 1
it is the share of `batch` requests that are refused, from 1 to 2 that of `normal` ones, from 2 to 3 that of `critical`
ones.
"""

from __future__ import annotations

import asyncio
import os
import random
import time

from serving.guards.heads import Priority

__all__ = ["Admission", "TokenBucket"]

TICK_S = 0.005
RISE, FALL = 0.05, 0.01
"""What one tick adds to the pressure for every time that the lag is the target's, and takes from it below."""
MOST_PRESSURE = 3.0
BUSY_SHARE = 0.9
_SHARES = (1.0, 0.8, 0.5)
"""Which part of the places each priority may fill."""


class Admission:
    """Decides for one process. `most` is how many requests may be under way, `target_s` the lag of the event loop that
    is aimed at."""

    def __init__(self, most: int, target_s: float) -> None:
        self._places = [max(1, int(most * share)) for share in _SHARES]
        self._target_s = target_s
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._clock = _BusyClock()
        self.pressure = 0.0
        self.under_way = 0

    def refuses(self, priority: Priority) -> str | None:
        """Why a request of this priority is refused now, `concurrency` or `overload`; None if it may come in. Then
        `enter` and, once it is answered, `leave` have to be called."""
        if self.under_way >= self._places[priority]:
            return "concurrency"
        if self.pressure <= 0.0:
            return None
        share = self.pressure - (Priority.batch - priority)
        return "overload" if share > 0 and (share >= 1 or random.random() < share) else None

    def enter(self) -> None:
        self.under_way += 1
        if self._timer is None:
            self._wait(asyncio.get_running_loop())

    def leave(self) -> None:
        self.under_way -= 1

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = time.monotonic() + TICK_S
        self._timer = loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        lag_s, is_busy = time.monotonic() - self._due_s, self._clock.is_busy()
        self.feel(lag_s if is_busy else 0.0)
        self._timer = None
        if self.under_way or self.pressure:
            self._wait(asyncio.get_running_loop())

    def feel(self, lag_s: float) -> None:
        """One tick came so late."""
        over = lag_s / self._target_s
        change = RISE * min(over, 10.0) if over > 1 else -FALL
        self.pressure = min(max(self.pressure + change, 0.0), MOST_PRESSURE)


class _BusyClock:
    """Tells whether this thread had something to do all the time since it was last asked: it ran, or waited for a
    processor (Linux counts both). Elsewhere it always had."""

    def __init__(self) -> None:
        try:
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = -1
        self._before = self._read()

    def _read(self) -> tuple[int, int]:
        """Nanoseconds by the clock, and of them those that it ran or waited."""
        if self._file < 0:
            return 0, 0
        ran, waited, _ = os.pread(self._file, 100, 0).split()
        return time.monotonic_ns(), int(ran) + int(waited)

    def is_busy(self) -> bool:
        (before_ns, before), (now_ns, now) = self._before, self._read()
        self._before = now_ns, now
        return self._file < 0 or now - before >= BUSY_SHARE * (now_ns - before_ns)


class TokenBucket:
    """At most `per_s` requests a second, and as many at once."""

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._most = max(per_s, 1.0)
        self._left = self._most
        self._since_s: float | None = None

    def take(self, now_s: float) -> float:
        """0.0 and one token less if there is one, else how many seconds until there is."""
        if self._since_s is not None:
            self._left = min(self._most, self._left + (now_s - self._since_s) * self.per_s)
        self._since_s = now_s
        if self._left >= 1.0:
            self._left -= 1.0
            return 0.0
        return (1.0 - self._left) / self.per_s
