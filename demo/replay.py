"""The year as it happened: events of all sources in the order of their times, with pauses at which to look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from demo.data import SOURCES

__all__ = ["EventLog", "choose_moments", "replay"]

Ints = NDArray[np.int64]
HOUR_US = 3_600_000_000
SLICE_US = 12 * HOUR_US
PLAIN_SOURCES = ("weather",)
"""Sources of last-value views: an event at T itself counts for a read at T. Windows end before T."""


@dataclass(slots=True)
class EventLog:
    """The events of one source in time order, and how many of them have been pushed."""

    source: str
    events: pa.Table
    times_us: Ints
    pushed: int = 0

    @classmethod
    def read(cls, source: str, path: Path) -> EventLog:
        events = pq.read_table(path)
        return cls(source, events, events[SOURCES[source]].cast(pa.int64()).to_numpy())

    def take_until(self, end_us: int, inclusive: bool) -> pa.Table:
        """The next events, those before `end_us` (or at it, too)."""
        end = int(np.searchsorted(self.times_us, end_us, side="right" if inclusive else "left"))
        events = self.events.slice(self.pushed, max(0, end - self.pushed))
        self.pushed = max(self.pushed, end)
        return events


def choose_moments(departures_us: Ints, count: int, seed: int = 2013) -> list[int]:
    """`count` of the scheduled departures `departures_us`, one in each equal part of the year, ascending.

    Every other one is on a full hour where there is one, when weather is observed too: ties must come out right.
    """
    generator = np.random.default_rng(seed)
    chosen = []
    for number, part in enumerate(np.array_split(np.unique(departures_us), count)):
        full_hours = part[part % HOUR_US == 0]
        chosen.append(int(generator.choice(full_hours if number % 2 and len(full_hours) else part)))
    return chosen


def replay(
    logs: Sequence[EventLog],
    moments: Sequence[int],
    push: Callable[[str, pa.Table], None],
) -> Iterator[int | None]:
    """Push all `logs` in slices of event time; yields each of `moments` when all before it (of plain views' sources:
    up to it) is pushed, and None at the end."""
    end_us = max(int(log.times_us[-1]) for log in logs) + 1
    for stop_us, is_moment in _stops(logs, moments, end_us):
        for log in logs:
            events = log.take_until(stop_us, inclusive=is_moment and log.source in PLAIN_SOURCES)
            if events.num_rows:
                push(log.source, events)
        if is_moment:
            yield stop_us
    yield None


def _stops(logs: Sequence[EventLog], moments: Sequence[int], end_us: int) -> list[tuple[int, bool]]:
    """Where slices end: at steps of SLICE_US, at the moments, and after the last event."""
    begin_us = min(int(log.times_us[0]) for log in logs)
    steps = dict.fromkeys([*range(begin_us + SLICE_US, end_us, SLICE_US), end_us], False)
    return sorted((steps | dict.fromkeys(moments, True)).items())
