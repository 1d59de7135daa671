"""The row that a last-value view shows each label: the newest at or before its time. Pure arrays, no I/O."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.windows.arrivals import known_blocks
from headrace.windows.point_in_time import Events
from headrace.windows.sorted_events import SortedEvents

__all__ = ["LatestJoin", "latest_rows"]

Ints = NDArray[np.int64]

_BEFORE_ALL = np.iinfo(np.int64).min


class LatestJoin:
    """n labels and the newest row of each one's key, to which rows are added part by part, in any order.

    `keys` are int64 codes, -1 for a key without rows. Rows are Events with the features as columns and `width` places:
    of rows of one time the one of the higher place wins.
    """

    def __init__(self, keys: Ints, times_us: Ints, schema: pa.Schema, ttl_us: int, width: int) -> None:
        self._order = SortedEvents.of(keys + 1, times_us, ()).order
        self._keys, self._times_us, self._ttl_us = keys[self._order], times_us[self._order], ttl_us
        self._newest = [np.full(len(keys), _BEFORE_ALL) for _ in range(1 + width)]
        self._features: dict[str, pa.Array] = {field.name: pa.nulls(len(keys), field.type) for field in schema}

    def add(self, rows: Events) -> None:
        """Takes a part of the rows."""
        found = _newest_rows(rows, self._keys, self._times_us)
        self._take(rows, found, np.flatnonzero(found >= 0))

    def add_known(self, rows: Events, arrival_us: Ints) -> None:
        """Takes a part of the rows for those labels that lie after their arrival."""
        for chosen, blocks, labels, label_blocks in known_blocks(rows.keys, arrival_us, self._keys, self._times_us):
            places = tuple(place[chosen] for place in rows.places or ())
            part = Events(blocks, rows.times_us[chosen], {}, places)
            newest = _newest_rows(part, label_blocks, self._times_us[labels])
            seen = np.flatnonzero(newest >= 0)
            found = np.full(len(self._keys), -1, np.int64)
            found[labels[seen]] = chosen[newest[seen]]
            self._take(rows, found, np.sort(labels[seen]))

    def _take(self, rows: Events, found: Ints, labels: Ints) -> None:
        """Has the `labels` show the rows `found` (by label) where these are newer than what they show."""
        order = [rows.times_us, *(rows.places or ())]
        newer, equal = np.zeros(len(labels), np.bool_), np.ones(len(labels), np.bool_)
        for held, given in zip(self._newest, order, strict=True):
            ours, theirs = held[labels], given[found[labels]]
            newer |= equal & (theirs > ours)
            equal &= theirs == ours
        labels = labels[newer]
        if not len(labels):
            return
        for held, given in zip(self._newest, order, strict=True):
            held[labels] = given[found[labels]]
        n = len(self._keys)
        source = np.arange(n)
        source[labels] = n + np.arange(len(labels))
        chosen, places = pa.array(found[labels]), pa.array(source)
        for name, shown in self._features.items():
            fresh = rows.columns[name].take(chosen)
            self._features[name] = fresh if len(labels) == n else pa.concat_arrays([shown, fresh]).take(places)

    def columns(self) -> dict[str, pa.Array]:
        """The features of the newest row, whole, null for none and past its TTL."""
        missing = self._newest[0] == _BEFORE_ALL
        if self._ttl_us:
            missing |= self._newest[0] < self._times_us - self._ttl_us
        back = np.empty_like(self._order)
        back[self._order] = np.arange(len(self._order))
        rows = pa.array(back, mask=missing[back])
        return {name: values.take(rows) for name, values in self._features.items()}


def _newest_rows(rows: Events, keys: Ints, times_us: Ints) -> Ints:
    """Number of the newest row at or before each label's time, -1 for none."""
    by_time = SortedEvents.of(rows.keys, rows.times_us, rows.places)
    last = by_time.first_at(keys, times_us + 1) - 1
    found = np.full(len(keys), -1, np.int64)
    some = np.flatnonzero(last >= 0)
    numbers = by_time.order[last[some]]
    same = rows.keys[numbers] == keys[some]
    found[some[same]] = numbers[same]
    return found


def latest_rows(keys: Ints, times_us: Ints, label_keys: Ints, label_times_us: Ints) -> Ints:
    """Index of the row that a plain view shows each label: the newest at or before its time, -1 for none.

    Of rows of one time the one given later wins. Rows and labels use the same int64 key codes, -1 for unseen.
    """
    return _newest_rows(Events(keys, times_us, {}), label_keys, label_times_us)
