"""The stream: one Redis stream per partition of a source; an entry is a batch of events as they were pushed.

An entry's fields: `format` (ndjson, columns, arrow), `payload`, `count` (its events), `catalog` (the version that its
producer knew; 0 for whichever), and what the append script adds: `total` and `bytes` (the running number of events and
of payload bytes of the partition, this entry's included: lag, gaps and the budget are exact) and `floor` (what `bytes`
of the oldest entry was when somebody last looked: it only rises, so the oldest is looked at again only when the budget
seems used up).
An offset packs a stream id into an int64: milliseconds x 2^20 + sequence.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import numpy as np
import redis
import redis.asyncio
from numpy.typing import NDArray

from headrace.errors import RequestError, StreamFullError
from headrace.stores.keys import stream_key

__all__ = [
    "NOTHING",
    "Append",
    "Entry",
    "EntryHead",
    "EventStream",
    "Format",
    "Position",
    "append_async",
    "append_flagged",
    "arrival_us",
    "flags_on",
    "heads_async",
    "offset_at",
    "queue_append",
    "take_flag",
]

Format = Literal["ndjson", "columns", "arrow"]

_Offset = TypeVar("_Offset", int, NDArray[np.int64])
_SEQUENCE_BITS = 20
NOTHING = 0
"""The offset before every entry."""
RETRY_FULL_S = 5

_FULL = "STREAMFULL"
_APPEND = """
local function entry(command, from, to)
  local found, held = redis.call(command, KEYS[1], from, to, 'COUNT', 1)[1], {}
  if found then
    for i = 1, #found[2], 2 do held[found[2][i]] = found[2][i + 1] end
  end
  return held
end
local payload, budget = ARGV[2], tonumber(ARGV[5])
local last = entry('XREVRANGE', '+', '-')
local total, bytes, floor = tonumber(last.total or 0), tonumber(last.bytes or 0), tonumber(last.floor or 0)
if budget > 0 and bytes - floor + #payload > budget then
  floor = tonumber(entry('XRANGE', '-', '+').bytes or 0)
  if bytes - floor + #payload > budget then return redis.error_reply('STREAMFULL') end
end
return redis.call('XADD', KEYS[1], '*', 'total', string.format('%.0f', total + ARGV[3]), 'count', ARGV[3],
  'bytes', string.format('%.0f', bytes + #payload), 'floor', string.format('%.0f', floor),
  'format', ARGV[1], 'payload', payload, 'catalog', ARGV[4])
"""
_APPEND_FLAGGED = f"""
local now = redis.call('TIME')
if now[1] * 1000000 + now[2] > tonumber(ARGV[7]) then return false end
local function append()
{_APPEND}
end
local id = append()
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[6], id)
return id
"""
_PEEK = """
local found = redis.call(ARGV[1], KEYS[1], ARGV[2], ARGV[3], 'COUNT', 1)[1]
if not found then return false end
local held = {}
for i = 1, #found[2], 2 do held[found[2][i]] = found[2][i + 1] end
return {found[1], held.count, held.total, held.bytes, held.catalog}
"""
_RAISE_END = """
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('XGROUP', 'CREATE', KEYS[1], 'made', '0', 'MKSTREAM')
  redis.call('XGROUP', 'DESTROY', KEYS[1], 'made')
end
local info, held = redis.call('XINFO', 'STREAM', KEYS[1]), nil
for i = 1, #info, 2 do if info[i] == 'last-generated-id' then held = info[i + 1] end end
local ms, sequence = string.match(held, '(%d+)-(%d+)')
local to_ms, to_sequence = string.match(ARGV[1], '(%d+)-(%d+)')
ms, to_ms = tonumber(ms), tonumber(to_ms)
if ms < to_ms or (ms == to_ms and tonumber(sequence) < tonumber(to_sequence)) then
  redis.call('XSETID', KEYS[1], ARGV[1])
end
return 1
"""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a source's log; positions compare in this order."""

    partition: int
    offset: int
    index: int

    def __str__(self) -> str:
        return f"{self.offset}-{self.index}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One batch of events as pushed; `total` counts the partition's events up to its last one.

    `arrived_us` is when the log took it, where the offset does not say so.
    """

    offset: int
    format: Format
    count: int
    total: int
    payload: bytes
    catalog: int = 0
    arrived_us: int | None = None

    @property
    def arrival_us(self) -> int:
        """When the log took it, by its own clock, in microseconds."""
        return arrival_us(self.offset) if self.arrived_us is None else self.arrived_us


@dataclass(frozen=True, slots=True)
class EntryHead:
    """An entry without its payload; `bytes` counts the partition's payload bytes up to it."""

    offset: int
    count: int
    total: int
    bytes: int
    catalog: int
    arrived_us: int | None = None

    @property
    def before(self) -> int:
        """The running number of events before this entry."""
        return self.total - self.count


