"""The stream: one Redis stream per partition of a source; an entry is a batch of events as they were pushed.

An entry's fields: `format` (ndjson, columns, arrow), `payload`, `count` (its events), `catalog` (the version that its
producer knew; 0 for whichever) and `total` (the running number of events of the partition, this entry's included,
which makes lag exact). The append script adds `total`.
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

from headrace.stores.keys import stream_key

__all__ = [
    "NOTHING",
    "Entry",
    "EventStream",
    "Format",
    "Position",
    "append_async",
    "arrival_us",
    "heads_async",
    "queue_append",
]

Format = Literal["ndjson", "columns", "arrow"]

_Offset = TypeVar("_Offset", int, NDArray[np.int64])
_SEQUENCE_BITS = 20
NOTHING = 0
"""The offset before every entry."""

_APPEND = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local total = 0
if last[1] then
  local fields = last[1][2]
  for i = 1, #fields, 2 do
    if fields[i] == 'total' then total = tonumber(fields[i + 1]) end
  end
end
total = string.format('%.0f', total + ARGV[3])
return redis.call('XADD', KEYS[1], '*', 'total', total, 'count', ARGV[3], 'format', ARGV[1], 'payload', ARGV[2],
  'catalog', ARGV[4])
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
    """One batch of events as pushed; `total` counts the partition's events up to its last one."""

    offset: int
    format: Format
    count: int
    total: int
    payload: bytes
    catalog: int = 0


def pack_offset(stream_id: bytes | str) -> int:
    """The int64 offset of a Redis stream id."""
    milliseconds, _, sequence = (stream_id.decode() if isinstance(stream_id, bytes) else stream_id).partition("-")
    return (int(milliseconds) << _SEQUENCE_BITS) + int(sequence)


def unpack_offset(offset: int) -> str:
    """The Redis stream id of an offset."""
    return f"{offset >> _SEQUENCE_BITS}-{offset & ((1 << _SEQUENCE_BITS) - 1)}"


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


class EventStream:
    """The streams of one project, for the processes that consume them and for `headrace push`."""

    def __init__(self, store: redis.Redis, project: str) -> None:
        self._store = store
        self._project = project
        self._append = store.register_script(_APPEND)

    def append(
        self, source: str, format: Format, payload: bytes, count: int, partition: int = 0, catalog: int = 0
    ) -> Position:
        """Appends `count` >= 1 events as one entry, written by the catalog of version `catalog` (0: any); returns the
        position of the last."""
        key = stream_key(self._project, source, partition)
        stream_id = cast(bytes, self._append(keys=[key], args=[format, payload, count, catalog]))
        return Position(partition, pack_offset(stream_id), count - 1)

    def read(
        self, after: Mapping[tuple[str, int], int], count: int, block_ms: int
    ) -> dict[tuple[str, int], list[Entry]]:
        """Up to `count` entries of each (source, partition) after its offset; waits `block_ms` for the first."""
        names = {stream_key(self._project, *place).encode(): place for place in after}
        ids: Any = {key: unpack_offset(after[place]) for key, place in names.items()}
        found = cast(list[Any], self._store.xread(ids, count=count, block=block_ms))
        return {names[key]: [_entry(*entry) for entry in entries] for key, entries in found}

    def between(self, source: str, partition: int, first: int, last: int, count: int = 1_000) -> list[Entry]:
        """Up to `count` entries with first <= offset <= last, oldest first."""
        key = stream_key(self._project, source, partition)
        found = cast(list[Any], self._store.xrange(key, unpack_offset(first), unpack_offset(last), count=count))
        return [_entry(*entry) for entry in found]

    def head(self, source: str, partition: int) -> Entry | None:
        """The newest entry."""
        return _head(self._store.xrevrange(stream_key(self._project, source, partition), count=1))


def _head(found: Any) -> Entry | None:
    return _entry(*found[0]) if found else None


def queue_append(
    pipe: redis.client.Pipeline,
    project: str,
    source: str,
    format: Format,
    payload: bytes,
    count: int,
    partition: int = 0,
    catalog: int = 0,
) -> None:
    """`EventStream.append` as one command of a pipeline."""
    pipe.eval(_APPEND, 1, stream_key(project, source, partition), format, cast(Any, payload), str(count), str(catalog))


async def append_async(
    store: redis.asyncio.Redis,
    project: str,
    source: str,
    format: Format,
    payload: bytes,
    count: int,
    partition: int = 0,
    catalog: int = 0,
) -> Position:
    """`EventStream.append` for the server."""
    key = stream_key(project, source, partition)
    reply = cast(Awaitable[bytes], store.eval(_APPEND, 1, key, format, payload, str(count), str(catalog)))
    return Position(partition, pack_offset(await reply), count - 1)


async def heads_async(
    store: redis.asyncio.Redis, project: str, places: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], Entry | None]:
    """The newest entry of every (source, partition), in one round trip."""
    pipe = store.pipeline(transaction=False)
    for source, partition in places:
        pipe.xrevrange(stream_key(project, source, partition), count=1)
    return dict(zip(places, map(_head, await pipe.execute()), strict=True))
