"""Values as they were last answered from, in this process: what a degraded answer falls back to.

Kept are the stored bytes with the moment at which they were read, so what they show is worked out again only if it is
needed, and at that same moment: a finished value, never slid to another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from headrace.read.online.reads import Asked, Marks, StoreReads
from headrace.read.online.results import LookupResult

__all__ = ["Answered", "Kept", "KeptValues"]


class Answered(NamedTuple):
    """What the values of one answer have in common: what the markers said, and when it was made by the wall clock, in
    microseconds."""

    marks: Marks
    kept_us: int


class Kept(NamedTuple):
    """The values of one entity key: the fields that its plan asks for, and the t and the answer that they were of."""

    held: Sequence[bytes | None]
    t_us: int
    answered: Answered


Of = tuple[int, int]
"""A plan's reads, and the number of the entity among them. A plan belongs to one catalog, so what was kept under an
earlier catalog is never found."""
_Values = dict[Of, dict[str, tuple[Any, int, Answered]]]


class KeptValues:
    """The values of at most `most` entity keys, those of the latest answers.

    Two generations: when the young one holds half of the keys it becomes the old one, which is forgotten.
    """

    def __init__(self, most: int) -> None:
        self._half = most // 2
        self._young: _Values = {}
        self._old: _Values = {}
        self._count = 0

    def __len__(self) -> int:
        return sum(len(of) for held in (self._young, self._old) for of in held.values())

    def keep(self, reads: StoreReads, asked: Asked, replies: Sequence[Any], result: LookupResult, now_us: int) -> None:
        """The replies of one request that were answered, whole, by `result`."""
        if not self._half or result.marks is None:
            return
        answered, place = Answered(result.marks, now_us), 1
        for entity, keys in enumerate(asked.keys):
            times_us = _times_of_keys(result.times_us, asked, entity)
            mine = self._young.get((reads.number, entity))
            if mine is None:
                mine = self._young[reads.number, entity] = {}
            before = len(mine)
            mine.update(zip(keys, zip(replies[place:], times_us, repeat(answered)), strict=False))
            self._count += len(mine) - before
            place += len(keys)
        if self._count > self._half:
            self._old, self._young, self._count = self._young, {}, 0

    def find(self, reads: StoreReads, entity: int, key: str) -> Kept | None:
        """The latest values of an entity key."""
        of = (reads.number, entity)
        found = self._young.get(of, {}).get(key) or self._old.get(of, {}).get(key)
        return None if found is None else Kept(*found)


def _times_of_keys(times_us: Sequence[int], asked: Asked, entity: int) -> Iterable[int]:
    """The moment of each key: that of a row which asked for it."""
    first = times_us[0]
    if len(times_us) == 1 or times_us.count(first) == len(times_us):
        return repeat(first)
    by_key = [first] * len(asked.keys[entity])
    for numbers in asked.numbers[entity]:
        for number, t_us in zip(numbers, times_us, strict=True):
            if number >= 0:
                by_key[number] = t_us
    return by_key
