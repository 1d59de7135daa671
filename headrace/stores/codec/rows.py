"""The bytes of a plain or batch view's value: the newest row of one key.

After the header, little-endian and packed:
    i64 event time in microseconds, i64 offset, u32 index, i16 partition, u8 rank: the row's place in the order
    null bitmap, one bit per feature in declared order (1 is null), least significant first
    per feature its value in its declared type (bool u8, timestamp i64; a string's length in bytes, u32)
    the strings, in declared order
Of two rows of one key the later in (event time, rank, partition, offset, index) wins. Ranks: 0 a batch row,
1 an event of the source, 2 a row written directly.
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

from headrace.catalog.definitions import Column, FeatureView
from headrace.dtypes import DType, arrow_type
from headrace.stores.codec.header import header_size

__all__ = [
    "BATCH",
    "DIRECT",
    "ORDER",
    "STREAM",
    "RowLayout",
    "decode_order",
    "decode_rows",
    "encode_rows",
    "row_layout",
]

BATCH, STREAM, DIRECT = 0, 1, 2

ORDER = np.dtype([("time_us", "<i8"), ("offset", "<i8"), ("index", "<u4"), ("partition", "<i2"), ("rank", "u1")])
_STORED = {
    DType.INT32: "<i4",
    DType.INT64: "<i8",
    DType.FLOAT32: "<f4",
    DType.FLOAT64: "<f8",
    DType.BOOL: "u1",
    DType.TIMESTAMP: "<i8",
    DType.STRING: "<u4",
}


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The features of a row and the NumPy type of its fixed part."""

    features: tuple[Column, ...]
    fixed: np.dtype[Any]

    def strings(self) -> list[int]:
        """Which features are strings, by number."""
        return [i for i, feature in enumerate(self.features) if feature.dtype is DType.STRING]


@lru_cache(maxsize=1_024)
def _layout(features: tuple[Column, ...]) -> RowLayout:
    order = [(name, ORDER.fields[name][0]) for name in ORDER.names]  # type: ignore[index, union-attr]
    values = [(f"f{i}", _STORED[feature.dtype]) for i, feature in enumerate(features)]
    return RowLayout(features, np.dtype([*order, ("nulls", "u1", ((len(features) + 7) // 8,)), *values]))


def row_layout(view: FeatureView) -> RowLayout:
    """The layout of `view`."""
    return _layout(view.features)


def encode_rows(layout: RowLayout, headers: Sequence[bytes], order: NDArray[Any], table: pa.Table) -> list[bytes]:
    """One value per header; `order` is an array of ORDER, `table` holds the features, all of n rows."""
    n = len(headers)
    fixed = np.zeros(n, layout.fixed)
    for name in ORDER.names or ():
        fixed[name] = order[name]
    columns = [_chunk(table.column(feature.name)) for feature in layout.features]
    nulls = np.array([np.asarray(column.is_null()) for column in columns], np.bool_).reshape(len(columns), n)
    fixed["nulls"] = np.packbits(nulls.T, axis=1, bitorder="little")
    text = []
    for i, (feature, column) in enumerate(zip(layout.features, columns, strict=True)):
        if feature.dtype is DType.STRING:
            text.append([(value or "").encode() for value in column.to_pylist()])
            fixed[f"f{i}"] = np.array([len(value) for value in text[-1]], np.uint32)
        else:
            fixed[f"f{i}"] = _stored(column, feature.dtype)
    data, size = fixed.tobytes(), layout.fixed.itemsize
    tails = [b"".join(parts) for parts in zip(*text, strict=True)] if text else [b""] * n
    return [headers[k] + data[k * size : (k + 1) * size] + tails[k] for k in range(n)]


def _chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _stored(column: pa.Array, dtype: DType) -> NDArray[Any]:
    if dtype is DType.TIMESTAMP:
        column = column.cast(pa.int64())
    if dtype is DType.BOOL:
        column = column.cast(pa.uint8())
    return np.asarray(pc.fill_null(column, pa.scalar(0, column.type)))


def _fixed(layout: RowLayout, blobs: Sequence[bytes | None]) -> NDArray[Any]:
    size = layout.fixed.itemsize
    parts = [bytes(size) if b is None else b[(at := header_size(b)) : at + size] for b in blobs]
    return np.frombuffer(b"".join(parts), layout.fixed)


def decode_order(layout: RowLayout, blobs: Sequence[bytes | None]) -> NDArray[Any]:
    """The order of every value's row, as an array of ORDER; None is before every row."""
    order = np.zeros(len(blobs), ORDER)
    fixed = _fixed(layout, blobs)
    for name in ORDER.names or ():
        order[name] = fixed[name]
    order["time_us"][[blob is None for blob in blobs]] = np.iinfo(np.int64).min
    return order


def decode_rows(layout: RowLayout, blobs: Sequence[bytes | None]) -> tuple[NDArray[np.int64], list[pa.Array]]:
    """Event times in microseconds (0 for None) and one column per feature, null for None."""
    fixed = _fixed(layout, blobs)
    nulls = np.unpackbits(fixed["nulls"], axis=1, bitorder="little").astype(np.bool_)
    nulls[[blob is None for blob in blobs]] = True
    text = _texts(layout, fixed, blobs)
    columns = [
        pa.array([None if gone else t for gone, t in zip(nulls[:, i], text[i], strict=True)], pa.string())
        if i in text
        else _column(fixed[f"f{i}"], nulls[:, i], feature.dtype)
        for i, feature in enumerate(layout.features)
    ]
    return np.ascontiguousarray(fixed["time_us"]), columns


def _column(values: NDArray[Any], absent: NDArray[np.bool_], dtype: DType) -> pa.Array:
    column = pa.array(np.ascontiguousarray(values), mask=np.ascontiguousarray(absent))
    if dtype is DType.TIMESTAMP:
        column = column.cast(pa.timestamp("us"))
    return column.cast(arrow_type(dtype))


def _texts(layout: RowLayout, fixed: NDArray[Any], blobs: Sequence[bytes | None]) -> dict[int, list[str]]:
    numbers = layout.strings()
    text: dict[int, list[str]] = {i: [""] * len(blobs) for i in numbers}
    lengths = [fixed[f"f{i}"].tolist() for i in numbers]
    for k, blob in enumerate(blobs):
        if blob is None or not numbers:
            continue
        at = header_size(blob) + layout.fixed.itemsize
        for i, of in zip(numbers, lengths, strict=True):
            text[i][k] = blob[at : at + of[k]].decode()
            at += of[k]
    return text
