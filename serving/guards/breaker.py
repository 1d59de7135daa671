"""The circuit breaker of one shard: after some failures in a row nothing is asked of it for a while."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["FAILURES", "Breaker"]

FAILURES = 5
FIRST_REST_S, LONGEST_REST_S = 0.1, 2.0
PROBE_S = 1.0
"""How long a probe may be under way before another one is let through."""


class Breaker:
    """Closed: all may ask. After some `failures` in a row it opens: nobody may for a while, twice as long each time;
    then one request is let through, and its outcome closes or opens it again. `on_change` is told whether it is open.

    Times are seconds of one monotonic clock.
    """

    def __init__(self, on_change: Callable[[bool], None], failures: float = FAILURES) -> None:
        self._on_change, self._most = on_change, failures
        self._failures = 0
        self._rest_s = 0.0
        self._until_s = 0.0
        self.is_open = False

    def allows(self, now_s: float) -> bool:
        """Whether a request may ask the shard; of an open one, it is then the probe."""
        if not self.is_open:
            return True
        if now_s < self._until_s:
            return False
        self._until_s = now_s + PROBE_S
        return True

    def succeeded(self) -> None:
        """The shard has answered, in time or late."""
        if self._failures:
            self._failures = 0
        if self.is_open:
            self.is_open, self._rest_s = False, 0.0
            self._on_change(False)

    def failed(self, now_s: float) -> None:
        """It has not, or with an error of its own."""
        self._failures += 1
        if self.is_open or self._failures >= self._most:
            self._rest_s = min(max(2 * self._rest_s, FIRST_REST_S), LONGEST_REST_S)
            self._until_s = now_s + self._rest_s * random.uniform(0.75, 1.0)
            if not self.is_open:
                self.is_open = True
                self._on_change(True)
