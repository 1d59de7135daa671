"""Values as a writer last wrote them: a guess that saves reading them again, never a truth.

A write is refused unless the header in the store is the one that was merged into, so a guess that no longer holds
costs one more read of that key. A row that loses to the guess is not written at all: values only ever grow, but for
those that are forgotten (see OnlineStore.forget_known).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["BlobCache"]

_OVERHEAD_BYTES = 150  # of a key, a value and their places in the table, beside their own bytes

_Values = dict[str, dict[bytes, bytes]]


class BlobCache:
    """The values of the keys written last, by field, in at most about `most_bytes`.

    Two generations: when the young one has half of the bytes it becomes the old one, which is forgotten.
    """

    def __init__(self, most_bytes: int) -> None:
        self._half = most_bytes // 2
        self._young: _Values = {}
        self._old: _Values = {}
        self._bytes = 0

    def find(self, field: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of `field` at every key, None where none is known."""
        found = list(map(self._young.get(field, {}).get, keys))
        old = self._old.get(field)
        if old:
            found = [old.get(key) if blob is None else blob for key, blob in zip(keys, found, strict=True)]
        return found

    def keep(self, field: str, keys: Sequence[bytes], blobs: Sequence[bytes]) -> None:
        """Remember the value of every key."""
        self._young.setdefault(field, {}).update(zip(keys, blobs, strict=True))
        self._bytes += sum(map(len, blobs)) + len(blobs) * _OVERHEAD_BYTES
        if self._bytes > self._half:
            self._old, self._young, self._bytes = self._young, {}, 0

    def drop(self, field: str, keys: Iterable[bytes]) -> None:
        """Forget what turned out to be untrue."""
        for generation in (self._young, self._old):
            values = generation.get(field, {})
            for key in keys:
                values.pop(key, None)
