"""The aggregation functions: their names, what they take and what they give.

A parameter stands in the name: `last_5`, `first_3`, `approx_p95`, `count_distinct_5000`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from headrace.dtypes import DType
from headrace.errors import DefinitionError

__all__ = ["DISTINCT_BOUND", "FUNCTIONS", "Aggregation", "Function", "output_dtype", "parse_function"]

FUNCTIONS = (
    "count",
    "sum",
    "mean",
    "min",
    "max",
    "var",
    "std",
    "first",
    "last",
    "first_N",
    "last_N",
    "count_distinct",
    "approx_count_distinct",
    "approx_pN",
)
DISTINCT_BOUND = 1_000
"""The largest exact count of distinct values, unless the name says otherwise."""

MOST_ITEMS = 1_000
MOST_DISTINCT = 100_000

_PLAIN = ("count", "sum", "mean", "min", "max", "var", "std", "first", "last", "approx_count_distinct")


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


@dataclass(frozen=True, slots=True)
class Function:
    """A function without its parameter: `n` is how many of first_n and last_n, the bound of count_distinct, the
    percent of approx_percentile, else 1."""

    base: str
    n: int = 1


@lru_cache(maxsize=4_096)
def parse_function(name: str) -> Function:
    """The function that `name` means. Raises DefinitionError for an unknown one and a parameter out of range."""
    if name in _PLAIN:
        return Function(name)
    if name == "count_distinct":
        return Function(name, DISTINCT_BOUND)
    match = re.fullmatch(r"(first|last|count_distinct)_(\d{1,9})|approx_(p)(\d{1,2})", name)
    if match is None:
        raise DefinitionError(f"There is no aggregation function {name!r}; choose one of {', '.join(FUNCTIONS)}.")
    base, n = match[1] or match[3], int(match[2] or match[4])
    if base == "p":
        return Function("approx_percentile", _in_range(name, n, 1, 99))
    if base == "count_distinct":
        return Function(base, _in_range(name, n, 1, MOST_DISTINCT))
    return Function(f"{base}_n", _in_range(name, n, 1, MOST_ITEMS))


def _in_range(name: str, n: int, least: int, most: int) -> int:
    if not least <= n <= most:
        raise DefinitionError(f"The number in a function's name is {least} to {most}, got {name!r}; change it.")
    return n


def output_dtype(function: str, column: str, dtype: DType) -> DType:
    """The type of `function` over a column of `dtype`.

    Raises DefinitionError for an unknown function and for one that the type does not allow.
    """
    base = parse_function(function).base
    if column == "*" and base != "count":
        raise DefinitionError(f"Only count takes '*', got {function} of '*'; name a column.")
    if base in ("sum", "mean") and not (dtype.is_numeric or dtype is DType.BOOL):
        raise DefinitionError(f"{function} needs a numeric column, {column!r} is {dtype}; use count or last.")
    if base in ("var", "std", "approx_percentile") and not dtype.is_numeric:
        raise DefinitionError(f"{function} needs a numeric column, {column!r} is {dtype}; use count or last.")
    if base in ("min", "max") and not (dtype.is_numeric or dtype is DType.TIMESTAMP):
        raise DefinitionError(f"{function} needs a numeric or timestamp column, {column!r} is {dtype}; use last.")
    if base in ("count", "count_distinct", "approx_count_distinct"):
        return DType.INT64
    if base in ("mean", "var", "std", "approx_percentile"):
        return DType.FLOAT64
    if base == "sum":
        return DType.FLOAT64 if dtype.is_float else DType.INT64
    return dtype.list_type if base in ("first_n", "last_n") else dtype