@dataclass(frozen=True, slots=True)
class Append:
    """A batch to append as one entry: `count` >= 1 events, written by the catalog of version `catalog` (0: any)."""

    source: str
    format: Format
    payload: bytes
    count: int
    partition: int = 0
    catalog: int = 0

    def arguments(self, budget_bytes: int) -> list[Any]:
        """What the append script takes; `budget_bytes` 0 is no budget. Raises RequestError for a payload that no
        budget of this size ever takes."""
        if 0 < budget_bytes < len(self.payload):
            raise RequestError(
                f"A batch must fit the stream's budget of {budget_bytes:,} bytes, got {len(self.payload):,} bytes; "
                "push smaller batches or raise HEADRACE_STREAM_BUDGET."
            )
        return [self.format, self.payload, str(self.count), str(self.catalog), str(budget_bytes)]

    def position(self, stream_id: bytes) -> Position:
        """Where its last event stands once it was appended."""
        return Position(self.partition, pack_offset(stream_id), self.count - 1)

    def refused(self, error: redis.ResponseError, budget_bytes: int) -> Exception:
        """What an error of the append script means."""
        place = f"of {self.source!r}, partition {self.partition},"
        if str(error).startswith(_FULL):
            return StreamFullError(
                f"The stream {place} must stay within its budget of {budget_bytes:,} bytes, which is used up; push "
                f"again in {RETRY_FULL_S} s. See that worker and archiver keep up (headrace streams), or raise "
                "HEADRACE_STREAM_BUDGET.",
                RETRY_FULL_S,
            )
        if isinstance(error, redis.exceptions.OutOfMemoryError):
            return StreamFullError(
                f"The online store is out of memory, so the stream {place} takes nothing; push again in "
                f"{RETRY_FULL_S} s, and raise the store's maxmemory.",
                RETRY_FULL_S,
            )
        return error


def pack_offset(stream_id: bytes | str) -> int:
    """The int64 offset of a Redis stream id."""
    milliseconds, _, sequence = (stream_id.decode() if isinstance(stream_id, bytes) else stream_id).partition("-")
    return (int(milliseconds) << _SEQUENCE_BITS) + int(sequence)


def unpack_offset(offset: int) -> str:
    """The Redis stream id of an offset."""
    return f"{offset >> _SEQUENCE_BITS}-{offset & ((1 << _SEQUENCE_BITS) - 1)}"


