"""Whole rows into the online store without reading it first, the newer winning: one script call for many keys.

For rows of a writer outside every stream (rank BATCH) the script does what reading, `row_update` and compare-and-set do
together, at one moment: it compares event time and order, raises the revision, keeps the positions. Such a row is
beaten by every row of its event time that came from a stream; of two of them the later run's wins.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import redis
import redis.exceptions

from headrace.errors import DataError, StoreLostError
from headrace.stores.cluster_copies import slot_of
from headrace.stores.cluster_wire import wire_of

__all__ = ["RowWriter"]

_NEWER_WINS = """
local call, sub, byte, read = redis.call, string.sub, string.byte, struct.unpack
local field, ttl, build, sizes, rows = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local written, at = 0, 1
local function next_row(i)
  local first = at
  at = at + read('<I4', sizes, 4 * i - 3)
  return sub(rows, first, at - 1)
end
if call('EXISTS', unpack(KEYS)) == 0 then
  for i, key in ipairs(KEYS) do
    call('HSET', key, field, next_row(i))
    if ttl ~= '0' then call('PEXPIRE', key, ttl) end
  end
  return #KEYS
end
local function after(low, high, other_low, other_high)
  return high > other_high or high == other_high and low > other_low
end
local function first_write(key, value)
  call('HSET', key, field, value)
  if ttl == '0' then
    call('PERSIST', key)
  elseif call('PEXPIRE', key, ttl, 'GT') == 0 and call('HLEN', key) == 1 then
    call('PEXPIRE', key, ttl)
  end
end
local function next_write(key, held, head, new, low, high)
  local revision, carry, newest_low, newest_high = read('<I4I4I4i4', held, 13)
  revision = revision + 1
  if revision == 4294967296 then revision, carry = 0, carry + 1 end
  if after(newest_low, newest_high, low, high) then low, high = newest_low, newest_high end
  local raised = struct.pack('<I4I4I4i4', revision, carry, low, high)
  call('HSET', key, field, sub(held, 1, 12) .. raised .. sub(held, 29, head) .. sub(new, 29))
  if ttl ~= '0' then call('PEXPIRE', key, ttl, 'GT') end
end
for i, key in ipairs(KEYS) do
  local new, held = next_row(i), call('HGET', key, field)
  if held and sub(held, 1, 2) ~= sub(new, 1, 2) then return -2 end
  if held and sub(held, 5, 12) ~= build then
    local low, high = read('<I4I4', held, 5)
    if after(low, high, read('<I4I4', build)) then return -1 end
    held = false
  end
  if not held then
    first_write(key, new)
    written = written + 1
  else
    local head = 28 + 16 * (byte(held, 3) + 256 * byte(held, 4))
    local low, high = read('<I4i4', new, 29)
    local held_low, held_high = read('<I4i4', held, head + 1)
    if after(low, high, held_low, held_high) then
      next_write(key, held, head, new, low, high)
      written = written + 1
    elseif low == held_low and high == held_high and byte(held, head + 23) == 0 then
      local run, run_high = read('<I4i4', new, 37)
      local held_run, held_run_high = read('<I4i4', held, head + 9)
      if after(run, run_high, held_run, held_run_high) then next_write(key, held, head, new, low, high) end
      if not after(held_run, held_run_high, run, run_high) then written = written + 1 end
    end
  end
