"""The online store as writers see it: read a value, merge what comes after it, write if nobody else did.

A write is a compare-and-set on the whole header that was read; refused, the key is read and merged again. So two
writers at once stay right, whatever a lease says. One command writes several keys, each for itself.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from headrace.errors import StoreLostError
from headrace.stores.blob_cache import BlobCache
from headrace.stores.cluster_wire import ClusterWire, wire_of
from headrace.stores.codec.header import BUILD, NEWEST, build_of, header_size
from headrace.stores.wire import Wire, command_template, pack_command

__all__ = ["RENEW_MS", "Merge", "OnlineStore", "Update"]

_Write = tuple[int, bytes, bytes]
"""A key's number, the header that its value must have, and its new value."""
Merge = Callable[[Sequence[int], list[bytes | None]], list[bytes | None]]
"""From key numbers and their values now to the values to write (None: leave it)."""

_COMPARE_AND_SET = """
local field, ttl, done = ARGV[1], ARGV[2], {}
for i, key in ipairs(KEYS) do
  local held, expected = redis.call('HGET', key, field), ARGV[2 * i + 1]
  if held and expected ~= '' and string.sub(held, 1, #expected) == expected or not held and expected == '' then
    redis.call('HSET', key, field, ARGV[2 * i + 2])
    if ttl == '0' then
      redis.call('PERSIST', key)
    elseif ttl ~= '' and redis.call('PEXPIRE', key, ttl, 'GT') == 0 then
      if not held and redis.call('HLEN', key) == 1 then redis.call('PEXPIRE', key, ttl) end
    end
    done[i] = 1
  else
    done[i] = 0
  end
end
return done
"""
_CHUNK = 5_000
_READS_AHEAD = 2
_CACHE_BYTES = 256 << 20
_RENEWED = slice(NEWEST.start + 4, NEWEST.stop)

RENEW_MS = 4_295_000
"""A writer renews a key's time to live once per 2^32 us (72 min) of event time: it may be this much short."""


@dataclass(frozen=True, slots=True)
class Update:
    """Values of one field to merge into: `keys`, each given once; `ttl_ms` is a key's time to live, 0 for ever, which
    a writer renews with its first write and then once per RENEW_MS of event time. It is never shortened: another
    field's writer, who knows of longer windows, may have set it.

    A value of a build before `build` is none to `merge`; one of a later build raises StoreLostError: the store was
    lost, and somebody builds it anew.
    """

    keys: Sequence[bytes]
    field: str
    merge: Merge
    ttl_ms: int
    build: int = 0


class OnlineStore:
    """Reads and writes values (one hash field per layout) for batches of entity keys. Not thread-safe."""

    def __init__(self, store: redis.Redis) -> None:
        self._store = store
        self._wire = wire_of(store)
        self._cache = BlobCache(_CACHE_BYTES)
        self._script: bytes | None = None
        self.refused = 0
        self.meanwhile: Callable[[], None] | None = None
        """Called by each update once all is sent, while the server works."""

    def read(self, keys: Sequence[bytes], field: str) -> list[bytes | None]:
        """The value of `field` at every key, None where there is none."""
        get = command_template(b"HGET", None, field.encode())
        with self._clean():
            self._wire.send([get % (len(key), key) for key in keys])
            return self._wire.receive(len(keys))

    def update(self, *updates: Update) -> None:
        """Merges into every key of every update until each write is accepted; several go together in fewer waits.

        A lost connection raises redis.RedisError: the batch is then partly written, which the positions make
        harmless to repeat. StoreLostError: see Update.
        """
        with self._clean():
            group = self._wire.keys_per_command
            prepared = [_Prepared(update, self.script(), self._cache, group) for update in updates]
            _Run(self, self._wire, prepared).run()

    def forget_known(self) -> None:
        """To be called when values may have been taken back: of what was written last nothing is taken as known."""
        self._cache = BlobCache(_CACHE_BYTES)

    def script(self, renew: bool = False) -> bytes:
        """The digest of the compare-and-set script, which the server then knows."""
        if self._script is None or renew:
            self._script = str(self._store.script_load(_COMPARE_AND_SET)).encode()
        return self._script

    @contextlib.contextmanager
    def _clean(self) -> Iterator[None]:
        """Closes the connection when the block fails: replies may be outstanding."""
        try:
            yield
        except BaseException:
            self._wire.close()
            raise


