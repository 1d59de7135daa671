"""The online store as writers see it: read a value, merge what comes after it, write if nobody else did.

A write is a compare-and-set on the whole header that was read; refused, the key is read and merged again. So two
writers at once stay right, whatever a lease says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import redis

from headrace.errors import StoreLostError
from headrace.stores.codec.header import build_of, header_size

__all__ = ["Merge", "OnlineStore"]

Merge = Callable[[list[int], list[bytes | None]], list[bytes | None]]
"""From key numbers and their values now to the values to write (None: leave it)."""

_COMPARE_AND_SET = """
local held = redis.call('HGET', KEYS[1], ARGV[1])
local expected = ARGV[2]
if held == false then
  if expected ~= '' then return 0 end
elseif expected == '' or string.sub(held, 1, #expected) ~= expected then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
if ARGV[4] == '0' then redis.call('PERSIST', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
return 1
"""
_CHUNK = 5_000


class OnlineStore:
    """Reads and writes values (one hash field per layout) for batches of entity keys."""

    def __init__(self, store: redis.Redis) -> None:
        self._store = store
        self._script: str | None = None
        self.refused = 0

    def read(self, keys: Sequence[bytes], field: str) -> list[bytes | None]:
        """The value of `field` at every key, None where there is none."""
        pipe = self._store.pipeline(transaction=False)
        for key in keys:
            pipe.hget(cast(str, key), field)
        return cast(list[bytes | None], pipe.execute())

    def update(self, keys: Sequence[bytes], field: str, merge: Merge, ttl_ms: int, build: int = 0) -> None:
        """Merges into every key (each given once) until each write is accepted.

        `ttl_ms` is the key's new time to live, 0 for none. A value of a build before `build` is none to `merge`; one
        of a later build raises StoreLostError: the store was lost, and somebody builds it anew. A lost connection
        raises redis.RedisError: the batch is then partly written, which the positions make harmless to repeat.
        """
        for start in range(0, len(keys), _CHUNK):
            waiting = list(range(start, min(start + _CHUNK, len(keys))))
            while waiting:
                held = self.read([keys[k] for k in waiting], field)
                merged = merge(waiting, [_of_build(blob, build) for blob in held])
                waiting = self._write(keys, field, waiting, held, merged, ttl_ms)
                self.refused += len(waiting)

    def _write(
        self,
        keys: Sequence[bytes],
        field: str,
        waiting: Sequence[int],
        held: Sequence[bytes | None],
        merged: Sequence[bytes | None],
        ttl_ms: int,
    ) -> list[int]:
        """The key numbers whose write was refused."""
        writes = [(k, old, new) for k, old, new in zip(waiting, held, merged, strict=True) if new is not None]
        if not writes:
            return []
        if self._script is None:
            self._script = cast(str, self._store.script_load(_COMPARE_AND_SET))
        pipe = self._store.pipeline(transaction=False)
        for k, old, new in writes:
            expected = b"" if old is None else old[: header_size(old)]
            args: list[Any] = [keys[k], field, expected, new, ttl_ms]
            pipe.evalsha(self._script, 1, *args)
        try:
            accepted = pipe.execute()
        except redis.exceptions.NoScriptError:
            self._script = None
            return [k for k, _, _ in writes]
        return [k for (k, _, _), done in zip(writes, accepted, strict=True) if not done]


def _of_build(blob: bytes | None, build: int) -> bytes | None:
    if blob is None or build_of(blob) == build:
        return blob
    if build_of(blob) > build:
        raise StoreLostError(
            f"A value belongs to build {build_of(blob)}, this process writes build {build}: the store was lost and is "
            "built anew; starting again from its markers."
        )
    return None
