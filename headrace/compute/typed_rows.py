"""The rows of stream entries, typed: what every way of reading entries gives."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from headrace.stores.stream import Entry

__all__ = ["Payload", "TypedRows", "column_payload", "joined_payload", "joined_rows", "row_places"]

Ints = NDArray[np.int64]
Payload = Callable[[int], bytes]
"""The raw event of a row; it is asked for dead letters only."""


@dataclass(frozen=True, slots=True)
class TypedRows:
    """The n rows of some consecutive entries: the source's columns in their declared Arrow types, n values each, where
    each row stands in the log (int64), and by row number why rows were refused (a refused value is null)."""

    columns: dict[str, pa.Array]
    refused: dict[int, str]
    offset: Ints
    index: Ints
    payload: Payload


def row_places(entries: Sequence[Entry], counts: Sequence[int]) -> tuple[Ints, Ints]:
    """The offset of every row, and its index in its entry; `counts` are the rows of each entry."""
    rows = np.array(counts, np.int64)
    offset = np.repeat(np.array([entry.offset for entry in entries], np.int64), rows)
    return offset, np.arange(len(offset)) - np.repeat(np.cumsum(rows) - rows, rows)


def joined_rows(pieces: Sequence[TypedRows]) -> TypedRows:
    """At least one piece, one after another."""
    if len(pieces) == 1:
        return pieces[0]
    starts = _starts([len(piece.offset) for piece in pieces])
    return TypedRows(
        {name: pa.concat_arrays([piece.columns[name] for piece in pieces]) for name in pieces[0].columns},
        {row + start: why for piece, start in zip(pieces, starts, strict=True) for row, why in piece.refused.items()},
        np.concatenate([piece.offset for piece in pieces]),
        np.concatenate([piece.index for piece in pieces]),
        partial(_payload_of, starts, [piece.payload for piece in pieces]),
    )


def joined_payload(payloads: Sequence[Payload], counts: Sequence[int]) -> Payload:
    """One payload function of parts that have `counts` rows."""
    return partial(_payload_of, _starts(counts), payloads)


def column_payload(columns: Mapping[str, Sequence[Any] | pa.Array]) -> Payload:
    """Rows of columns, written as JSON objects."""
    return partial(_row_json, columns)


def _starts(counts: Sequence[int]) -> list[int]:
    starts: list[int] = np.cumsum([0, *counts])[:-1].tolist()
    return starts


def _payload_of(starts: Sequence[int], payloads: Sequence[Payload], row: int) -> bytes:
    part = bisect_right(starts, row) - 1
    return payloads[part](row - starts[part])


def _row_json(columns: Mapping[str, Sequence[Any] | pa.Array], row: int) -> bytes:
    values = {name: column[row] for name, column in columns.items()}
    plain = {name: value.as_py() if isinstance(value, pa.Scalar) else value for name, value in values.items()}
    return orjson.dumps(plain, default=str)
