"""The head of every value in the online store: who wrote it how often, up to where, and its newest event.

Little-endian:
    u8   format (1)
    u8   kind (1 rows, 2 tiles)
    u16  number of positions p
    u64  build: when the layout that this value belongs to was begun, in microseconds by the store's clock
    u64  revision, raised by every writer
    i64  newest event time in microseconds
    p x  u16 stream (0 the view's source, 1 its direct writes), u16 partition, i64 offset, u32 index
The positions say up to where each partition that touched the value is merged. Compare-and-set compares these
bytes whole, so two values of one header are the same value. A value of an older build was left by a store that lost
its markers: it counts as none.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.errors import DataError

__all__ = ["FORMAT", "ROWS", "TILES", "Header", "Place", "build_of", "header_size", "pack_header", "unpack_header"]

FORMAT = 1
ROWS = 1
TILES = 2
OLDEST_US = -(2**63)

Place = tuple[int, int]
"""(stream, partition)."""

_HEAD = struct.Struct("<BBHQQq")
_POSITION = struct.Struct("<HHqI")


@dataclass(frozen=True, slots=True)
class Header:
    """`positions` holds (offset, index) of the last event merged, by place."""

    kind: int
    revision: int = 0
    newest_us: int = OLDEST_US
    positions: Mapping[Place, tuple[int, int]] = field(default_factory=dict)
    build: int = 0

    def after(self, place: Place) -> tuple[int, int]:
        """The (offset, index) that an event of `place` must come after to be merged."""
        return self.positions.get(place, (0, -1))

    def raised(self, newest_us: int, place: Place | None, position: tuple[int, int]) -> Header:
        """The header of the next value: `place` None is a writer outside every stream."""
        positions = dict(self.positions)
        if place is not None:
            positions[place] = max(position, self.after(place))
        return Header(self.kind, self.revision + 1, max(self.newest_us, newest_us), positions, self.build)


def pack_header(header: Header) -> bytes:
    places = sorted(header.positions.items())
    head = _HEAD.pack(FORMAT, header.kind, len(places), header.build, header.revision, header.newest_us)
    return head + b"".join(_POSITION.pack(*place, *position) for place, position in places)


def header_size(blob: bytes) -> int:
    """How many bytes of `blob` the header takes."""
    return _HEAD.size + _POSITION.size * int.from_bytes(blob[2:4], "little")


def build_of(blob: bytes) -> int:
    """The build that `blob` belongs to."""
    return int.from_bytes(blob[4:12], "little")


def unpack_header(blob: bytes, kind: int) -> Header:
    """The header of `blob`. Raises DataError when it is of another format or kind."""
    form, found, n, build, revision, newest_us = _HEAD.unpack_from(blob)
    if form != FORMAT or found != kind:
        raise DataError(
            f"A stored value has format {form}, kind {found}; this Headrace reads format {FORMAT}, kind {kind} here."
        )
    positions = {}
    for stream, partition, offset, index in _POSITION.iter_unpack(blob[_HEAD.size : _HEAD.size + n * _POSITION.size]):
        positions[stream, partition] = (offset, index)
    return Header(kind, revision, newest_us, positions, build)
