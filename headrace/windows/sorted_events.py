"""Events in the order of key and time, and where in it a key's moment lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SortedEvents"]

Ints = NDArray[np.int64]

_MOST = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class SortedEvents:
    """n events sorted by (key, time) and, where asked for, by place among equals.

    `order` holds the numbers of the events as given. Key and time are packed into one int64, the time as the distance
    from the first or, where that does not fit, as its rank among all times.
    """

    order: Ints
    _packed: Ints
    _ticks: int
    _origin: int
    _times: Ints | None

    @classmethod
    def of(cls, keys: Ints, times_us: Ints, places: Sequence[Ints] | None = None) -> SortedEvents:
        """`keys` are int64 codes >= 0. Of equal key and time the one of the lower place comes first: `places` are int64
        arrays, the most significant first; no arrays leave it open, None takes the given order."""
        origin, last = (int(times_us.min()), int(times_us.max())) if len(times_us) else (0, 0)
        ticks = last - origin + 2
        known: Ints | None = None
        if (int(keys.max(initial=0)) + 1) * ticks <= _MOST:
            packed = keys * ticks + (times_us - origin)
        else:
            known = _distinct(times_us)
            ticks = len(known) + 1
            packed = keys * ticks + np.searchsorted(known, times_us)
        if (packed[1:] >= packed[:-1]).all():
            order = np.arange(len(packed))
        else:
            order = np.argsort(packed)
            packed = packed[order]
        if places is None or len(places):
            _settle_ties(order, packed, places)
        return cls(order, packed, ticks, origin, known)

    def first_at(self, keys: Ints, times_us: Ints) -> Ints:
        """Place (in sorted order) of the first event of the key at or after the time; 0 for a key below 0.

        Fastest for keys and times that are sorted themselves.
        """
        if self._times is None:
            ticks = np.clip(times_us - self._origin, 0, self._ticks - 1)
        else:
            ticks = np.searchsorted(self._times, times_us)
        return np.searchsorted(self._packed, keys * self._ticks + ticks)

    def first_of(self, keys: Ints) -> Ints:
        """Place of the first event of the key; 0 for a key below 0."""
        return np.searchsorted(self._packed, keys * self._ticks)


def _distinct(values: Ints) -> Ints:
    """The different values, rising."""
    rising = np.sort(values)
    return rising[np.r_[True, rising[1:] != rising[:-1]]]


def _settle_ties(order: Ints, packed: Ints, places: Sequence[Ints] | None) -> None:
    """Brings equal events into the order of their places."""
    same = packed[1:] == packed[:-1]
    if not same.any():
        return
    tied = np.flatnonzero(np.r_[same, False] | np.r_[False, same])
    rows = order[tied]
    levels = [rows] if places is None else [place[rows] for place in reversed(places)]
    order[tied] = rows[np.lexsort((*levels, packed[tied]))]
