"""One call: attempts until one answers, for as long as the caller can wait."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from headrace.errors import DeadlineError, HeadraceError

__all__ = ["Again", "Patience", "patiently"]

Answer = TypeVar("Answer")
Attempt = Callable[[], Awaitable[Answer]]

FIRST_WAIT_S, LONGEST_WAIT_S = 0.02, 1.0


class Again(Exception):
    """An attempt that failed with `error`, and that may be repeated, no earlier than in `retry_after_s`."""

    def __init__(self, error: HeadraceError, retry_after_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call may take in all, and how often a failed attempt of it is repeated."""

    deadline_s: float
    retries: int


async def patiently(attempt: Attempt[Answer], patience: Patience) -> Answer:
    """What the first attempt that succeeds gives.

    Between attempts lies a random wait, up to a bound that doubles, and at least what the server asks for; one that
    would pass the deadline is not begun. Raises DeadlineError, or the error of the last attempt.
    """
    ends_s = time.monotonic() + patience.deadline_s
    failed: Again | None = None
    for number in range(patience.retries + 1):
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + ends_s - time.monotonic()):
                return await attempt()
        except TimeoutError:
            cause = f"; before that: {failed.error}" if failed else ""
            raise DeadlineError(f"No answer came within {patience.deadline_s:g} s{cause}; give it more time.") from None
        except Again as again:
            failed = again
        wait_s = _wait_s(number, failed.retry_after_s)
        if number == patience.retries or time.monotonic() + wait_s >= ends_s:
            break
        await asyncio.sleep(wait_s)
    assert failed is not None
    raise failed.error from failed.__cause__


def _wait_s(number: int, retry_after_s: float) -> float:
    """Seconds before the next attempt; callers who were told the same moment spread behind it."""
    bound_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**number)
    return retry_after_s + random.uniform(0, max(bound_s, retry_after_s / 4))
