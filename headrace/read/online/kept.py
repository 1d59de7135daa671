"""Values as they were last answered from, in this process: what a degraded answer falls back to.

Kept are the stored bytes with the moment at which they were read, so what they show is worked out again only if it is
needed, and at that same moment: a finished value, never slid to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from headrace.read.online.reads import Asked, Marks, StoreReads

__all__ = ["Kept", "KeptValues", "Times"]


class Kept(NamedTuple):
    """The values of one entity key: the fields that its plan asks for, the t they were answered at, what the markers
    said then, and when that was by the wall clock, in microseconds."""

    held: Sequence[bytes | None]
    t_us: int
    marks: Marks
    kept_us: int


Key = tuple[int, int, str]
"""A plan's reads, the number of the entity among them, the entity key. A plan belongs to one catalog, so what was kept
under an earlier catalog is never found."""


class KeptValues:
    """The values of at most `most` entity keys, those of the latest answers.

    Two generations: when the young one holds half of the keys it becomes the old one, which is forgotten.
    """

    def __init__(self, most: int) -> None:
        self._half = most // 2
        self._young: dict[Key, Kept] = {}
        self._old: dict[Key, Kept] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def keep(self, reads: StoreReads, asked: Asked, replies: Sequence[Any], marks: Marks, t: Times) -> None:
        """The replies of one request that were answered, whole, at `t`."""
        if not self._half:
            return
        young, place = self._young, 1
        for entity, keys in enumerate(asked.keys):
            times_us = t.of_keys(asked, entity)
            for number, key in enumerate(keys):
                t_us = times_us if type(times_us) is int else times_us[number]
                young[reads.number, entity, key] = Kept(replies[place], t_us, marks, t.now_us)
                place += 1
        if len(young) > self._half:
            self._old, self._young = young, {}

    def find(self, reads: StoreReads, entity: int, key: str) -> Kept | None:
        """The latest values of an entity key."""
        found = self._young.get((reads.number, entity, key))
        return self._old.get((reads.number, entity, key)) if found is None else found


class Times(NamedTuple):
    """The moments of a request's rows, and the present."""

    times_us: Sequence[int]
    now_us: int

    def of_keys(self, asked: Asked, entity: int) -> Any:
        """One for all keys, or one per key: that of a row which asked for it."""
        first = self.times_us[0]
        if all(t_us == first for t_us in self.times_us):
            return first
        by_key = [first] * len(asked.keys[entity])
        for numbers in asked.numbers[entity]:
            for number, t_us in zip(numbers, self.times_us, strict=True):
                if number >= 0:
                    by_key[number] = t_us
        return by_key
