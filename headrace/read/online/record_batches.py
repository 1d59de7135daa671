"""Arrow IPC record batches by a template: Arrow makes one message per schema, then only its numbers change.

A record batch message is a flatbuffer with the number of rows, of every column its length and number of nulls, and of
every buffer its place in the body that follows (Arrow's columnar format, "Serialization and Interprocess
Communication"). All of these are 64-bit integers at fixed places.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["Packed", "RecordBatchTemplate", "pack_array", "pack_moments", "pack_numbers"]

_ALIGNMENT = 8
_MOST_KEPT = 1_000
_HEADER, _BODY_LENGTH = 2, 3
_LENGTH, _NODES, _BUFFERS = 0, 1, 2
_PREFIX = 8
"""Bytes of the mark that a message begins with and of the size of its metadata."""
_LONG = struct.Struct("<q")
_PADS = [bytes(n) for n in range(_ALIGNMENT)]


class Packed(NamedTuple):
    """One column as a message holds it: how many of its rows are null, and its buffers, the first of which tells them
    apart, bit by bit, and is empty where none is."""

    nulls: int
    buffers: tuple[bytes, ...]


def pack_numbers(values: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> Packed:
    """A column of numbers of fixed width."""
    if missing is None:
        return Packed(0, (b"", values.tobytes()))
    return Packed(int(np.count_nonzero(missing)), (_bits(~missing), values.tobytes()))


def pack_moments(times_us: NDArray[np.int64]) -> Packed:
    """A column of timestamps in which 0 is null."""
    missing = times_us == 0
    return pack_numbers(times_us, missing if missing.any() else None)


def pack_array(array: pa.Array[Any]) -> Packed | None:
    """A column of Arrow's; None for one whose values are themselves columns."""
    kind = array.type
    if pa.types.is_nested(kind) or pa.types.is_dictionary(kind):
        return None
    n, nulls, at = len(array), array.null_count, array.offset
    valid = _bits(np.asarray(array.is_valid())) if nulls else b""
    if pa.types.is_boolean(kind):
        return Packed(nulls, (valid, _bits(np.asarray(array.fill_null(False)))))
    buffers = array.buffers()
    if pa.types.is_string(kind):
        ends = np.frombuffer(buffers[1], np.int32, n + 1, at * 4)
        text = b"" if buffers[2] is None else memoryview(buffers[2])[ends[0] : ends[-1]].tobytes()
        return Packed(nulls, (valid, (ends - ends[0]).tobytes(), text))
    width = kind.bit_width // 8
    return Packed(nulls, (valid, memoryview(buffers[1])[at * width : (at + n) * width].tobytes()))


def _bits(flags: NDArray[np.bool_]) -> bytes:
    return np.packbits(flags, bitorder="little").tobytes()


class RecordBatchTemplate:
    """Writes the messages of batches of `schema`, whose columns have no columns inside."""

    def __init__(self, schema: pa.Schema) -> None:
        sample = pa.RecordBatch.from_arrays([pa.nulls(1, field.type) for field in schema], schema=_nullable(schema))
        message = sample.serialize().to_pybytes()
        self._head = message[: _PREFIX + int.from_bytes(message[4:_PREFIX], "little")]
        table = _table(self._head, _PREFIX)
        batch = _table(self._head, _at(self._head, table, _HEADER))
        self._body_length_at = _at(self._head, table, _BODY_LENGTH)
        self._length_at = _at(self._head, batch, _LENGTH)
        self._nodes_at, self._nodes = _vector(self._head, _at(self._head, batch, _NODES))
        self._buffers_at, self._buffers = _vector(self._head, _at(self._head, batch, _BUFFERS))
        self._known: dict[tuple[int, ...], bytes] = {}

    def write(self, rows: int, columns: Sequence[Packed]) -> list[bytes]:
        """The parts of the message and of its body."""
        buffers = [buffer for column in columns for buffer in column.buffers]
        sizes = list(map(len, buffers))
        shape = (rows, *[column.nulls for column in columns], *sizes)
        head = self._known.get(shape)
        if head is None:
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            head = self._known[shape] = self._make_head(rows, [column.nulls for column in columns], sizes)
        parts = [head]
        for buffer, size in zip(buffers, sizes, strict=True):
            if size:
                parts.append(buffer)
                if size % _ALIGNMENT:
                    parts.append(_PADS[-size % _ALIGNMENT])
        return parts

    def _make_head(self, rows: int, nulls: Sequence[int], sizes: Sequence[int]) -> bytes:
        assert len(nulls) == self._nodes and len(sizes) == self._buffers
        head = bytearray(self._head)
        padded = (np.array(sizes, np.int64) + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
        nodes = np.column_stack((np.full(len(nulls), rows), np.array(nulls, np.int64)))
        places = np.column_stack((np.cumsum(padded) - padded, np.array(sizes, np.int64)))
        head[self._nodes_at : self._nodes_at + nodes.nbytes] = nodes.tobytes()
        head[self._buffers_at : self._buffers_at + places.nbytes] = places.tobytes()
        _LONG.pack_into(head, self._length_at, rows)
        _LONG.pack_into(head, self._body_length_at, int(padded.sum()))
        return bytes(head)


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])


def _int32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little", signed=True)


def _table(data: bytes, at: int) -> int:
    """Where the table stands that `at` refers to."""
    return at + _int32(data, at)


def _at(data: bytes, table: int, field: int) -> int:
    """Where a field of a table stands."""
    names = table - _int32(data, table)
    return table + int.from_bytes(data[names + 4 + 2 * field : names + 6 + 2 * field], "little")


def _vector(data: bytes, at: int) -> tuple[int, int]:
    """Where the items of a vector begin that `at` refers to, and how many there are."""
    start = _table(data, at)
    return start + 4, _int32(data, start)
