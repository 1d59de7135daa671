"""The bytes of a windowed view's value.

After the header, little-endian:
    u32  for every tile group: its number of rows
    per `last` column, 32 bytes: u32 present, u32 index, i64 offset, i64 time in microseconds, i64 value
         (the partition stands in the upper 16 bits of `present`; a string's value is its length in bytes)
    per tile group, per row: i64 tile, then one 8-byte state per field in the group's order
    the strings of the `last` columns, in order
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.catalog.definitions import Aggregation, FeatureView
from headrace.dtypes import DType, arrow_type
from headrace.stores.codec.header import header_size
from headrace.windows.suffix_tiles import TileGroup, TileRows, empty_rows, tile_groups

__all__ = [
    "LAST",
    "TileLayout",
    "Tiles",
    "decode_tiles",
    "encode_tiles",
    "last_values",
    "string_columns",
    "tile_layout",
    "to_bits",
]

Ints = NDArray[np.int64]

LAST = np.dtype([("present", "<u4"), ("index", "<u4"), ("offset", "<i8"), ("time_us", "<i8"), ("value", "<i8")])
PARTITION_SHIFT = 16


@dataclass(frozen=True, slots=True)
class TileLayout:
    """What a windowed view's value holds: its tile groups and the columns whose last value it keeps."""

    groups: tuple[TileGroup, ...]
    last: tuple[tuple[str, DType], ...]


@lru_cache(maxsize=1_024)
def _layout(aggregations: tuple[Aggregation, ...]) -> TileLayout:
    last = {agg.column: agg.input_dtype for agg in aggregations if agg.function == "last"}
    return TileLayout(tile_groups(aggregations), tuple(sorted(last.items())))


def tile_layout(view: FeatureView) -> TileLayout:
    """The layout of `view`."""
    return _layout(view.aggregations)


@dataclass(slots=True)
class Tiles:
    """The values of n keys: tile rows by group (keys are 0 .. n-1), `last` as (n, columns) of LAST.

    `text` holds the strings of `last`'s string columns, n of each, by column number.
    """

    rows: list[TileRows]
    last: NDArray[Any]
    text: dict[int, list[bytes]]


def string_columns(layout: TileLayout) -> list[int]:
    return [i for i, (_, dtype) in enumerate(layout.last) if dtype is DType.STRING]


def decode_tiles(layout: TileLayout, blobs: Sequence[bytes | None]) -> Tiles:
    """The values of `blobs` as arrays; None is the value of no event."""
    n, n_groups, last_bytes = len(blobs), len(layout.groups), LAST.itemsize * len(layout.last)
    counts = np.zeros((n, n_groups), np.int64)
    parts: list[list[bytes]] = [[] for _ in layout.groups]
    lasts, text = [], {i: [b""] * n for i in string_columns(layout)}
    for k, blob in enumerate(blobs):
        if blob is None:
            lasts.append(bytes(last_bytes))
            continue
        at = header_size(blob)
        counts[k] = np.frombuffer(blob, "<u4", n_groups, at)
        at += 4 * n_groups
        lasts.append(blob[at : at + last_bytes])
        at += last_bytes
        for g, group in enumerate(layout.groups):
            size = int(counts[k, g]) * _row_bytes(group)
            parts[g].append(blob[at : at + size])
            at += size
        _cut_text(text, lasts[-1], blob, at, k)
    last = np.frombuffer(b"".join(lasts), LAST).reshape(n, len(layout.last))
    rows = [_rows(group, b"".join(parts[g]), counts[:, g]) for g, group in enumerate(layout.groups)]
    return Tiles(rows, last, text)


def _row_bytes(group: TileGroup) -> int:
    return 8 * (1 + len(group.fields))


def _cut_text(text: dict[int, list[bytes]], last: bytes, blob: bytes, at: int, k: int) -> None:
    if text:
        lengths = np.frombuffer(last, LAST)["value"]
        for i, values in text.items():
            values[k] = blob[at : at + int(lengths[i])]
            at += int(lengths[i])


