"""Windows as intervals of event time: hops, tails and durations, all in microseconds.

A window of length W read at t covers `[tail, t)`, where the tail is `t - W` floored to the hop: the head slides
with every microsecond, the tail moves hop by hop (a sawtooth), so a window over-reaches by less than one hop.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DefinitionError

__all__ = [
    "BEGINNING_US",
    "HOPS_US",
    "default_hop_us",
    "floor_us",
    "format_duration",
    "parse_duration_us",
    "tail_us",
    "tiles_of",
    "validate_window_us",
]

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US

HOPS_US = (
    50_000,
    250_000,
    SECOND_US,
    5 * SECOND_US,
    15 * SECOND_US,
    MINUTE_US,
    5 * MINUTE_US,
    15 * MINUTE_US,
    HOUR_US,
    6 * HOUR_US,
    DAY_US,
    7 * DAY_US,
)
BEGINNING_US = -(2**62)
"""The tail of the lifetime window: before every event."""

_UNITS_US = {"ms": 1_000, "s": SECOND_US, "m": MINUTE_US, "h": HOUR_US, "d": DAY_US, "w": 7 * DAY_US}
_DURATION = re.compile(r"(\d+)\s*(ms|s|m|h|d|w)")


def parse_duration_us(text: str) -> int:
    """Microseconds of a duration such as `500ms`, `10m`, `24h`, `7d`.

    Raises DefinitionError for anything else.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise DefinitionError(
            f"A duration is a whole number and one of {', '.join(_UNITS_US)}, got {text!r}; write it like 10m or 24h."
        )
    return int(match[1]) * _UNITS_US[match[2]]


def format_duration(duration_us: int) -> str:
    """The shortest whole form of a duration, weeks aside: 3600 s is `1h`, 90 s is `90s`, 24 h is `24h`."""
    for unit in ("d", "h", "m", "s", "ms"):
        count, rest = divmod(duration_us, _UNITS_US[unit])
        if rest == 0 and not (unit == "d" and count == 1):
            return f"{count}{unit}"
    return f"{duration_us}us"


def validate_window_us(window_us: int) -> None:
    """Raises DefinitionError unless the window is of whole seconds, at least one."""
    if window_us < SECOND_US or window_us % SECOND_US:
        nearest = max(1, round(window_us / SECOND_US))
        raise DefinitionError(
            f"A window must be whole seconds, at least 1 s, got {format_duration(window_us)}; choose {nearest}s."
        )


def default_hop_us(window_us: int) -> int:
    """The largest of HOPS_US that is at most a twelfth of the window.

    >>> format_duration(default_hop_us(parse_duration_us("24h")))
    '1h'
    """
    validate_window_us(window_us)
    return max(hop for hop in HOPS_US if hop * 12 <= window_us)


def floor_us(time_us: Any, hop_us: int) -> Any:
    """`time_us` (int or int64 array) floored to a multiple of the hop, aligned to the epoch."""
    return time_us - time_us % hop_us


def tail_us(t_us: Any, window_us: int | None, hop_us: int) -> Any:
    """The first event time that counts for a read at `t_us` (int or int64 array); None is the lifetime."""
    if window_us is None:
        return np.full_like(t_us, BEGINNING_US) if isinstance(t_us, np.ndarray) else BEGINNING_US
    return floor_us(t_us - window_us, hop_us)


def tiles_of(times_us: NDArray[np.int64], hop_us: int) -> NDArray[np.int64]:
    """The tile number of every time; a hop of 0 (lifetime) has the one tile 0."""
    return times_us // hop_us if hop_us else np.zeros_like(times_us)