def offset_at(arrival_us: int) -> int:
    """The first offset of an entry that the stream takes at `arrival_us`."""
    return (arrival_us // 1_000) << _SEQUENCE_BITS


def arrival_us(offset: _Offset) -> _Offset:
    """When the stream took the entry, by its own clock, in microseconds."""
    return (offset >> _SEQUENCE_BITS) * 1_000


def _entry(stream_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    return Entry(
        pack_offset(stream_id),
        cast(Format, fields[b"format"].decode()),
        int(fields[b"count"]),
        int(fields[b"total"]),
        fields[b"payload"],
        int(fields[b"catalog"]),
    )


def _unbroken(found: Sequence[Any]) -> list[Entry]:
    """The entries up to the first gap."""
    entries = [_entry(*entry) for entry in found]
    for i in range(1, len(entries)):
        if entries[i].total - entries[i].count != entries[i - 1].total:
            return entries[:i]
    return entries


class EventStream:
    """The streams of one project, for the processes that consume them and for `headrace push`.

    `budget_bytes` bounds the payloads that a partition holds beside its oldest entry; 0 is no bound.
    """

    def __init__(self, store: redis.Redis, project: str, budget_bytes: int = 0) -> None:
        self.store = store
        self.project = project
        self._budget_bytes = budget_bytes
        self._append = store.register_script(_APPEND)
        self._peek = store.register_script(_PEEK)

    def append(
        self, source: str, format: Format, payload: bytes, count: int, partition: int = 0, catalog: int = 0
    ) -> Position:
        """Appends an `Append` of these; returns the position of its last event.

        Raises StreamFullError when the budget or the store's memory is used up, RequestError for a payload larger than
        the budget.
        """
        batch = Append(source, format, payload, count, partition, catalog)
        key = stream_key(self.project, source, partition)
        try:
            return batch.position(cast(bytes, self._append(keys=[key], args=batch.arguments(self._budget_bytes))))
        except redis.ResponseError as error:
            raise batch.refused(error, self._budget_bytes) from None

    def read(
        self, after: Mapping[tuple[str, int], int], count: int, block_ms: int
    ) -> dict[tuple[str, int], list[Entry]]:
        """Up to `count` entries of each (source, partition) after its offset; waits `block_ms` for the first, not at
        all for 0."""
        names = {stream_key(self.project, *place).encode(): place for place in after}
        ids: Any = {key: unpack_offset(after[place]) for key, place in names.items()}
        found = cast(list[Any], self.store.xread(ids, count=count, block=block_ms or None))
        return {names[key]: _unbroken(entries) for key, entries in found}

    def between(self, source: str, partition: int, first: int, last: int, count: int = 1_000) -> list[Entry]:
        """Up to `count` entries with first <= offset <= last, oldest first, with no gap between them."""
        key = stream_key(self.project, source, partition)
        found = cast(list[Any], self.store.xrange(key, unpack_offset(first), unpack_offset(last), count=count))
        return _unbroken(found)

    def head(self, source: str, partition: int) -> EntryHead | None:
        """The newest entry."""
        return self._look(source, partition, _NEWEST)

    def oldest(self, source: str, partition: int) -> EntryHead | None:
        """The oldest entry that was not trimmed."""
        return self._look(source, partition, ("XRANGE", "-", "+"))

    def first_after(self, source: str, partition: int, offset: int) -> EntryHead | None:
        """The oldest entry after `offset`."""
        return self._look(source, partition, ("XRANGE", unpack_offset(offset + 1), "+"))

    def last_upto(self, source: str, partition: int, offset: int) -> EntryHead | None:
        """The newest entry at or before `offset`."""
        return self._look(source, partition, ("XREVRANGE", unpack_offset(offset), "-"))

    def heads(self, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], EntryHead | None]:
        """The newest entry of every (source, partition), in one round trip."""
        pipe = self.store.pipeline(transaction=False)
        for place in places:
            pipe.eval(_PEEK, 1, stream_key(self.project, *place), *_NEWEST)
        return dict(zip(places, map(_head, pipe.execute()), strict=True))

    def trim(self, source: str, partition: int, upto: int) -> int:
        """Takes out every entry at or before the offset `upto`; returns how many."""
        key = stream_key(self.project, source, partition)
        return cast(int, self.store.xtrim(key, minid=unpack_offset(upto + 1), approximate=False))

    def raise_end(self, source: str, partition: int, offset: int) -> None:
        """Every later entry stands after `offset`, whatever the store's clock says."""
        self.store.eval(_RAISE_END, 1, stream_key(self.project, source, partition), unpack_offset(offset))

    def _look(self, source: str, partition: int, where: tuple[str, str, str]) -> EntryHead | None:
        return _head(self._peek(keys=[stream_key(self.project, source, partition)], args=list(where)))


_NEWEST = ("XREVRANGE", "+", "-")


def _head(found: Any) -> EntryHead | None:
    return EntryHead(pack_offset(found[0]), *map(int, found[1:])) if found else None


def queue_append(pipe: redis.client.Pipeline, project: str, batch: Append) -> None:
    """An append as one command of a pipeline, outside the budget: a refusal would come after the others are done."""
    pipe.eval(_APPEND, 1, stream_key(project, batch.source, batch.partition), *batch.arguments(0))


def append_flagged(store: redis.Redis, project: str, batch: Append, flag: str, until_us: int) -> bool:
    """An append outside the budget, which leaves `flag` on the stream's key in the same moment: a consumer group of
    that name. False if it is after `until_us` by the clock of the key's node; then nothing is done."""
    args = [*batch.arguments(0), flag, str(until_us)]
    try:
        return bool(store.eval(_APPEND_FLAGGED, 1, stream_key(project, batch.source, batch.partition), *args))
    except redis.ResponseError as error:
        raise batch.refused(error, 0) from None


def flags_on(store: redis.Redis, project: str, source: str, partition: int) -> set[str]:
    """The flags on a stream's key."""
    key = stream_key(project, source, partition)
    groups = cast(list[dict[str, Any]], store.xinfo_groups(key)) if store.exists(key) else []
    return {group["name"].decode() for group in groups}


def take_flag(store: redis.Redis, project: str, source: str, partition: int, flag: str) -> None:
    """Takes a flag away."""
    store.xgroup_destroy(stream_key(project, source, partition), flag)


async def append_async(store: redis.asyncio.Redis, project: str, batch: Append, budget_bytes: int = 0) -> Position:
    """`EventStream.append` for the server."""
    key, arguments = stream_key(project, batch.source, batch.partition), batch.arguments(budget_bytes)
    try:
        return batch.position(await cast(Awaitable[bytes], store.eval(_APPEND, 1, key, *arguments)))
    except redis.ResponseError as error:
        raise batch.refused(error, budget_bytes) from None


async def heads_async(
    store: redis.asyncio.Redis, project: str, places: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], EntryHead | None]:
    """The newest entry of every (source, partition), in one round trip."""
    pipe = store.pipeline(transaction=False)
    for place in places:
        pipe.eval(_PEEK, 1, stream_key(project, *place), *_NEWEST)
    return dict(zip(places, map(_head, await pipe.execute()), strict=True))
