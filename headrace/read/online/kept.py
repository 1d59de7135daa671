"""Values as they were last answered from, in this process: what a degraded answer falls back to.

Kept are the stored bytes with the moment at which they were read, so what they show is worked out again only if it is
needed, and at that same moment: a finished value, never slid to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from headrace.read.online.reads import Asked, Marks, StoreReads
from headrace.read.online.results import LookupResult

__all__ = ["Kept", "KeptValues"]

FORGOTTEN_PER_KEY = 4
REFRESH_US = 1_000_000
"""A value that was kept so lately is not kept again: most keys are asked for many times a second."""


class Kept(NamedTuple):
    """The values of one entity key: the fields that its plan asks for, the t they were answered at, when that was by
    the wall clock, in microseconds, and what the markers said then."""

    held: Sequence[bytes | None]
    t_us: int
    kept_us: int
    marks: Marks


Of = tuple[int, int]
"""A plan's reads, and the number of the entity among them. A plan belongs to one catalog, so what was kept under an
earlier catalog is never found."""
_Values = dict[str, tuple[tuple[bytes | None, ...], int, int, int]]


class _Generation:
    """Values by key: their bytes, t, when they were kept, and the number of their markers. All of that is plain, so the
    garbage collector has nothing to follow there."""

    def __init__(self) -> None:
        self.values: dict[Of, _Values] = {}
        self.marks: list[Marks] = []
        self.count = 0

    def find(self, of: Of, key: str) -> Kept | None:
        found = self.values.get(of, {}).get(key)
        return None if found is None else Kept(*found[:3], self.marks[found[3]])


class KeptValues:
    """The values of at most `most` entity keys, those of the latest answers or of answers a second before them.

    Two generations: when the young one holds half of the keys it becomes the old one, and the old one is forgotten,
    some keys with each answer, so that no request waits for all of them.
    """

    def __init__(self, most: int) -> None:
        self._half = most // 2
        self._young, self._old = _Generation(), _Generation()
        self._dying: list[_Values] = []

    def __len__(self) -> int:
        return self._young.count + self._old.count

    def keep(self, reads: StoreReads, asked: Asked, replies: Sequence[Any], result: LookupResult, now_us: int) -> None:
        """The replies of one request that were answered, whole, by `result`."""
        young, place = self._young, 1
        if not self._half or result.marks is None:
            return
        if not young.marks or young.marks[-1] is not result.marks:
            young.marks.append(result.marks)
        number = len(young.marks) - 1
        due_us = now_us - REFRESH_US
        for entity, keys in enumerate(asked.keys):
            mine = young.values.get((reads.number, entity))
            if mine is None:
                mine = young.values[reads.number, entity] = {}
            get, before = mine.get, len(mine)
            stale = [i for i, key in enumerate(keys) if (held := get(key)) is None or held[2] <= due_us]
            if stale:
                times_us = _times_of_keys(result.times_us, asked, entity)
                for i in stale:
                    mine[keys[i]] = (tuple(replies[place + i]), times_us[i], now_us, number)
                young.count += len(mine) - before
            place += len(keys)
        if self._dying:
            self._forget(FORGOTTEN_PER_KEY * place)
        if young.count > self._half:
            self._dying += self._old.values.values()
            self._old, self._young = young, _Generation()

    def _forget(self, keys: int) -> None:
        dying = self._dying[-1]
        for _ in range(min(keys, len(dying))):
            dying.popitem()
        if not dying:
            self._dying.pop()

    def find(self, reads: StoreReads, entity: int, key: str) -> Kept | None:
        """The latest values of an entity key."""
        of = (reads.number, entity)
        return self._young.find(of, key) or self._old.find(of, key)


def _times_of_keys(times_us: Sequence[int], asked: Asked, entity: int) -> Sequence[int]:
    """The moment of each key: that of a row which asked for it."""
    first = times_us[0]
    if len(times_us) == 1:
        return times_us
    by_key = [first] * len(asked.keys[entity])
    for numbers in asked.numbers[entity]:
        for number, t_us in zip(numbers, times_us, strict=True):
            if number >= 0:
                by_key[number] = t_us
    return by_key