def _rows(group: TileGroup, data: bytes, counts: Ints) -> TileRows:
    if not data:
        return empty_rows(group)
    matrix = np.frombuffer(data, "<i8").reshape(-1, 1 + len(group.fields)).T.copy()
    state = {f: matrix[1 + i].view(np.float64) if f.is_float else matrix[1 + i] for i, f in enumerate(group.fields)}
    return TileRows(np.repeat(np.arange(len(counts)), counts), matrix[0], state)


def encode_tiles(layout: TileLayout, headers: Sequence[bytes], tiles: Tiles) -> list[bytes]:
    """One value per header."""
    n = len(headers)
    bounds = [np.searchsorted(rows.keys, np.arange(n + 1)) for rows in tiles.rows]
    counts = np.array([np.diff(bound) for bound in bounds], "<u4").reshape(len(bounds), n).T.tobytes()
    data = [_matrix(group, rows) for group, rows in zip(layout.groups, tiles.rows, strict=True)]
    sizes = [_row_bytes(group) for group in layout.groups]
    cuts = [(bound * size).tolist() for bound, size in zip(bounds, sizes, strict=True)]
    last, last_bytes, count_bytes = tiles.last.tobytes(), LAST.itemsize * len(layout.last), 4 * len(layout.groups)
    return [
        b"".join(
            [
                header,
                counts[k * count_bytes : (k + 1) * count_bytes],
                last[k * last_bytes : (k + 1) * last_bytes],
                *[part[cut[k] : cut[k + 1]] for part, cut in zip(data, cuts, strict=True)],
                *[values[k] for values in tiles.text.values()],
            ]
        )
        for k, header in enumerate(headers)
    ]


def _matrix(group: TileGroup, rows: TileRows) -> bytes:
    columns = [rows.tiles, *[rows.state[field].view(np.int64) for field in group.fields]]
    return np.stack(columns, axis=1).astype("<i8", copy=False).tobytes()


def last_values(layout: TileLayout, tiles: Tiles, column: str, tails_us: Ints) -> pa.Array:
    """The last value of `column` for every key, null where there is none at or after its tail."""
    number = [name for name, _ in layout.last].index(column)
    dtype = layout.last[number][1]
    cell = tiles.last[:, number]
    absent = (cell["present"] & 1 == 0) | (cell["time_us"] < tails_us)
    if dtype is DType.STRING:
        held = [None if gone else text.decode() for gone, text in zip(absent, tiles.text[number], strict=True)]
        return pa.array(held, pa.string())
    return from_bits(cell["value"], absent, dtype)


def from_bits(bits: NDArray[Any], absent: NDArray[np.bool_], dtype: DType) -> pa.Array:
    """8-byte values as a column: floats by their bits, all else as integers."""
    plain = np.ascontiguousarray(bits).astype(np.int64, copy=False)
    if dtype.is_float:
        return pa.array(plain.view(np.float64), mask=absent).cast(arrow_type(dtype), safe=False)
    column = pa.array(plain, mask=absent)
    if dtype is DType.TIMESTAMP:
        return column.cast(pa.timestamp("us")).cast(arrow_type(dtype))
    return column.cast(arrow_type(dtype), safe=False)


def to_bits(column: pa.Array, dtype: DType) -> Ints:
    """The inverse of `from_bits`; nulls as 0. Strings give their length in bytes."""
    if dtype is DType.STRING:
        bits: Ints = np.asarray(pc.binary_length(column).fill_null(0)).astype(np.int64)
        return bits
    if dtype.is_float:
        return np.asarray(column.cast(pa.float64()).fill_null(0.0)).view(np.int64)
    plain = column.cast(pa.timestamp("us", "UTC")) if dtype is DType.TIMESTAMP else column
    return np.asarray(plain.cast(pa.int64()).fill_null(0)).astype(np.int64, copy=False)
