"""Untyped values to typed columns, strictly: a value of another type is a reason, never a guess."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.catalog.definitions import Column
from headrace.dtypes import DType, arrow_type
from headrace.moments import EARLIEST_US, LATEST_US

__all__ = ["typed_column"]

_ALLOWED: dict[DType, frozenset[type]] = {
    DType.INT32: frozenset({int}),
    DType.INT64: frozenset({int}),
    DType.FLOAT32: frozenset({int, float}),
    DType.FLOAT64: frozenset({int, float}),
    DType.BOOL: frozenset({bool}),
    DType.STRING: frozenset({str}),
    DType.TIMESTAMP: frozenset({str, datetime}),
}
_BOUNDS = {DType.INT32: 2**31, DType.INT64: 2**63}
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_US = 86_400_000_000

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


def typed_column(values: Sequence[Any], column: Column) -> tuple[pa.Array, dict[int, str]]:
    """`values` (None is null) as a column of its type, and by row number why a value was refused.

    A refused value is null in the column. Whole floats pass as integers, integers as floats; NaN is null,
    infinities are refused; timestamps are RFC 3339 text (without a zone: UTC) or datetimes, in the years 1 to 9999
    of UTC.
    """
    kinds = set(map(type, values)) - {type(None)}
    if kinds <= _ALLOWED[column.dtype]:
        try:
            return _fast(values, column.dtype, kinds), {}
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, _Refused):
            pass
    return _one_by_one(values, column)


class _Refused(Exception):
    """The fast way does not apply; the reason is found value by value."""


def _fast(values: Sequence[Any], dtype: DType, kinds: set[type]) -> pa.Array:
    if dtype is DType.TIMESTAMP:
        return _fast_moments(values, kinds)
    if not dtype.is_float:
        return pa.array(values, arrow_type(dtype))
    column = pa.array(values, pa.float64(), from_pandas=True)
    numbers = np.asarray(column.fill_null(0.0))
    if not np.isfinite(numbers).all() or (dtype is DType.FLOAT32 and (np.abs(numbers) > _FLOAT32_MAX).any()):
        raise _Refused
    return column.cast(arrow_type(dtype), safe=False)


def _fast_moments(values: Sequence[Any], kinds: set[type]) -> pa.Array:
    if str in kinds:
        if datetime in kinds:
            raise _Refused
        moments = _timestamps(pa.array(values, pa.string()))
    elif any(value is not None and value.tzinfo is None for value in values):
        raise _Refused
    else:
        moments = pa.array(values, arrow_type(DType.TIMESTAMP))
    times_us = np.asarray(moments.cast(pa.int64()).fill_null(0))
    # Arrow reads year 0, which Python does not: with a zone it reaches a day into year 1.
    if ((times_us < EARLIEST_US + _DAY_US) | (times_us > LATEST_US)).any():
        raise _Refused
    return moments


def _timestamps(text: pa.Array) -> pa.Array:
    try:
        return text.cast(arrow_type(DType.TIMESTAMP))
    except pa.ArrowInvalid:
        return text.cast(pa.timestamp("us")).cast(arrow_type(DType.TIMESTAMP))


def _one_by_one(values: Sequence[Any], column: Column) -> tuple[pa.Array, dict[int, str]]:
    convert = _CONVERT[column.dtype]
    good: list[Any] = [None] * len(values)
    bad: dict[int, str] = {}
    for i, value in enumerate(values):
        if value is None or value != value:
            continue
        try:
            good[i] = convert(value, column.dtype)
        except (TypeError, ValueError, OverflowError) as error:
            bad[i] = f"{column.name} must be {column.dtype}, got {_shown(value)}" + (f": {error}" if str(error) else "")
    array = pa.array(good, pa.int64() if column.dtype is DType.TIMESTAMP else arrow_type(column.dtype))
    return array.cast(arrow_type(column.dtype)), bad


def _shown(value: Any) -> str:
    """`value` in few characters; a list or an object, which may be nested as deep as the parser allows, by its kind."""
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else _repr.repr(value)


def _integer(value: Any, dtype: DType) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise TypeError
    if not -_BOUNDS[dtype] <= value < _BOUNDS[dtype]:
        raise ValueError("out of range")
    return int(value)


def _real(value: Any, dtype: DType) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    number = float(value)
    if math.isinf(number):
        raise ValueError("infinities are refused")
    if dtype is DType.FLOAT32 and abs(number) > _FLOAT32_MAX:
        raise ValueError("out of range")
    return None if math.isnan(number) else number


def _boolean(value: Any, dtype: DType) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text(value: Any, dtype: DType) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()
    return value


def _moment(value: Any, dtype: DType) -> int:
    """Microseconds UTC; digits beyond microseconds are cut."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        raise TypeError
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    since = aware - _EPOCH
    time_us = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if not EARLIEST_US <= time_us <= LATEST_US:
        raise ValueError("outside the years 1 to 9999 of UTC")
    return time_us


_CONVERT: dict[DType, Callable[[Any, DType], Any]] = {
    DType.INT32: _integer,
    DType.INT64: _integer,
    DType.FLOAT32: _real,
    DType.FLOAT64: _real,
    DType.BOOL: _boolean,
    DType.STRING: _text,
    DType.TIMESTAMP: _moment,
}
