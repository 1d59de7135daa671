"""Columns to users' frames and back: fixed dtypes, nulls and types on the way in and out, and code to functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.dtypes import DType, arrow_type
from headrace.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Columns", "load_function", "null_groups", "series", "take", "to_declared"]

Columns = dict[str, pa.Array]


def load_function(code: str, name: str, who: str) -> Callable[[Any], Any]:
    """The function `name` of a carried module. Raises DataError naming `who` if the module cannot be run here."""
    namespace: dict[str, Any] = {"__name__": __name__}  # dataclasses look their module up in sys.modules
    try:
        exec(compile(code, f"<{who}>", "exec"), namespace)
    except Exception as error:
        raise DataError(
            f"The function of {who} cannot be loaded here: {type(error).__name__}: "
            f"{error}; install what it imports, or run headrace apply."
        ) from error
    function: Callable[[Any], Any] = namespace[name]
    return function


def take(columns: Columns, rows: NDArray[np.int64]) -> Columns:
    """The rows by number."""
    indices = pa.array(rows)
    return {name: values.take(indices) for name, values in columns.items()}


def null_groups(columns: Columns) -> Iterator[NDArray[np.int64]]:
    """Rows by their pattern of nulls in integer and boolean columns; one group if there are none.

    pandas turns such a column to floats or objects where some row is null: with equal patterns together, what a row
    looks like does not depend on the rows beside it.
    """
    exact = [v for v in columns.values() if pa.types.is_integer(v.type) or pa.types.is_boolean(v.type)]
    nulls = [np.asarray(pc.is_null(values)) for values in exact if values.null_count]
    if not nulls:
        yield np.arange(len(next(iter(columns.values()))) if columns else 0)
        return
    _, group = np.unique(np.stack(nulls, axis=1), axis=0, return_inverse=True)
    group = group.reshape(-1)
    for number in range(group.max() + 1):
        yield np.flatnonzero(group == number)


def series(values: pa.Array) -> pd.Series[Any]:
    """A pandas column with one dtype per type: int64, float64 (NaN for null), object, datetime64[us, UTC]."""
    import pandas as pd

    if pa.types.is_boolean(values.type) and values.null_count:
        return pd.Series([None] * len(values), dtype=object)
    column: pd.Series[Any] = values.to_pandas()
    return column.astype("float64") if pa.types.is_integer(values.type) and values.null_count else column


def to_declared(values: Any, dtype: DType, refuse_infinities: bool = False) -> pa.Array:
    """A list, array or Series (of pandas or Polars) as an Arrow array of the declared type; NaN is null.

    Infinities are null too, or refused. Raises TypeError, ValueError or ArrowException for what does not fit.
    """
    column = _as_arrow(values)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    target = arrow_type(dtype)
    if pa.types.is_floating(column.type):
        column = _finite(column, refuse_infinities)
    if pa.types.is_null(column.type) or column.null_count == len(column):
        return pa.nulls(len(column), target)
    _check_kind(column.type, dtype)
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(target)
    cast: pa.Array = column.cast(target, safe=not dtype.is_float)
    return _finite(cast, refuse_infinities) if pa.types.is_floating(target) else cast


def _finite(column: pa.Array, refuse_infinities: bool) -> pa.Array:
    if refuse_infinities and pc.any(pc.is_inf(column)).as_py():
        raise ValueError("infinities are refused")
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))


def _as_arrow(values: Any) -> Any:
    if hasattr(values, "to_arrow"):
        return values.to_arrow()
    if hasattr(values, "to_numpy"):
        return pa.Array.from_pandas(values)
    if isinstance(values, np.ndarray):
        return pa.array(values, from_pandas=True)
    return pa.array([_plain(value) for value in values], from_pandas=True)


def _plain(value: Any) -> Any:
    """A Python value that Arrow reads beside others: naive times are UTC, NaN and infinities null."""
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _check_kind(found: pa.DataType, dtype: DType) -> None:
    """Raises TypeError where a cast would change what a value means."""
    numeric = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_boolean(found)
    text = pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
    fits = {
        DType.STRING: text,
        DType.BOOL: pa.types.is_boolean(found),
        DType.TIMESTAMP: pa.types.is_timestamp(found),
    }.get(dtype, numeric)
    if not fits:
        raise TypeError(f"the function gives {found}")
