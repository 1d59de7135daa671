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
from headrace.stores.codec.header import ROWS, Stacked, first_headers, header_size

__all__ = [
    "BATCH",
    "DIRECT",
    "ORDER",
    "STREAM",
    "RowColumns",
    "RowLayout",
    "decode_columns",
    "decode_order",
    "decode_rows",
    "encode_first_rows",
    "encode_rows",
    "row_layout",
    "stored_array",
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
    fixed = _encoded(layout, order, table)
    bodies = _with_texts(layout, _bytes_of(fixed), table).to_pylist()
    return [header + body for header, body in zip(headers, bodies, strict=True)]


def encode_first_rows(layout: RowLayout, order: NDArray[Any], table: pa.Table, build: int) -> pa.Array:
    """The values (binary, or of one size) of rows that a writer outside every stream writes where there is none."""
    headers = first_headers(ROWS, np.ascontiguousarray(order["time_us"]), build)
    fixed = np.concatenate([_bytes_of(headers), _bytes_of(_encoded(layout, order, table))], axis=1)
    return _with_texts(layout, fixed, table)


def _encoded(layout: RowLayout, order: NDArray[Any], table: pa.Table) -> NDArray[Any]:
    """The fixed parts of n rows."""
    n = len(order)
    fixed = np.zeros(n, layout.fixed)
    for name in ORDER.names or ():
        fixed[name] = order[name]
    nulls = np.zeros((n, len(layout.features)), np.bool_)
    for i, feature in enumerate(layout.features):
        column = _chunk(table.column(feature.name))
        if column.null_count:
            nulls[:, i] = np.asarray(column.is_null())
        if feature.dtype is DType.STRING:
            fixed[f"f{i}"] = np.asarray(pc.fill_null(pc.binary_length(column), 0))
        else:
            fixed[f"f{i}"] = _stored(column, feature.dtype)
    fixed["nulls"] = np.packbits(nulls, axis=1, bitorder="little")
    return fixed


def _bytes_of(records: NDArray[Any]) -> NDArray[np.uint8]:
    return records.view(np.uint8).reshape(len(records), records.dtype.itemsize)


def _with_texts(layout: RowLayout, fixed: NDArray[np.uint8], table: pa.Table) -> pa.Array:
    """The fixed parts (n x bytes), each with its strings behind it."""
    n, size = fixed.shape
    data = pa.py_buffer(np.ascontiguousarray(fixed))
    names = [layout.features[i].name for i in layout.strings()]
    if not names:
        return pa.Array.from_buffers(pa.binary(size), n, [None, data])
    ends = pa.py_buffer(np.arange(n + 1, dtype=np.int32) * size)
    texts = [pc.fill_null(_chunk(table.column(name)).cast(pa.binary()), b"") for name in names]
    return pc.binary_join_element_wise(pa.Array.from_buffers(pa.binary(), n, [None, ends, data]), *texts, b"")


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


def _fixed_of(layout: RowLayout, stacked: Stacked) -> NDArray[Any]:
    at = stacked.header_bytes
    fixed = np.ascontiguousarray(stacked.data[:, at : at + layout.fixed.itemsize])
    found: NDArray[Any] = fixed.view(layout.fixed)[:, 0]
    return found


def decode_order(layout: RowLayout, blobs: Sequence[bytes | None]) -> NDArray[Any]:
    """The order of every value's row, as an array of ORDER; None is before every row."""
    order = np.zeros(len(blobs), ORDER)
    fixed = _fixed(layout, blobs)
    for name in ORDER.names or ():
        order[name] = fixed[name]
    order["time_us"][[blob is None for blob in blobs]] = np.iinfo(np.int64).min
    return order


@dataclass(frozen=True, slots=True)
class RowColumns:
    """n rows: event times in microseconds (0 for no value); `values` per feature as stored (strings as a list), where
    `nulls`, bools of (feature, row), says nothing else; None says that nothing is null."""

    times_us: NDArray[np.int64]
    values: list[NDArray[Any] | list[str]]
    nulls: NDArray[np.bool_] | None


def decode_columns(layout: RowLayout, blobs: Sequence[bytes | None], stacked: Stacked | None = None) -> RowColumns:
    """The rows of `blobs`, `stacked` if they were; a None is null in every feature."""
    fixed = _fixed(layout, blobs) if stacked is None else _fixed_of(layout, stacked)
    text = _texts(layout, fixed, blobs)
    values = [text[i] if i in text else fixed[f"f{i}"] for i in range(len(layout.features))]
    absent = [blob is None for blob in blobs] if stacked is None and None in blobs else None
    if absent is None and not fixed["nulls"].any():
        return RowColumns(fixed["time_us"], values, None)
    nulls = np.unpackbits(fixed["nulls"], axis=1, count=len(layout.features), bitorder="little").T.astype(np.bool_)
    if absent is not None:
        nulls[:, absent] = True
    return RowColumns(fixed["time_us"], values, nulls)


def decode_rows(layout: RowLayout, blobs: Sequence[bytes | None]) -> tuple[NDArray[np.int64], list[pa.Array]]:
    """Event times in microseconds (0 for None) and one column per feature, null for None."""
    rows = decode_columns(layout, blobs)
    nulls = np.zeros((len(layout.features), len(blobs)), np.bool_) if rows.nulls is None else rows.nulls
    columns = [
        stored_array(values, missing, feature.dtype)
        for values, missing, feature in zip(rows.values, nulls, layout.features, strict=True)
    ]
    return np.ascontiguousarray(rows.times_us), columns


def stored_array(values: NDArray[Any] | list[str], missing: NDArray[np.bool_] | None, dtype: DType) -> pa.Array:
    """A feature's stored values as a column, null where `missing`."""
    if isinstance(values, list):
        gone = [False] * len(values) if missing is None else missing.tolist()
        return pa.array([None if null else text for null, text in zip(gone, values, strict=True)], pa.string())
    return _column(values, missing, dtype)


def _column(values: NDArray[Any], missing: NDArray[np.bool_] | None, dtype: DType) -> pa.Array:
    plain = np.ascontiguousarray(values)
    if dtype is DType.BOOL:
        plain = plain.astype(np.bool_)
    elif missing is None:
        return pa.Array.from_buffers(arrow_type(dtype), len(plain), [None, pa.py_buffer(plain)])
    column = pa.array(plain, mask=None if missing is None else np.ascontiguousarray(missing))
    return column.view(arrow_type(dtype)) if dtype is DType.TIMESTAMP else column


def _texts(layout: RowLayout, fixed: NDArray[Any], blobs: Sequence[bytes | None]) -> dict[int, list[str]]:
    numbers = layout.strings()
    if not numbers:
        return {}
    text: dict[int, list[str]] = {i: [""] * len(blobs) for i in numbers}
    lengths = [fixed[f"f{i}"].tolist() for i in numbers]
    for k, blob in enumerate(blobs):
        if blob is None:
            continue
        at = header_size(blob) + layout.fixed.itemsize
        for i, of in zip(numbers, lengths, strict=True):
            text[i][k] = blob[at : at + of[k]].decode()
            at += of[k]
    return text
