"""Feast's types and durations, and ours."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from feast import KafkaSource, PushSource, ValueType
from feast.types import Array, Bool, FeastType, Float32, Float64, Int32, Int64, String, UnixTimestamp

from headrace.catalog.definitions import DType
from headrace.errors import DefinitionError

__all__ = ["StreamSource", "dtype_of_entity", "dtype_of_feast", "duration_us", "feast_type", "value_type"]

StreamSource = PushSource | KafkaSource
"""What a view of events reads."""

_FEAST: dict[DType, FeastType] = {
    DType.INT32: Int32,
    DType.INT64: Int64,
    DType.FLOAT32: Float32,
    DType.FLOAT64: Float64,
    DType.BOOL: Bool,
    DType.STRING: String,
    DType.TIMESTAMP: UnixTimestamp,
}
_KEYS = {DType.INT32: ValueType.INT32, DType.INT64: ValueType.INT64, DType.STRING: ValueType.STRING}


def feast_type(dtype: DType) -> FeastType:
    """The Feast type of a column of `dtype`."""
    return Array(_FEAST[dtype.item]) if dtype.is_list else _FEAST[dtype]


def value_type(dtype: DType) -> ValueType:
    """The Feast value type of a join key of `dtype`, which is int32, int64 or string."""
    return _KEYS[dtype]


def dtype_of_feast(kind: Any, where: str, lists: bool = False) -> DType:
    """Our type for a Feast type, an array only where `lists` allows it: windowed views compute them.

    Raises DefinitionError naming `where` for one that we do not support.
    """
    for dtype, known in _FEAST.items():
        if kind == known:
            return dtype
        if lists and kind == Array(known):
            return dtype.list_type
    names = ", ".join(str(known) for known in _FEAST.values())
    raise DefinitionError(f"{where} has Feast's type {kind}, which is not supported; use one of {names}.")


def dtype_of_entity(kind: ValueType, where: str) -> DType | None:
    """The type of a join key, None where Feast leaves it open. Raises DefinitionError for another type."""
    if kind == ValueType.UNKNOWN:
        return None
    for dtype, known in _KEYS.items():
        if kind == known:
            return dtype
    raise DefinitionError(f"{where} has the value_type {kind.name}; a join key is STRING, INT64 or INT32.")


def duration_us(duration: timedelta) -> int:
    """Microseconds of `duration`, exactly."""
    return duration // timedelta(microseconds=1)