end
return written
"""
_DIGEST = hashlib.sha1(_NEWER_WINS.encode()).hexdigest().encode()
_LOST, _FOREIGN = -1, -2
_GROUP = 256
"""Keys of one call: a lookup waits for about a millisecond behind it, and a server that syncs its append-only file
after every turn syncs once for all of them, for it reads rows that are one argument in one go."""


class RowWriter:
    """Writes rows into the layout `field`, begun at `build`; a key lives `ttl_ms` after a write, 0 for ever.

    `commands` may be called in another thread than `write`, which is not thread-safe.
    """

    def __init__(self, store: redis.Redis, field: str, build: int, ttl_ms: int) -> None:
        self._store, self._build = store, build
        self._wire = wire_of(store)
        self.by_slot = self._wire.keys_per_command == 1
        """Whether keys of one command must lie in one slot: then the more keys at once, the more share a command."""
        self._shared = _framed([field.encode(), b"%d" % ttl_ms, struct.pack("<Q", build)])
        self._load()

    def commands(self, keys: pa.Array, values: pa.Array) -> list[bytes]:
        """What writes `values` (of `encode_first_rows`) to `keys` (binary), each given once."""
        if self.by_slot:
            slots = np.array([slot_of(key) for key in keys.to_pylist()], np.int64)
            order = np.argsort(slots, kind="stable")
            keys, values, slots = keys.take(pa.array(order)), values.take(pa.array(order)), slots[order]
            starts = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(slots)]
        else:
            starts = [0, len(keys)]
        framed, rows = _Slices(_frames(keys)), _Slices(values)
        return [self._command(framed, rows, first, last) for first, last in _groups(starts)]

    def _command(self, keys: _Slices, rows: _Slices, first: int, last: int) -> bytes:
        n, data = last - first, rows.between(first, last)
        head = b"*%d\r\n%b" % (n + 8, _framed([b"EVALSHA", _DIGEST, b"%d" % n]))
        sizes = _framed([rows.sizes(first, last)])
        return b"".join([head, keys.between(first, last), self._shared, sizes, b"$%d\r\n" % len(data), data, b"\r\n"])

    def write(self, commands: Sequence[bytes]) -> int:
        """Sends the commands and returns how many of their rows are now those of the store: the others found a newer
        one.

        Raises StoreLostError for a layout that was begun anew meanwhile, redis.RedisError when the store fails; some of
        the rows are then written, and it is safe to write all again.
        """
        try:
            replies = self._send(commands)
        except redis.exceptions.NoScriptError:
            self._load()
            replies = self._send(commands)
        if _LOST in replies:
            raise StoreLostError(f"The store was lost and is built anew: this process writes build {self._build}.")
        if _FOREIGN in replies:
            raise DataError("A stored value is not of this Headrace's format; build the view anew: headrace rebuild.")
        return sum(replies)

    def close(self) -> None:
        """Closes the connection."""
        self._wire.close()

    def _send(self, commands: Sequence[bytes]) -> list[int]:
        try:
            self._wire.send(commands)
            return self._wire.receive(len(commands))
        except BaseException:
            self._wire.close()
            raise

    def _load(self) -> None:
        self._store.script_load(_NEWER_WINS)


def _groups(starts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Groups of keys within the stretches that begin at `starts`, whose last is the end."""
    for begin, end in itertools.pairwise(starts):
        for first in range(begin, end, _GROUP):
            yield first, min(first + _GROUP, end)


def _framed(parts: Sequence[bytes]) -> bytes:
    return b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


class _Slices:
    """The values of a binary array, which lie one after another in memory."""

    def __init__(self, values: pa.Array) -> None:
        n = len(values)
        if pa.types.is_fixed_size_binary(values.type):
            self._ends = (np.arange(n + 1, dtype=np.int64) + values.offset) * values.type.byte_width
        else:
            self._ends = np.frombuffer(values.buffers()[1], np.int32)[values.offset :][: n + 1].astype(np.int64)
        self._sizes = np.diff(self._ends).astype("<u4")
        self._data = memoryview(values.buffers()[-1] or b"")

    def between(self, first: int, last: int) -> memoryview:
        """The bytes of values first, ..., last - 1."""
        return self._data[self._ends[first] : self._ends[last]]

    def sizes(self, first: int, last: int) -> bytes:
        """Their lengths, u32 each."""
        return bytes(self._sizes[first:last].data)


def _frames(values: pa.Array) -> pa.Array:
    """Every value as a part of a command."""
    sizes = pc.binary_length(values).cast(pa.string()).cast(pa.binary())
    return pc.binary_join_element_wise(b"$", sizes, b"\r\n", values, b"\r\n", b"")