class _Prepared:
    """An update and the bytes that its commands share."""

    def __init__(self, update: Update, script: bytes, cache: BlobCache, group: int) -> None:
        self.update = update
        self._cache = cache
        self._group = group
        self._field = update.field.encode()
        self._get = command_template(b"HGET", None, self._field)
        self.script = script

    def chunks(self) -> Iterator[_Chunk]:
        """All keys, with the values that are known."""
        keys = self.update.keys
        known = self._cache.find(self.update.field, keys)
        for at in range(0, len(keys), _CHUNK):
            yield _Chunk(self, range(at, min(at + _CHUNK, len(keys))), known[at : at + _CHUNK])

    def reads(self, chunk: _Chunk) -> list[bytes]:
        """The commands that read the values which are not known."""
        get, keys, known = self._get, self.update.keys, zip(chunk.numbers, chunk.known, strict=True)
        return [get % (len(keys[k]), keys[k]) for k, blob in known if blob is None]

    def writes(self, chunk: _Chunk, read: Iterator[bytes | None]) -> tuple[_Written, list[bytes]]:
        """What the values become, those not known being `read`, and the commands that write it."""
        held = [next(read) if blob is None else blob for blob in chunk.known]
        merged = self.update.merge(chunk.numbers, _of_build(held, self.update.build))
        same: list[_Write] = []
        renewed: list[_Write] = []
        for k, guess, old, new in zip(chunk.numbers, chunk.known, held, merged, strict=True):
            if new is None:
                continue
            header = b"" if old is None else old[: header_size(old)]
            if guess is not None and guess[_RENEWED] == new[_RENEWED]:
                same.append((k, header, new))
            else:
                renewed.append((k, header, new))
        commands = []
        for writes, ttl in ((same, b""), (renewed, b"%d" % self.update.ttl_ms)):
            for at in range(0, len(writes), self._group):
                commands.append(self._command(writes[at : at + self._group], ttl))
        every = same + renewed
        return _Written(self, [k for k, _, _ in every], [new for _, _, new in every]), commands

    def _command(self, writes: Sequence[_Write], ttl: bytes) -> bytes:
        """The command that writes a group of values."""
        keys = [self.update.keys[k] for k, _, _ in writes]
        values = [part for _, header, new in writes for part in (header, new)]
        return pack_command([b"EVALSHA", self.script, b"%d" % len(keys), *keys, self._field, ttl, *values])

    def settle(self, written: _Written, accepted: Sequence[Any]) -> list[int]:
        """Remember what was written; returns the numbers of the keys where it was not."""
        keys = self.update.keys
        self._cache.keep(self.update.field, [keys[k] for k in written.numbers], written.blobs)
        if all(accepted):
            return []
        refused = [k for k, done in zip(written.numbers, accepted, strict=True) if not done]
        self._cache.drop(self.update.field, [keys[k] for k in refused])
        return refused


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Some keys of an update, by number, and their values as far as they are known."""

    update: _Prepared
    numbers: Sequence[int]
    known: Sequence[bytes | None]


@dataclass(frozen=True, slots=True)
class _Written:
    """Values of an update's keys that were sent."""

    update: _Prepared
    numbers: Sequence[int]
    blobs: Sequence[bytes]


class _Run:
    """Updates under way. Chunks of keys are read ahead, so that the server works while this process merges."""

    def __init__(self, store: OnlineStore, wire: Wire | ClusterWire, updates: Sequence[_Prepared]) -> None:
        self._store, self._wire, self._updates = store, wire, updates
        self._meanwhile = store.meanwhile
        self._waiting = deque(chunk for update in updates for chunk in update.chunks())
        self._sent: deque[tuple[_Chunk | _Written, int]] = deque()

    def run(self) -> None:
        for _ in range(_READS_AHEAD):
            self._send_read()
        while self._sent:
            if not self._waiting and self._meanwhile is not None and not self._reads_sent():
                self._meanwhile()
                self._meanwhile = None
            sent, replies = self._sent.popleft()
            if isinstance(sent, _Chunk):
                self._write(sent, self._wire.receive(replies))
            else:
                self._acknowledge(sent, replies)
            self._send_read()

    def _send_read(self) -> None:
        if self._waiting and self._reads_sent() < _READS_AHEAD:
            chunk = self._waiting.popleft()
            commands = chunk.update.reads(chunk)
            self._wire.send(commands)
            self._sent.append((chunk, len(commands)))

    def _reads_sent(self) -> int:
        return sum(isinstance(sent, _Chunk) for sent, _ in self._sent)

    def _write(self, chunk: _Chunk, read: list[bytes | None]) -> None:
        written, commands = chunk.update.writes(chunk, iter(read))
        if commands:
            self._wire.send(commands)
            self._sent.append((written, len(commands)))

    def _acknowledge(self, written: _Written, replies: int) -> None:
        try:
            accepted = [done for group in self._wire.receive(replies) for done in group]
        except redis.exceptions.NoScriptError:
            script, accepted = self._store.script(renew=True), [0] * len(written.numbers)
            for update in self._updates:
                update.script = script
        refused = written.update.settle(written, accepted)
        if refused:
            self._store.refused += len(refused)
            self._waiting.append(_Chunk(written.update, refused, [None] * len(refused)))


def _of_build(held: list[bytes | None], build: int) -> list[bytes | None]:
    """The values of this build; those of an older one are none."""
    builds = {blob[BUILD] for blob in held if blob is not None}
    if builds <= {build.to_bytes(8, "little")}:
        return held
    newest = max(int.from_bytes(found, "little") for found in builds)
    if newest > build:
        raise StoreLostError(
            f"A value belongs to build {newest}, this process writes build {build}: the store was lost and is "
            "built anew; starting again from its markers."
        )
    return [None if blob is None or build_of(blob) != build else blob for blob in held]
