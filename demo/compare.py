"""Served vectors against the same rows of the training set, value by value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["Comparison", "ServedVectors", "agree", "count_by_hand"]

RELATIVE_TOLERANCE = 1e-9
"""For floats; the paths may add in another order. Everything else must be equal."""


DAY_US, HOUR_US = 86_400_000_000, 3_600_000_000


@dataclass(slots=True)
class ServedVectors:
    """What lookups answered, row by row: `rows` as label rows, `values` by feature."""

    rows: dict[str, list[Any]] = field(default_factory=dict)
    values: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, rows: dict[str, list[Any]], values: dict[str, list[Any]]) -> None:
        for held, more in ((self.rows, rows), (self.values, values)):
            for name, column in more.items():
                held.setdefault(name, []).extend(column)

    def __len__(self) -> int:
        return len(next(iter(self.rows.values()), []))


@dataclass(slots=True)
class Comparison:
    """How many values were compared, how many were not null, and each that differs as text."""

    compared: int = 0
    present: int = 0
    differences: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, served: ServedVectors, training: pa.Table) -> Comparison:
        """`training` holds, row for row, what the training set says of the served rows."""
        result = cls()
        for name, online in served.values.items():
            offline = training[name].to_pylist() if name in training.column_names else [math.nan] * len(online)
            for row, (left, right) in enumerate(zip(online, offline, strict=True)):
                result._count(served, row, name, left, right)
        return result

    def _count(self, served: ServedVectors, row: int, name: str, online: Any, offline: Any) -> None:
        self.compared += 1
        self.present += online is not None
        if not agree(online, offline):
            keys = {key: str(column[row]) for key, column in served.rows.items()}
            self.differences.append(f"{name}: served {online!r}, training set {offline!r}, for {keys}")


def agree(online: Any, offline: Any) -> bool:
    """Whether a value of a JSON reply is a value of the training set."""
    if online is None or offline is None:
        return online is None and offline is None
    if isinstance(offline, datetime):
        return datetime.fromisoformat(online).astimezone(UTC) == offline
    if isinstance(offline, float):
        return math.isclose(online, offline, rel_tol=RELATIVE_TOLERANCE)
    return type(online) is type(offline) and bool(online == offline)


def count_by_hand(departures: pa.Table, origin: str, at_us: int) -> int:
    """What `origin_departures__count_24h` must be, counted in the raw events: those of the origin from 24 h before
    the moment, floored to the window's hop of 1 h, up to the moment, which is not included.
    """
    times_us = departures["departed_at"].cast(pa.int64()).to_numpy()
    tail_us = (at_us - DAY_US) // HOUR_US * HOUR_US
    begin, end = np.searchsorted(times_us, [tail_us, at_us])
    count: int = departures["origin"].slice(begin, end - begin).to_pylist().count(origin)
    return count
