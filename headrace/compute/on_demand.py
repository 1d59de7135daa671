"""On-demand feature views: the user's function, called alike for a lookup and for a training set.

A function is row-wise, so a row's features must not depend on which rows it is computed with. Two things in
pandas would make them: an integer column turns to float where some row is null, and one bad row fails its batch.
Hence rows with the same nulls in integer and boolean columns are computed together (such a column is all there, or
all null), and where a batch fails, each of its rows with a null input is computed alone and reads null if it fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.catalog.definitions import Column, DType, OnDemandView
from headrace.dtypes import arrow_type
from headrace.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OnDemandFunction"]

Columns = dict[str, pa.Array]


class OnDemandFunction:
    """A view's function, loaded from the source that the catalog carries."""

    def __init__(self, view: OnDemandView) -> None:
        """Runs the carried module. Raises DataError if it cannot be loaded."""
        self.view = view
        self._function = _load(view)
        self._run = {"pandas": self._pandas, "python": self._python, "singleton": self._singleton}[view.mode]
        self._full_names = _full_names(view)

    def compute(self, inputs: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
        """The view's features, in declared order and type; NaN and infinities are null.

        `inputs` maps each input's bare name to an array in its declared type, all of one length. Raises DataError
        naming the view if the function fails on a row without nulls, or returns another number of rows, lacks a
        feature, or gives a value that its type cannot hold.
        """
        columns = dict(inputs)
        groups = list(_null_groups(columns)) if self.view.mode == "pandas" else []
        if len(groups) < 2:
            return self._resilient(columns)
        parts = [self._resilient(_take(columns, rows)) for rows in groups]
        order = pa.array(np.argsort(np.concatenate(groups)))
        names = [feature.name for feature in self.view.features]
        return {name: pa.concat_arrays([part[name] for part in parts]).take(order) for name in names}

    def accepts(self, inputs: Mapping[str, pa.Array]) -> bool:
        """Whether the function itself copes with `inputs`, all in one group of nulls."""
        try:
            self._run(dict(inputs))
        except Exception:
            return False
        return True

    def _resilient(self, columns: Columns) -> Columns:
        """The features of rows in one group: at once, or else row by row where an input is null."""
        try:
            return self._run(columns)
        except DataError:
            raise
        except Exception as error:
            incomplete = _incomplete(columns)
            if not incomplete.any():
                raise self._failure(error) from error
        complete = self._complete(_take(columns, np.flatnonzero(~incomplete)))
        alone = [self._alone(_take(columns, np.array([row]))) for row in np.flatnonzero(incomplete)]
        order = pa.array(np.argsort(np.concatenate([np.flatnonzero(~incomplete), np.flatnonzero(incomplete)])))
        return {
            feature.name: pa.concat_arrays([part[feature.name] for part in (complete, *alone)]).take(order)
            for feature in self.view.features
        }

    def _complete(self, columns: Columns) -> Columns:
        if _length(columns) == 0:
            return {item.name: pa.nulls(0, arrow_type(item.dtype)) for item in self.view.features}
        try:
            return self._run(columns)
        except DataError:
            raise
        except Exception as error:
            raise self._failure(error) from error

    def _alone(self, row: Columns) -> Columns:
        try:
            return self._run(row)
        except DataError:
            raise
        except Exception:
            return {item.name: pa.nulls(1, arrow_type(item.dtype)) for item in self.view.features}

    def _failure(self, error: Exception) -> DataError:
        return DataError(
            f"On-demand feature view {self.view.name!r} failed: {type(error).__name__}: {error}; "
            "its function must accept every value of its inputs' types, give null for one that it cannot use."
        )

    def _pandas(self, columns: Columns) -> Columns:
        import pandas as pd

        frame = pd.DataFrame({name: _series(values) for name, values in self._named(columns).items()})
        result = self._function(frame)
        if not isinstance(result, pd.DataFrame):
            raise DataError(
                f"On-demand feature view {self.view.name!r} gives a DataFrame, got {type(result).__name__}."
            )
        return self._outputs({str(name): result[name] for name in result.columns}, _length(columns))

    def _python(self, columns: Columns) -> Columns:
        values = {name: array.to_pylist() for name, array in self._named(columns).items()}
        result = self._function(values)
        if not isinstance(result, Mapping):
            raise DataError(f"On-demand feature view {self.view.name!r} gives a dict, got {type(result).__name__}.")
        return self._outputs(result, _length(columns))

    def _singleton(self, columns: Columns) -> Columns:
        values = {name: array.to_pylist() for name, array in self._named(columns).items()}
        rows = [self._function(dict(zip(values, row, strict=True))) for row in zip(*values.values(), strict=True)]
        for row in rows:
            if not isinstance(row, Mapping):
                raise DataError(f"On-demand feature view {self.view.name!r} gives a dict, got {type(row).__name__}.")
            self._require(row)
        names = [feature.name for feature in self.view.features]
        return self._outputs({name: [row[name] for row in rows] for name in names}, len(rows))

    def _named(self, columns: Columns) -> Columns:
        """The inputs under their bare names and, where the function mentions them, as `view__feature`."""
        return columns | {full: columns[bare] for full, bare in self._full_names.items() if bare in columns}

    def _require(self, result: Mapping[str, Any]) -> None:
        missing = [feature.name for feature in self.view.features if feature.name not in result]
        if missing:
            raise DataError(
                f"On-demand feature view {self.view.name!r} declares {missing[0]!r}, its function gives "
                f"{', '.join(map(str, result)) or 'nothing'}; return it, or take it out of the schema."
            )

    def _outputs(self, result: Mapping[str, Any], n: int) -> Columns:
        self._require(result)
        return {feature.name: self._output(feature, result[feature.name], n) for feature in self.view.features}

    def _output(self, feature: Column, values: Any, n: int) -> pa.Array:
        where = f"Feature {feature.name!r} of on-demand feature view {self.view.name!r}"
        if not hasattr(values, "__len__") or isinstance(values, str):
            raise DataError(f"{where} is a list of {n} values, got {type(values).__name__}; return one value per row.")
        if len(values) != n:
            raise DataError(f"{where} has {len(values)} values for {n} rows; return one value per row.")
        try:
            return _to_declared(values, feature.dtype)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise DataError(
                f"{where} is declared as {feature.dtype}: {error}; return or declare another type."
            ) from None


def _load(view: OnDemandView) -> Callable[[Any], Any]:
    namespace: dict[str, Any] = {"__name__": __name__}  # dataclasses look their module up in sys.modules
    try:
        exec(compile(view.code, f"<on-demand feature view {view.name}>", "exec"), namespace)
    except Exception as error:
        raise DataError(
            f"The function of on-demand feature view {view.name!r} cannot be loaded here: {type(error).__name__}: "
            f"{error}; install what it imports, or run headrace apply."
        ) from error
    function: Callable[[Any], Any] = namespace[view.function]
    return function


def _full_names(view: OnDemandView) -> dict[str, str]:
    """Feast's `view__feature` names that the code mentions, with the bare names."""
    names = {
        f"{name}__{feature}": feature
        for ref in view.inputs
        for name in (ref.view, ref.name)
        for feature in ref.features
    }
    return {full: bare for full, bare in names.items() if full in view.code}


def _length(columns: Columns) -> int:
    return len(next(iter(columns.values()))) if columns else 0


def _take(columns: Columns, rows: NDArray[np.int64]) -> Columns:
    indices = pa.array(rows)
    return {name: values.take(indices) for name, values in columns.items()}


def _is_null(values: pa.Array) -> NDArray[np.bool_]:
    nulls: NDArray[np.bool_] = np.asarray(pc.is_null(values))
    return nulls


def _incomplete(columns: Columns) -> NDArray[np.bool_]:
    """Which rows have a null input."""
    rows = np.zeros(_length(columns), np.bool_)
    for values in columns.values():
        if values.null_count:
            rows |= _is_null(values)
    return rows


def _null_groups(columns: Columns) -> Iterator[NDArray[np.int64]]:
    """Rows by their pattern of nulls in integer and boolean columns; one group if there are none."""
    exact = [v for v in columns.values() if pa.types.is_integer(v.type) or pa.types.is_boolean(v.type)]
    nulls = [_is_null(values) for values in exact if values.null_count]
    if not nulls:
        yield np.arange(_length(columns))
        return
    _, group = np.unique(np.stack(nulls, axis=1), axis=0, return_inverse=True)
    group = group.reshape(-1)
    for number in range(group.max() + 1):
        yield np.flatnonzero(group == number)


def _series(values: pa.Array) -> pd.Series[Any]:
    """A pandas column with one dtype per type: int64, float64 (NaN for null), object, datetime64[us, UTC]."""
    import pandas as pd

    if pa.types.is_boolean(values.type) and values.null_count:
        return pd.Series([None] * len(values), dtype=object)
    series: pd.Series[Any] = values.to_pandas()
    return series.astype("float64") if pa.types.is_integer(values.type) and values.null_count else series


def _to_declared(values: Any, dtype: DType) -> pa.Array:
    """A list, array or Series as an Arrow array of the declared type, NaN and infinities as nulls."""
    column = _as_arrow(values)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
    target = arrow_type(dtype)
    if pa.types.is_null(column.type) or column.null_count == len(column):
        return pa.nulls(len(column), target)
    _check_kind(column.type, dtype)
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(target)
    cast: pa.Array = column.cast(target, safe=not dtype.is_float)
    return cast


def _as_arrow(values: Any) -> Any:
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
    fits = {
        DType.STRING: pa.types.is_string(found) or pa.types.is_large_string(found),
        DType.BOOL: pa.types.is_boolean(found),
        DType.TIMESTAMP: pa.types.is_timestamp(found),
    }.get(dtype, numeric)
    if not fits:
        raise TypeError(f"the function gives {found}")
