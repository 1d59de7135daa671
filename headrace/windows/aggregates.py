"""Mergeable state: what the aggregates keep per tile (their IR), how it merges, and what they make of it.

An aggregate keeps a few state fields, each int64 or float64. Functions of one column share fields: sum and mean
keep one sum and one count. A merge is commutative and associative, over whole arrays: sums and extremes by a NumPy
ufunc, mean and squared deviations by Chan's formula. The same fields serve the online tiles and the offline kernel,
so both paths run the same arithmetic. Functions that need more than numbers keep entry lists (entries.py).

Chan, Golub, LeVeque: Algorithms for computing the sample variance, The American Statistician 37 (1983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.dtypes import DType, arrow_type
from headrace.windows.functions import Aggregation, parse_function

__all__ = [
    "State",
    "StateField",
    "lift",
    "merge_states",
    "out_of_range",
    "reduce_runs",
    "result",
    "result_array",
    "state_fields",
    "take",
    "values_array",
    "zeros",
]

Array = NDArray[Any]
"""int64 or float64."""
Valid = NDArray[np.bool_]

_LOW_BITS = 32
_INT64 = np.iinfo(np.int64)


class StateField(NamedTuple):
    """One number of state. `kind` is rows, count, sum, high, low, min, max, centre or spread; `column` is `*` for
    rows.

    An integer sum is kept as the sum of the high and of the low 32 bits of its inputs, so that neither can
    overflow within 2^31 events and the exact total decides whether it fits an int64, in whatever order it grew.
    `centre` and `spread` are the mean and the sum of squared deviations from it; they merge with their `count`.
    """

    kind: str
    column: str
    is_float: bool


State = Mapping[StateField, Array]
"""Arrays of one length, one per field: the state of as many keys, tiles or events."""


def state_fields(aggregation: Aggregation) -> tuple[StateField, ...]:
    """The fields that `aggregation` reads; none for one that keeps an entry list."""
    base, column = parse_function(aggregation.function).base, aggregation.column
    is_float = aggregation.input_dtype.is_float
    count = StateField("rows" if column == "*" else "count", column, False)
    if base == "count":
        return (count,)
    if base in ("sum", "mean"):
        if is_float:
            return (count, StateField("sum", column, True))
        return (count, StateField("high", column, False), StateField("low", column, False))
    if base in ("min", "max"):
        return (count, StateField(base, column, is_float))
    if base in ("var", "std"):
        return (count, StateField("centre", column, True), StateField("spread", column, True))
    return ()


def _zero(field: StateField) -> float | int:
    if field.kind == "min":
        return np.inf if field.is_float else int(_INT64.max)
    if field.kind == "max":
        return -np.inf if field.is_float else int(_INT64.min)
    return 0.0 if field.is_float else 0


def zeros(fields: Iterable[StateField], n: int) -> dict[StateField, Array]:
    """The state of no event, n times."""
    return {field: np.full(n, _zero(field), np.float64 if field.is_float else np.int64) for field in fields}


def take(state: State, rows: Any) -> dict[StateField, Array]:
    """The rows of every field, by number, mask or slice."""
    return {field: values[rows] for field, values in state.items()}


def merge_states(one: State, other: State) -> dict[StateField, Array]:
    """Both together, element by element."""
    merged: dict[StateField, Array] = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for field in one:
            if field.kind not in ("centre", "spread"):
                merged[field] = _UFUNCS.get(field.kind, np.add)(one[field], other[field])
    for field in one:
        if field.kind == "centre":
            merged |= _merge_deviations(field.column, one, other)
    return merged


_UFUNCS = {"min": np.minimum, "max": np.maximum}


def _merge_deviations(column: str, one: State, other: State) -> dict[StateField, Array]:
    count, centre, spread = _deviation_fields(column)
    n1, n2 = one[count], other[count]
    n = np.maximum(n1 + n2, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        delta = other[centre] - one[centre]
        mean = (n1 * one[centre] + n2 * other[centre]) / n
        mean = np.where(n1 == 0, other[centre], np.where(n2 == 0, one[centre], mean))
        both = one[spread] + other[spread] + delta * delta * (n1 * (n2 / n))
        squares = np.where(n1 == 0, other[spread], np.where(n2 == 0, one[spread], both))
    return {centre: mean, spread: squares}


def _deviation_fields(column: str) -> tuple[StateField, StateField, StateField]:
    return StateField("count", column, False), StateField("centre", column, True), StateField("spread", column, True)


def lift(fields: Iterable[StateField], columns: Mapping[str, pa.Array], n: int) -> dict[StateField, Array]:
    """The state of each of `n` events alone; a null input gives the zero."""
    return {field: _lift(field, columns, n) for field in fields}


def _lift(field: StateField, columns: Mapping[str, pa.Array], n: int) -> Array:
    if field.kind == "rows":
        return np.ones(n, np.int64)
    column = columns[field.column]
    if field.kind == "count":
        valid: Array = np.asarray(pc.is_valid(column)).astype(np.int64)
        return valid
    if field.kind == "spread":
        return np.zeros(n, np.float64)
    values = numbers(column, field.is_float, _zero(field))
    if field.kind == "high":
        return values >> _LOW_BITS
    if field.kind == "low":
        return values & ((1 << _LOW_BITS) - 1)
    return values


def numbers(column: pa.Array, as_float: bool, fill: float | int) -> Array:
    """A numeric, bool or timestamp column as float64 or int64, nulls as `fill`."""
    target = pa.float64() if as_float else pa.int64()
    plain = column.cast(target, safe=not (as_float and pa.types.is_integer(column.type)))
    filled = pc.fill_null(plain, pa.scalar(fill, target)) if plain.null_count else plain
    values: Array = np.asarray(filled)
    return values


def reduce_runs(state: State, starts: Array) -> dict[StateField, Array]:
    """Each run of rows merged into one: rows from one of `starts` (rising, the first 0) to the next."""
    if not len(starts):
        return take(state, slice(0, 0))
    reduced: dict[StateField, Array] = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for field, values in state.items():
            if field.kind not in ("centre", "spread"):
                reduced[field] = _UFUNCS.get(field.kind, np.add).reduceat(values, starts)
    for field in state:
        if field.kind == "centre":
            reduced |= _reduce_deviations(field.column, state, starts, reduced)
    return reduced


def _reduce_deviations(
    column: str, state: State, starts: Array, reduced: Mapping[StateField, Array]
) -> dict[StateField, Array]:
    count, centre, spread = _deviation_fields(column)
    with np.errstate(over="ignore", invalid="ignore"):
        weighted = np.add.reduceat(state[centre] * state[count], starts)
        mean = weighted / np.maximum(reduced[count], 1)
        runs = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(state[count])]))
        away = state[centre] - mean[runs]
        squares = np.add.reduceat(state[spread] + state[count] * away * away, starts)
    return {centre: mean, spread: squares}


def result(aggregation: Aggregation, state: State) -> tuple[Array, Valid]:
    """The values (float64, or int64 for integers and timestamps) and which of them are not null.

    `state` holds the fields of `state_fields(aggregation)`, maybe others.
    """
    fields = {field.kind: state[field] for field in state_fields(aggregation)}
    count = fields["rows"] if "rows" in fields else fields["count"]
    base = parse_function(aggregation.function).base
    if base == "count":
        return count, np.ones(len(count), np.bool_)
    return _RESULTS[base](fields, count)


def out_of_range(aggregation: Aggregation, state: State) -> Valid:
    """Which values are null though the window holds enough for one: a sum, a mean or a variance that its type cannot
    hold."""
    fields = {field.kind: state[field] for field in state_fields(aggregation)}
    enough = 1 if parse_function(aggregation.function).base in ("var", "std") else 0
    count = fields["rows"] if "rows" in fields else fields["count"]
    missing: Valid = (count > enough) & ~result(aggregation, state)[1]
    return missing


def _sum(fields: Mapping[str, Array], count: Array) -> tuple[Array, Valid]:
    seen = count > 0
    if "sum" in fields:
        return fields["sum"], seen & np.isfinite(fields["sum"])
    high = fields["high"] + (fields["low"] >> _LOW_BITS)
    low = fields["low"] & ((1 << _LOW_BITS) - 1)
    fits = (high >= -(2**31)) & (high < 2**31)
    return np.where(fits, high, 0) * (1 << _LOW_BITS) + low, seen & fits


def _mean(fields: Mapping[str, Array], count: Array) -> tuple[Array, Valid]:
    total = fields["sum"] if "sum" in fields else fields["high"] * float(1 << _LOW_BITS) + fields["low"]
    values = total / np.maximum(count, 1)
    return values, (count > 0) & np.isfinite(values)


def _variance(fields: Mapping[str, Array], count: Array) -> tuple[Array, Valid]:
    values = fields["spread"] / np.maximum(count - 1, 1)
    return values, (count > 1) & np.isfinite(values)


def _deviation(fields: Mapping[str, Array], count: Array) -> tuple[Array, Valid]:
    values, valid = _variance(fields, count)
    return np.sqrt(values), valid


def _extreme(kind: str) -> Callable[[Mapping[str, Array], Array], tuple[Array, Valid]]:
    def extreme(fields: Mapping[str, Array], count: Array) -> tuple[Array, Valid]:
        return fields[kind], count > 0

    return extreme


_RESULTS = {
    "sum": _sum,
    "mean": _mean,
    "min": _extreme("min"),
    "max": _extreme("max"),
    "var": _variance,
    "std": _deviation,
}


def result_array(aggregation: Aggregation, state: State) -> pa.Array:
    """`result` as a column of the declared type, nulls as nulls."""
    return values_array(*result(aggregation, state), aggregation.dtype)


def values_array(values: Array, valid: Valid, dtype: DType) -> pa.Array:
    """Numbers (float64 or int64; timestamps and bools as int64) as a column of a plain type."""
    column = pa.array(values, mask=~valid)
    if dtype is DType.TIMESTAMP:
        return column.cast(pa.timestamp("us")).cast(arrow_type(dtype))
    return column.cast(arrow_type(dtype), safe=False)
