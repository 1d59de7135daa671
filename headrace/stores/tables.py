"""Users' tables: Parquet, CSV and Delta files in, typed columns out, results written so that no half file is seen."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.types as pat
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from headrace.dtypes import DType, arrow_type
from headrace.errors import DataError
from headrace.moments import EARLIEST_US, LATEST_US

__all__ = ["as_declared", "file_format_of", "read_file"]

_SUFFIXES = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv"}


def file_format_of(path: Path) -> str:
    """`parquet` or `csv` by the suffix. Raises DataError for another."""
    try:
        return _SUFFIXES[path.suffix.lower()]
    except KeyError:
        raise DataError(f"A table is a .parquet or .csv file, got {str(path)!r}; name it so.") from None


def read_file(
    path: Path, file_format: str, columns: Collection[str] | None = None, text: Collection[str] = ()
) -> pa.Table:
    """The file (or folder of files) at `path`: `columns` of it, or all.

    `text` names columns that a CSV must not take for numbers or times. An empty CSV cell is null, `""` an empty
    string. Raises DataError for what is not there or cannot be read, and for missing columns.
    """
    if not path.exists():
        raise DataError(f"There is no {file_format} file at {path}; create it or correct the path.")
    try:
        found = _READERS[file_format](path, text)
        present = list(found.schema.names)
        missing = [name for name in columns or () if name not in present]
        if missing:
            raise DataError(f"{path} has no column {missing[0]!r}; it has: {', '.join(present)}.")
        wanted = list(columns) if columns is not None else present
        table: pa.Table = found.to_table(columns=wanted) if isinstance(found, pads.Dataset) else found.select(wanted)
    except (pa.ArrowException, DeltaError, OSError) as error:
        raise DataError(f"{path} cannot be read as {file_format}: {error}.") from None
    return table


def _read_parquet(path: Path, _: Collection[str]) -> pads.Dataset:
    return pads.dataset(str(path), format="parquet", partitioning="hive")


def _read_delta(path: Path, _: Collection[str]) -> pads.Dataset:
    files = [unquote(uri) for uri in DeltaTable(str(path)).file_uris()]
    return pads.dataset(files, format="parquet", partitioning="hive", partition_base_dir=str(path))


def _read_csv(path: Path, text: Collection[str]) -> pa.Table:
    convert = pacsv.ConvertOptions(
        column_types={name: pa.string() for name in text},
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    return pacsv.read_csv(str(path), convert_options=convert)


_READERS: dict[str, Any] = {"parquet": _read_parquet, "delta": _read_delta, "csv": _read_csv}


def as_declared(values: pa.ChunkedArray[Any] | pa.Array[Any], dtype: DType, where: str) -> pa.Array:
    """`values` as one array of a declared type: NaN is null, naive timestamps are UTC, digits beyond microseconds
    are cut, whole floats pass as integers. Infinities stay; times outside the years 1 to 9999 stay outside.

    Raises DataError, naming `where`, for values of another kind or out of range.
    """
    array: Any = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pat.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if not (pat.is_null(array.type) or _KINDS[dtype](array.type)):
        raise DataError(f"{where} must be {dtype}, got {array.type}; convert the column.")
    try:
        return _cast(array, dtype)
    except pa.ArrowInvalid as error:
        raise DataError(f"{where} must be {dtype}: {error}; correct the value.") from None


def _cast(array: Any, dtype: DType) -> Any:
    if pat.is_null(array.type):
        return array.cast(arrow_type(dtype))
    if pat.is_floating(array.type):
        array = pa.array(np.asarray(array.to_numpy(zero_copy_only=False)), array.type, from_pandas=True)
    if dtype is DType.TIMESTAMP:
        return _moments(array)
    return array.cast(arrow_type(dtype), safe=not dtype.is_float)


def _moments(array: Any) -> Any:
    """Timestamps, dates or RFC 3339 texts as timestamps in UTC."""
    moment = arrow_type(DType.TIMESTAMP)
    if not _is_text(array.type):
        return _scaled(array).cast(moment)
    text = pc.replace_substring_regex(array.cast(pa.string()), r"(\.\d{6})\d+", r"\1")
    zoned = pc.match_substring_regex(text, r":.*(Z|[+-]\d\d(:?\d\d)?)$")
    none = pa.scalar(None, pa.string())
    naive = pc.if_else(zoned, none, text).cast(pa.timestamp("us")).cast(moment)
    return pc.coalesce(pc.if_else(zoned, text, none).cast(moment), naive)


def _scaled(array: Any) -> Any:
    """Timestamps or dates in microseconds; those of a coarser unit are first brought near the years 1 to 9999, so
    that none overflows into them."""
    unit_us = _unit_us(array.type)
    if unit_us == 1:
        return array.cast(pa.timestamp("us", getattr(array.type, "tz", None)), safe=False)
    first, last = EARLIEST_US // unit_us - 1, LATEST_US // unit_us + 1
    numbers = array.cast(pa.int32() if pat.is_date32(array.type) else pa.int64()).cast(pa.int64())
    capped = pc.min_element_wise(numbers, last, skip_nulls=False)
    near = pc.max_element_wise(capped, first, skip_nulls=False)
    return pc.multiply(near, unit_us).cast(pa.timestamp("us", "UTC"))


def _unit_us(kind: pa.DataType) -> int:
    """Microseconds in a unit of a timestamp or date; 1 for nanoseconds too."""
    if pat.is_date32(kind):
        return 86_400_000_000
    return 1_000 if pat.is_date64(kind) else {"s": 1_000_000, "ms": 1_000}.get(kind.unit, 1)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pat.is_string(kind) or pat.is_large_string(kind) or pat.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pat.is_integer(kind) or pat.is_floating(kind))


_KINDS: dict[DType, Any] = {
    DType.INT32: _is_number,
    DType.INT64: _is_number,
    DType.FLOAT32: lambda kind: _is_number(kind) or pat.is_decimal(kind),
    DType.FLOAT64: lambda kind: _is_number(kind) or pat.is_decimal(kind),
    DType.BOOL: pat.is_boolean,
    DType.STRING: _is_text,
    DType.TIMESTAMP: lambda kind: pat.is_timestamp(kind) or pat.is_date(kind) or _is_text(kind),
}
