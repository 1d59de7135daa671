"""Feast's value messages to typed columns, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from feast.protos.feast.types import Value_pb2
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]
from numpy.typing import NDArray

from headrace.catalog.definitions import Column, DType
from headrace.compute.columns import typed_column
from headrace.errors import RequestError

__all__ = ["column_of", "datetimes_of", "micros_of", "messages_of", "plain_values", "timestamps_of"]

Message = Any
Ints = NDArray[np.int64]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIELDS = {
    DType.INT32: ("int32", Value_pb2.Int32List),
    DType.INT64: ("int64", Value_pb2.Int64List),
    DType.FLOAT32: ("float", Value_pb2.FloatList),
    DType.FLOAT64: ("double", Value_pb2.DoubleList),
    DType.BOOL: ("bool", Value_pb2.BoolList),
    DType.STRING: ("string", Value_pb2.StringList),
    DType.TIMESTAMP: ("unix_timestamp", Value_pb2.Int64List),
}
_NULL = Value_pb2.Value()


def plain_values(messages: Sequence[Message]) -> list[Any]:
    """The values of messages, null as None; Feast's timestamps, whole seconds, as datetimes."""
    return [_plain(message) for message in messages]


def column_of(messages: Sequence[Message], column: Column) -> pa.Array:
    """The values of messages as a column of its declared type.

    Raises RequestError for a value of another type or an infinite one.
    """
    values, wrong = typed_column(plain_values(messages), column)
    if wrong:
        row, reason = next(iter(wrong.items()))
        raise RequestError(f"Values must have the declared types; row {row}: {reason}.")
    return values


def _plain(message: Message) -> Any:
    kind = message.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    value = getattr(message, kind)
    return _EPOCH + timedelta(seconds=value) if kind == "unix_timestamp_val" else value


def messages_of(column: pa.Array, dtype: DType) -> list[Message]:
    """One value message per row; a null is an empty message, microseconds of a timestamp are cut to seconds."""
    make = _maker(dtype)
    values = column.cast(_numbers(column.type)).to_pylist() if _has_times(dtype) else column.to_pylist()
    return [_NULL if value is None else make(value) for value in values]


def _has_times(dtype: DType) -> bool:
    return DType.TIMESTAMP in (dtype, dtype.item if dtype.is_list else dtype)


def _numbers(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.int64()) if pa.types.is_list(kind) else pa.int64()


def _maker(dtype: DType) -> Callable[[Any], Message]:
    name, listed = _FIELDS[dtype.item if dtype.is_list else dtype]
    seconds = _has_times(dtype)
    if not dtype.is_list:
        field = f"{name}_val"
        return lambda value: Value_pb2.Value(**{field: value // 1_000_000 if seconds else value})
    field = f"{name}_list_val"
    return lambda values: Value_pb2.Value(
        **{field: listed(val=[value // 1_000_000 for value in values] if seconds else values)}
    )


def micros_of(times: Sequence[datetime]) -> Ints:
    """int64 microseconds UTC; a time without a zone is UTC."""
    aware = [time if time.tzinfo is not None else time.replace(tzinfo=UTC) for time in times]
    return np.array([(time - _EPOCH) // timedelta(microseconds=1) for time in aware], np.int64)


def datetimes_of(times_us: Ints) -> list[datetime | None]:
    """Times in UTC, None for 0."""
    return [_EPOCH + timedelta(microseconds=us) if us else None for us in times_us.tolist()]


def timestamps_of(times_us: Ints) -> list[Timestamp]:
    """Timestamp messages; 0 is an empty one."""
    return [Timestamp(seconds=us // 1_000_000, nanos=us % 1_000_000 * 1_000) for us in times_us.tolist()]
