"""On-demand feature views: the user's function, called alike for a lookup and for a training set.

A function is row-wise, so a row's features must not depend on which rows it is computed with. Two things in
pandas would make them: an integer column turns to float where some row is null, and one bad row fails its batch.
Hence rows with the same nulls in integer and boolean columns are computed together (such a column is all there, or
all null), and where a batch fails, each of its rows with a null input is computed alone and reads null if it fails.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.catalog.definitions import Column, OnDemandView
from headrace.compute.frames import Columns, load_function, null_groups, series, take, to_declared
from headrace.dtypes import arrow_type
from headrace.errors import DataError

__all__ = ["OnDemandFunction"]


class OnDemandFunction:
    """A view's function, loaded from the source that the catalog carries."""

    def __init__(self, view: OnDemandView) -> None:
        """Runs the carried module. Raises DataError if it cannot be loaded."""
        self.view = view
        self._function = load_function(view.code, view.function, f"on-demand feature view {view.name!r}")
        self._run = {"pandas": self._pandas, "python": self._python, "singleton": self._singleton}[view.mode]
        self._full_names = _full_names(view)

    def compute(self, inputs: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
        """The view's features, in declared order and type; NaN and infinities are null.

        `inputs` maps each input's bare name to an array in its declared type, all of one length. Raises DataError
        naming the view if the function fails on a row without nulls, or returns another number of rows, lacks a
        feature, or gives a value that its type cannot hold.
        """
        columns = dict(inputs)
        groups = list(null_groups(columns)) if self.view.mode == "pandas" else []
        if len(groups) < 2:
            return self._resilient(columns)
        parts = [self._resilient(take(columns, rows)) for rows in groups]
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
        complete = self._complete(take(columns, np.flatnonzero(~incomplete)))
        alone = [self._alone(take(columns, np.array([row]))) for row in np.flatnonzero(incomplete)]
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
        missing = self._missing_input(error)
        if missing is not None:
            inputs = ", ".join(self._inputs()) or "none"
            return DataError(
                f"On-demand feature view {self.view.name!r} reads {missing!r}, which is none of its inputs: {inputs}; "
                "correct the name, or add the view's feature or the request field to its sources."
            )
        return DataError(
            f"On-demand feature view {self.view.name!r} failed: {type(error).__name__}: {error}; "
            "its function must accept every value of its inputs' types, give null for one that it cannot use."
        )

    def _inputs(self) -> list[str]:
        features = [name for reference in self.view.inputs for name in reference.features]
        return [*features, *(column.name for column in self.view.request)]

    def _missing_input(self, error: Exception) -> str | None:
        """The name that the function asked its inputs for in vain: one that its code writes out."""
        name = error.args[0] if isinstance(error, KeyError) and error.args else getattr(error, "name", None)
        known = {*self._inputs(), *self._full_names}
        if not isinstance(error, KeyError | AttributeError) or not isinstance(name, str) or name in known:
            return None
        if isinstance(error, AttributeError):
            return name if type(error.obj).__name__ == "DataFrame" else None
        written = _texts(self.view.code)
        if name not in written and name.endswith(
            ("not in index", "are in the [columns]")
        ):  # pandas, of a list of names
            return next((text for text in written - known if repr(text) in name), None)
        return name if name in written else None

    def _pandas(self, columns: Columns) -> Columns:
        import pandas as pd

        frame = pd.DataFrame({name: series(values) for name, values in self._named(columns).items()})
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
            return to_declared(values, feature.dtype)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise DataError(
                f"{where} is declared as {feature.dtype}: {error}; return or declare another type."
            ) from None


def _texts(code: str) -> set[str]:
    """The string literals in `code`."""
    nodes = ast.walk(ast.parse(code))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


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
