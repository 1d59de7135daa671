"""A 64-bit hash of a row's join keys: what puts a label and the events of its key into one bucket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.windows.sketches import hashes

__all__ = ["key_hashes"]

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

_WORD = 8


def key_hashes(columns: Sequence[pa.Array[Any]], rows: int) -> Hashes:
    """One hash for every row; equal keys have equal ones. A null counts as a value; no columns give all rows one."""
    mixed = np.zeros(rows, np.uint64)
    for column in columns:
        mixed = hashes((mixed ^ _column_hashes(column)).view(np.int64))
    return mixed


def _column_hashes(column: pa.Array[Any]) -> Hashes:
    if pa.types.is_string(column.type):
        return _text_hashes(column)
    return hashes(np.asarray(column.cast(pa.int64()).fill_null(0)))


def _text_hashes(column: pa.Array[Any]) -> Hashes:
    """Eight bytes of every text at a time; a null is an empty one."""
    column = column.fill_null("") if column.null_count else column
    _, ends, text = column.buffers()
    offsets = np.frombuffer(ends, np.int32, len(column) + 1, column.offset * 4).astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    padded = np.zeros(last - first + _WORD, np.uint8)
    if last > first:
        padded[: last - first] = np.frombuffer(text, np.uint8, last - first, first)
    words = np.ndarray((last - first + 1,), np.dtype("<u8"), padded, strides=(1,))  # the eight bytes at each place
    starts, sizes = offsets[:-1] - first, np.diff(offsets)
    mixed = hashes(sizes)
    live = np.flatnonzero(sizes > 0)
    for at in range(0, int(sizes.max(initial=0)), _WORD):
        live = live[sizes[live] > at]
        left = np.minimum(sizes[live] - at, _WORD).astype(np.uint64)
        kept = words[starts[live] + at] & (np.uint64(2**64 - 1) >> (np.uint64(64) - left * np.uint64(8)))
        mixed[live] = hashes((mixed[live] ^ kept).view(np.int64))
    return mixed
