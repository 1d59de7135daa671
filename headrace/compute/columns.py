"""Untyped values to typed columns, strictly: a value of another type is a reason, never a guess."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.catalog.definitions import Column
from headrace.dtypes import DType, arrow_type
from headrace.errors import RequestError
from headrace.moments import EARLIEST_US, LATEST_US

__all__ = ["parse_moment", "typed_array", "typed_column"]

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
_FEW = 500
_ZONED = r"[T ].*(Z|[+-][0-9]{2}(:?[0-9]{2})?)$"

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


def parse_moment(text: str | None) -> int | None:
    """A caller's RFC 3339 moment in microseconds UTC; without a zone it is UTC. Raises RequestError for another."""
    if text is None:
        return None
    array, wrong = typed_column([text], Column("as_of", DType.TIMESTAMP))
    if wrong:
        raise RequestError(f"{wrong[0]}; write an RFC 3339 moment like 2013-05-01T12:00:00Z.")
    moment: int = array.cast("int64")[0].as_py()
    return moment


def typed_array(array: pa.Array, column: Column) -> tuple[pa.Array, dict[int, str]]:
    """`typed_column` of the array's values, which become Python's only where its type or a value asks for it.

    Raises OverflowError or ValueError for values that Python cannot hold.
    """
    try:
        return _of_array(array, column.dtype), {}
    except (pa.ArrowException, _Refused):
        if len(array) < _FEW:
            read = _one_by_one if column.dtype is DType.TIMESTAMP else typed_column
            return read(array.to_pylist(), column)
    return _typed_parts(array, column)


def _typed_parts(array: pa.Array, column: Column) -> tuple[pa.Array, dict[int, str]]:
    """`typed_array` by parts, so that a refused value costs its neighbours only."""
    parts: list[pa.Array] = []
    refused: dict[int, str] = {}
    step = -(-len(array) // 16)
    for start in range(0, len(array), step):
        part, wrong = typed_array(array.slice(start, step), column)
        parts.append(part)
        refused |= {start + row: why for row, why in wrong.items()}
    return pa.concat_arrays(parts), refused


class _Refused(Exception):
    """The fast way does not apply; the reason is found value by value."""


def _fast(values: Sequence[Any], dtype: DType, kinds: set[type]) -> pa.Array:
    if dtype is DType.TIMESTAMP:
        return _fast_moments(values, kinds)
    if not dtype.is_float:
        return pa.array(values, arrow_type(dtype))
    return _reals(pa.array(values, pa.float64(), from_pandas=True), dtype)


def _of_array(array: pa.Array, dtype: DType) -> pa.Array:
    is_integer = pa.types.is_integer(array.type)
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), arrow_type(dtype))
    if dtype is DType.TIMESTAMP:
        return _inside(_moments(array))
    if dtype.is_float and (is_integer or array.type in (pa.float32(), pa.float64())):
        return _reals(_without_nan(array.cast(pa.float64(), safe=False)), dtype)
    if any(is_kind(array.type) for is_kind in _CASTABLE[dtype]):
        return array.cast(arrow_type(dtype))
    raise _Refused


_CASTABLE: dict[DType, tuple[Callable[[pa.DataType], bool], ...]] = {
    DType.INT32: (pa.types.is_integer,),
    DType.INT64: (pa.types.is_integer,),
    DType.FLOAT32: (),
    DType.FLOAT64: (),
    DType.BOOL: (pa.types.is_boolean,),
    DType.STRING: (pa.types.is_string, pa.types.is_large_string),
}


def _without_nan(column: pa.Array) -> pa.Array:
    is_nan = pc.is_nan(column)
    return pc.if_else(is_nan, pa.scalar(None, column.type), column) if pc.any(is_nan).as_py() else column


def _reals(column: pa.Array, dtype: DType) -> pa.Array:
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
    return _inside(moments)


def _moments(array: pa.Array) -> pa.Array:
    """Text or timestamps as microseconds UTC; a time without a zone is UTC, digits beyond microseconds are cut."""
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return _timestamps(array.cast(pa.string()))
    if not pa.types.is_timestamp(array.type) or array.type.tz not in (None, "UTC"):
        raise _Refused
    if array.type.unit == "ns":
        array = _whole_us(array.cast(pa.int64()))
    return array.cast(pa.timestamp("us", array.type.tz)).cast(arrow_type(DType.TIMESTAMP))


def _inside(moments: pa.Array) -> pa.Array:
    times_us = np.asarray(moments.cast(pa.int64()).fill_null(0))
    # Arrow reads year 0, which Python does not: with a zone it reaches a day into year 1.
    if ((times_us < EARLIEST_US + _DAY_US) | (times_us > LATEST_US)).any():
        raise _Refused
    return moments


def _whole_us(ns: pa.Array) -> pa.Array:
    times = np.asarray(ns.fill_null(0))
    if (times == np.iinfo(np.int64).min).any():
        raise _Refused  # pandas' NaT
    return pa.array(times // 1_000, mask=np.asarray(ns.is_null())).cast(pa.timestamp("us"))


def _timestamps(text: pa.Array) -> pa.Array:
    """Arrow casts text with a zone to a type with one, text without to a type without, and is slow to fail."""
    known = text.drop_null() if text.null_count else text
    try:
        return _cast_moments(text, len(known) == 0 or re.search(_ZONED, known[0].as_py()) is not None)
    except pa.ArrowInvalid:
        zoned = pc.match_substring_regex(text, _ZONED)
    if pc.all(zoned).as_py() or not pc.any(zoned).as_py():
        raise _Refused
    null = pa.scalar(None, pa.string())
    return pc.coalesce(
        _cast_moments(pc.if_else(zoned, text, null), True), _cast_moments(pc.if_else(zoned, null, text), False)
    )


def _cast_moments(text: pa.Array, zoned: bool) -> pa.Array:
    return text.cast(pa.timestamp("us", "UTC" if zoned else None)).cast(arrow_type(DType.TIMESTAMP))


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
