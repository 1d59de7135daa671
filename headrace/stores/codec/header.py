"""The head of every value in the online store: who wrote it how often, up to where, and its newest event.

Little-endian:
    u8   format (1)
    u8   kind (1 rows, 2 tiles)
    u16  number of positions p
    u64  build: when the layout that this value belongs to was begun, in microseconds by the store's clock
    u64  revision, raised by every writer
    i64  newest event time in microseconds
    p x  u16 stream (0 the view's source, 1 its direct writes), i16 partition (-1 imports), i64 offset, u32 index
The positions say up to where each partition that touched the value is merged. Compare-and-set compares these
bytes whole, so two values of one header are the same value. A value of an older build was left by a store that lost
its markers: it counts as none.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError

__all__ = [
    "BUILD",
    "FORMAT",
    "HEAD_BYTES",
    "NEWEST",
    "POSITION_BYTES",
    "ROWS",
    "TILES",
    "Header",
    "Headers",
    "Place",
    "Stacked",
    "build_of",
    "first_headers",
    "header_size",
    "pack_header",
    "stack",
    "unpack_header",
]

FORMAT = 1
ROWS = 1
TILES = 2
OLDEST_US = -(2**63)

Place = tuple[int, int]
"""(stream, partition)."""

_HEAD = struct.Struct("<BBHQQq")
_BRIEF = struct.Struct("<HHQ8xq")
_POSITION = struct.Struct("<HhqI")
HEAD_BYTES, POSITION_BYTES = _HEAD.size, _POSITION.size
BUILD = slice(4, 12)
"""Where in a value its build stands."""
NEWEST = slice(20, 28)
"""Where in a value its newest event time stands."""

_POSITIONS = np.dtype([("stream", "<u2"), ("partition", "<i2"), ("offset", "<i8"), ("index", "<u4")])
_FIELDS = [("format", "u1"), ("kind", "u1"), ("n", "<u2"), ("build", "<u8"), ("revision", "<u8"), ("newest_us", "<i8")]


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
    return HEAD_BYTES + POSITION_BYTES * (blob[2] | blob[3] << 8)


brief_head = _BRIEF.unpack_from
"""(form, number of positions, build, newest event time) of a value; see `form_of`."""


def form_of(kind: int) -> int:
    """What `brief_head` gives for values of `kind` in the present format."""
    return FORMAT | kind << 8


def build_of(blob: bytes) -> int:
    """The build that `blob` belongs to."""
    return int.from_bytes(blob[BUILD], "little")


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


@dataclass(frozen=True, slots=True)
class Stacked:
    """n values of one size whose headers tell the same kind, build and number of positions: the bytes as uint8 (n,
    size), how many of them the header takes, and the newest event times."""

    data: NDArray[np.uint8]
    header_bytes: int
    newest_us: NDArray[np.int64]


def stack(blobs: Sequence[bytes | None], kind: int, build: int | None) -> Stacked | None:
    """The values as arrays, where all are there and alike, of `kind` and of `build`; else None."""
    if build is None or None in blobs or len(set(map(len, cast(Sequence[bytes], blobs)))) > 1:
        return None
    data = np.frombuffer(b"".join(cast(Sequence[bytes], blobs)), np.uint8).reshape(len(blobs), -1)
    first, form = data[0, : BUILD.stop], form_of(kind).to_bytes(2, "little") + build.to_bytes(8, "little")
    if first[:2].tobytes() + first[BUILD].tobytes() != form or (data[:, : BUILD.stop] != first).any():
        return None
    newest_us = np.ascontiguousarray(data[:, NEWEST]).view("<i8")[:, 0]
    return Stacked(data, header_size(cast(bytes, blobs[0])), newest_us)


@lru_cache(maxsize=64)
def _dtype(n: int) -> np.dtype[Any]:
    """A header of `n` positions."""
    return np.dtype([*_FIELDS, ("positions", _POSITIONS, (n,))])


def first_headers(kind: int, newest_us: NDArray[np.int64], build: int) -> NDArray[Any]:
    """The headers (n packed records of HEAD_BYTES) of values that a writer outside every stream writes first."""
    headers = np.zeros(len(newest_us), _FIELDS)
    headers["format"], headers["kind"], headers["build"], headers["revision"] = FORMAT, kind, build, 1
    headers["newest_us"] = newest_us
    return headers


class Headers:
    """The headers of n values of one build as arrays, as the writer of `place` reads and raises them; None is no
    value yet. `newest_us`, `offset` and `index` are int64 of n: the newest event, and the position of `place` up to
    which each value is merged.

    Raises DataError when a value is of another format or kind.
    """

    def __init__(self, blobs: Sequence[bytes | None], kind: int, place: Place, build: int = 0) -> None:
        n = len(blobs)
        self._blobs, self._kind, self._place, self._build = blobs, kind, place, build
        self.newest_us, self.offset = np.full(n, OLDEST_US, np.int64), np.zeros(n, np.int64)
        self.index = np.full(n, -1, np.int64)
        self._absent = np.array([k for k, blob in enumerate(blobs) if blob is None], np.int64)
        self._parts = self._read(np.array([k for k, blob in enumerate(blobs) if blob is not None], np.int64))

    def _read(self, left: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[Any], NDArray[np.int64]]]:
        """By number of positions: which values, their headers, and which of their positions is the place's (-1)."""
        parts = []
        while len(left):
            data = self._of_size_of_first(left)
            same = data["n"] == data["n"][0]
            part, data, left = left[same], data[same], left[~same]
            self._check(part, data)
            found = self._find_place(data)
            known = np.flatnonzero(found >= 0)
            at = data["positions"][known, found[known]]
            self.newest_us[part] = data["newest_us"]
            self.offset[part[known]], self.index[part[known]] = at["offset"], at["index"]
            parts.append((part, data, found))
        return parts

    def _of_size_of_first(self, left: NDArray[np.int64]) -> NDArray[Any]:
        numbers = left.tolist()
        held: list[Any] = [self._blobs[k] for k in numbers]
        size = header_size(held[0])
        joined = b"".join([blob[:size] for blob in held])
        if len(joined) != size * len(held):
            joined = b"".join([blob[:size].ljust(size) for blob in held])
        return np.frombuffer(joined, _dtype((size - HEAD_BYTES) // POSITION_BYTES))

    def _check(self, part: NDArray[np.int64], data: NDArray[Any]) -> None:
        wrong = np.flatnonzero((data["format"] != FORMAT) | (data["kind"] != self._kind))
        if len(wrong):
            unpack_header(self._blobs[part[wrong[0]]] or b"", self._kind)

    def _find_place(self, data: NDArray[Any]) -> NDArray[np.int64]:
        if not data["positions"].shape[1]:
            return np.full(len(data), -1, np.int64)
        stream, partition = self._place
        match = (data["positions"]["stream"] == stream) & (data["positions"]["partition"] == partition)
        found: NDArray[np.int64] = np.where(match.any(axis=1), match.argmax(axis=1), -1)
        return found

    def raised(self, newest_us: NDArray[np.int64], offset: NDArray[np.int64], index: NDArray[np.int64]) -> list[bytes]:
        """The header of each next value (arrays of n): merged up to a position of the place after the present one."""
        out = [b""] * len(self._blobs)
        fresh = np.zeros(len(self._absent), _dtype(1))
        fresh["format"], fresh["kind"], fresh["n"], fresh["build"] = FORMAT, self._kind, 1, self._build
        fresh["positions"]["stream"], fresh["positions"]["partition"] = self._place
        for part, data, found in [(self._absent, fresh, np.zeros(len(fresh), np.int64)), *self._parts]:
            data, rows = data.copy(), np.arange(len(data))
            data["revision"] += 1
            data["newest_us"] = newest_us[part]
            if data["positions"].shape[1]:
                data["positions"]["offset"][rows, found] = offset[part]
                data["positions"]["index"][rows, found] = index[part]
            raw, size = data.tobytes(), data.dtype.itemsize
            for i, (k, at) in enumerate(zip(part.tolist(), found.tolist(), strict=True)):
                if at >= 0:
                    out[k] = raw[i * size : (i + 1) * size]
                else:
                    held = unpack_header(self._blobs[k] or b"", self._kind)
                    out[k] = pack_header(held.raised(int(newest_us[k]), self._place, (int(offset[k]), int(index[k]))))
        return out
