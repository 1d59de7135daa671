"""The online store as writers see it: read a value, merge what comes after it, write if nobody else did.

A write is a compare-and-set on the whole header that was read; refused, the key is read and merged again. So two
writers at once stay right, whatever a lease says.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import redis

from headrace.errors import StoreLostError
from headrace.stores.codec.header import BUILD, build_of, header_size
from headrace.stores.wire import Wire, command_template

__all__ = ["Merge", "OnlineStore", "Update"]

Merge = Callable[[Sequence[int], list[bytes | None]], list[bytes | None]]
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
_READS_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Update:
    """Values of one field to merge into: `keys`, each given once; `ttl_ms` is a key's new time to live, 0 for none.

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
        self._wire = Wire(store)
        self._script: bytes | None = None
        self.refused = 0

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
            _Run(self, self._wire, [_Prepared(update, self.script()) for update in updates]).run()

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

    def __init__(self, update: Update, script: bytes) -> None:
        self.update = update
        self.get = command_template(b"HGET", None, update.field.encode())
        self.renew(script)

    def renew(self, script: bytes) -> None:
        field = self.update.field.encode()
        self.put = command_template(b"EVALSHA", script, 1, None, field, None, None, self.update.ttl_ms)

    def chunks(self) -> Iterator[Sequence[int]]:
        n = len(self.update.keys)
        return (range(at, min(at + _CHUNK, n)) for at in range(0, n, _CHUNK))

    def reads(self, numbers: Sequence[int]) -> list[bytes]:
        get, keys = self.get, self.update.keys
        return [get % (len(keys[k]), keys[k]) for k in numbers]

    def writes(self, numbers: Sequence[int], held: list[bytes | None]) -> tuple[list[int], list[bytes]]:
        """The commands that write what `held` becomes, and the key number of each."""
        put, keys = self.put, self.update.keys
        commands, written = [], []
        merged = self.update.merge(numbers, _of_build(held, self.update.build))
        for k, old, new in zip(numbers, held, merged, strict=True):
            if new is not None:
                key, header = keys[k], b"" if old is None else old[: header_size(old)]
                commands.append(put % (len(key), key, len(header), header, len(new), new))
                written.append(k)
        return written, commands


@dataclass(frozen=True, slots=True)
class _Step:
    """A command for each of these key numbers: a read, or the writes that followed one."""

    update: _Prepared
    numbers: Sequence[int]
    is_read: bool


class _Run:
    """Updates under way. Chunks of keys are read ahead, so that the server works while this process merges."""

    def __init__(self, store: OnlineStore, wire: Wire, updates: Sequence[_Prepared]) -> None:
        self._store, self._wire, self._updates = store, wire, updates
        self._waiting = deque(_Step(update, chunk, True) for update in updates for chunk in update.chunks())
        self._sent: deque[_Step] = deque()

    def run(self) -> None:
        for _ in range(_READS_AHEAD):
            self._send_read()
        while self._sent:
            step = self._sent.popleft()
            if step.is_read:
                self._write(step)
            else:
                self._acknowledge(step)
            self._send_read()

    def _send_read(self) -> None:
        if self._waiting and sum(step.is_read for step in self._sent) < _READS_AHEAD:
            step = self._waiting.popleft()
            self._wire.send(step.update.reads(step.numbers))
            self._sent.append(step)

    def _write(self, step: _Step) -> None:
        written, commands = step.update.writes(step.numbers, self._wire.receive(len(step.numbers)))
        if written:
            self._wire.send(commands)
            self._sent.append(_Step(step.update, written, False))

    def _acknowledge(self, step: _Step) -> None:
        try:
            accepted = self._wire.receive(len(step.numbers))
        except redis.exceptions.NoScriptError:
            script, accepted = self._store.script(renew=True), [0] * len(step.numbers)
            for update in self._updates:
                update.renew(script)
        refused = [k for k, done in zip(step.numbers, accepted, strict=True) if not done]
        if refused:
            self._store.refused += len(refused)
            self._waiting.append(_Step(step.update, refused, True))


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
