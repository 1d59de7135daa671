"""Aggregates as mergeable states: what each function keeps per tile (its IR), and what it makes of it.

An aggregate keeps a few state fields, each an int64 or float64 with a zero and a commutative, associative merge
that is a NumPy ufunc. Functions of one column share fields: sum and mean keep one sum and one count. The same
fields serve the online tiles (merged by `ufunc.reduceat` and suffix scans) and the offline kernel (merged by a
tree), so both paths run the same arithmetic. `last` is ordered, not merged by a ufunc; it has no fields here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.dtypes import DType, arrow_type
from headrace.errors import DefinitionError

__all__ = [
    "FUNCTIONS",
    "Aggregation",
    "StateField",
    "lift",
    "merge_of",
    "output_dtype",
    "result",
    "result_array",
    "state_fields",
    "zero_of",
]

FUNCTIONS = ("count", "sum", "mean", "min", "max", "last")

Array = NDArray[Any]
"""int64 or float64."""
Valid = NDArray[np.bool_]

_LOW_BITS = 32
_INT64 = np.iinfo(np.int64)


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One windowed feature. `column` is `*` only for count; `window_us` None is the lifetime (`hop_us` 0)."""

    feature: str
    function: str
    column: str
    window_us: int | None
    hop_us: int
    input_dtype: DType
    dtype: DType


@dataclass(frozen=True, slots=True, order=True)
class StateField:
    """One number of state. `kind` is rows, count, sum, high, low, min or max; `column` is `*` for rows.

    An integer sum is kept as the sum of the high and of the low 32 bits of its inputs, so that neither can
    overflow within 2^31 events and the exact total decides whether it fits an int64, in whatever order it grew.
    """

    kind: str
    column: str
    is_float: bool


def output_dtype(function: str, column: str, dtype: DType) -> DType:
    """The type of `function` over a column of `dtype`.

    Raises DefinitionError for an unknown function and for one that the type does not allow.
    """
    if function not in FUNCTIONS:
        raise DefinitionError(f"There is no aggregation function {function!r}; choose one of {', '.join(FUNCTIONS)}.")
    if column == "*" and function != "count":
        raise DefinitionError(f"Only count takes '*', got {function} of '*'; name a column.")
    if function in ("sum", "mean") and not dtype.is_numeric:
        raise DefinitionError(f"{function} needs a numeric column, {column!r} is {dtype}; use count or last.")
    if function in ("min", "max") and not (dtype.is_numeric or dtype is DType.TIMESTAMP):
        raise DefinitionError(f"{function} needs a numeric or timestamp column, {column!r} is {dtype}; use last.")
    if function == "count":
        return DType.INT64
    if function == "mean":
        return DType.FLOAT64
    if function == "sum":
        return DType.INT64 if dtype.is_integer else DType.FLOAT64
    return dtype


def state_fields(aggregation: Aggregation) -> tuple[StateField, ...]:
    """The fields that `aggregation` reads, in no particular order; none for `last`."""
    column, is_float = aggregation.column, aggregation.input_dtype.is_float
    count = StateField("rows" if column == "*" else "count", column, False)
    if aggregation.function == "count":
        return (count,)
    if aggregation.function in ("sum", "mean"):
        if is_float:
            return (count, StateField("sum", column, True))
        return (count, StateField("high", column, False), StateField("low", column, False))
    if aggregation.function in ("min", "max"):
        return (count, StateField(aggregation.function, column, is_float))
    return ()


def merge_of(field: StateField) -> np.ufunc:
    """The merge: commutative, associative, with `zero_of(field)` as its neutral element."""
    return {"min": np.minimum, "max": np.maximum}.get(field.kind, np.add)


def zero_of(field: StateField) -> float | int:
    """The state of no event."""
    if field.kind == "min":
        return np.inf if field.is_float else int(_INT64.max)
    if field.kind == "max":
        return -np.inf if field.is_float else int(_INT64.min)
    return 0.0 if field.is_float else 0


def lift(field: StateField, columns: Mapping[str, pa.Array], n: int) -> Array:
    """The state of each of `n` events alone, int64 or float64; a null input gives the zero."""
    if field.kind == "rows":
        return np.ones(n, np.int64)
    column = columns[field.column]
    if field.kind == "count":
        valid: Array = np.asarray(pc.is_valid(column)).astype(np.int64)
        return valid
    values = numbers(column, field.is_float, zero_of(field))
    if field.kind == "high":
        return values >> _LOW_BITS
    if field.kind == "low":
        return values & ((1 << _LOW_BITS) - 1)
    return values


def numbers(column: pa.Array, as_float: bool, fill: float | int) -> Array:
    """A numeric or timestamp column as float64 or int64, nulls as `fill`."""
    target = pa.float64() if as_float else pa.int64()
    plain = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
    filled = pc.fill_null(plain.cast(target), pa.scalar(fill, target)) if plain.null_count else plain.cast(target)
    values: Array = np.asarray(filled)
    return values


def result(aggregation: Aggregation, state: Mapping[StateField, Array]) -> tuple[Array, Valid]:
    """The values (float64, or int64 for integers and timestamps) and which of them are not null.

    `state` maps the fields of `state_fields(aggregation)` to arrays of one length.
    """
    fields = {field.kind: state[field] for field in state_fields(aggregation)}
    count = fields["rows"] if "rows" in fields else fields["count"]
    if aggregation.function == "count":
        return count, np.ones(len(count), np.bool_)
    return _RESULTS[aggregation.function](fields, count)


def _sum(fields: Mapping[str, Array], count: Array) -> tuple[Array, Valid]:
    seen = count > 0
    if "sum" in fields:
        return fields["sum"], seen & np.isfinite(fields["sum"])
    high = fields["high"] + (fields["low"] >> _LOW_BITS)
    low = fields["low"] & ((1 << _LOW_BITS) - 1)
    fits = (high >= -(2**31)) & (high < 2**31)
    return np.where(fits, high, 0) * (1 << _LOW_BITS) + low, seen & fits


def _mean(fields: Mapping[str, Array], count: Array) -> tuple[Array, Valid]:
    seen = count > 0
    total = fields["sum"] if "sum" in fields else fields["high"] * float(1 << _LOW_BITS) + fields["low"]
    values = total / np.maximum(count, 1)
    return values, seen & np.isfinite(values)


def _extreme(kind: str) -> Callable[[Mapping[str, Array], Array], tuple[Array, Valid]]:
    def extreme(fields: Mapping[str, Array], count: Array) -> tuple[Array, Valid]:
        return fields[kind], count > 0

    return extreme


_RESULTS = {"sum": _sum, "mean": _mean, "min": _extreme("min"), "max": _extreme("max")}


def result_array(aggregation: Aggregation, state: Mapping[StateField, Array]) -> pa.Array:
    """`result` as a column of the declared type, nulls as nulls."""
    values, valid = result(aggregation, state)
    column = pa.array(values, mask=~valid)
    if aggregation.dtype is DType.TIMESTAMP:
        return column.cast(pa.timestamp("us")).cast(arrow_type(DType.TIMESTAMP))
    return column.cast(arrow_type(aggregation.dtype), safe=False)
