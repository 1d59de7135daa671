"""A view's transform on a batch of events: the user's function, its rows traced back to their events and typed.

The frame that a function gets has the source's columns and `_row`, by which each row that it gives is traced to its
event; the function may filter, derive and explode, and keeps `_row`. Where it fails on a batch the batch is halved
until the rows that it fails on stand alone: one poisonous event costs one event, whatever batch it came in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Transform
from headrace.compute.frames import Columns, load_function, null_groups, series, take, to_declared
from headrace.dtypes import DType, arrow_type

__all__ = ["ROW", "BadShapeError", "BadTypeError", "Transformed", "apply_transform"]

Ints = NDArray[np.int64]

ROW = "_row"
MOST_PARTS = 1 << 16


class BadShapeError(Exception):
    """What a function gave is no frame with `_row` and the declared columns."""


class BadTypeError(ValueError):
    """A column that a function gave holds what its declared type cannot."""


@dataclass(slots=True)
class Transformed:
    """What became of a batch: n rows in the order of their events, `row` the event of each, `part` its number among
    the rows of its event; `failed` holds why by event, for those that became none because the function failed."""

    columns: Columns
    row: Ints
    part: Ints
    failed: dict[int, Exception] = field(default_factory=dict)

    def keep(self, good: NDArray[np.bool_]) -> None:
        """Leave out rows; those of one event stay or go together."""
        chosen = np.flatnonzero(good)
        self.columns, self.row, self.part = take(self.columns, chosen), self.row[chosen], self.part[chosen]


def apply_transform(transform: Transform, columns: Mapping[str, pa.Array], who: str) -> Transformed:
    """Run the transform over events, at least the columns of the source. Raises DataError if its code cannot be run
    here; whatever the function itself raises is told by event."""
    given, failed = dict(columns), dict[int, Exception]()
    function = _function(transform.code, transform.function, who)
    n = len(next(iter(given.values())))
    groups = list(null_groups(given)) if transform.mode == "pandas" else [np.arange(n)]
    parts: list[tuple[Ints, Columns]] = []
    for rows in groups:
        frame = _FRAMES[transform.mode](given if len(groups) == 1 else take(given, rows))
        for event, error in _run_halving(transform, function, frame, rows, parts):
            failed[event] = error
    return _joined(transform, parts, failed)


def _run_halving(
    transform: Transform, function: Callable[[Any], Any], frame: _Frame, rows: Ints, parts: list[tuple[Ints, Columns]]
) -> Iterator[tuple[int, Exception]]:
    """Add what the function gives for `frame`, the frame of the events `rows`, to `parts`; the events that it fails
    on, each alone, with the reason."""
    waiting = [(0, len(rows))] if len(rows) else []
    while waiting:
        start, stop = waiting.pop()
        try:
            numbers, columns = _attempt(transform, frame.call(function, start, stop), start, stop)
            parts.append((rows[numbers], columns))
        except Exception as error:  # a user's function may raise anything
            if stop - start == 1:
                yield int(rows[start]), error
            else:
                middle = (start + stop) // 2
                waiting += [(start, middle), (middle, stop)]


@lru_cache(maxsize=256)
def _function(code: str, name: str, who: str) -> Callable[[Any], Any]:
    return load_function(code, name, who)


def _attempt(transform: Transform, given: Mapping[str, Any], start: int, stop: int) -> tuple[Ints, Columns]:
    """What a function gave for the events start to stop - 1 of its frame: the event of every row, the rows typed."""
    for name in (ROW, *(column.name for column in transform.columns)):
        if name not in given:
            held = ", ".join(given) or "none"
            remedy = "keep _row, by which rows are traced" if name == ROW else "return it, or declare other columns"
            raise BadShapeError(f"the function gives no column {name!r} (it gives: {held}); {remedy}")
    events = to_declared(given[ROW], DType.INT64)
    numbers = np.asarray(events.drop_null())
    if len(numbers) and (numbers.min() < start or numbers.max() >= stop):
        raise BadShapeError(f"the function changes {ROW}; keep it as it is")
    if len(numbers) and np.bincount(numbers - start).max() > MOST_PARTS:
        raise BadShapeError(f"the function makes over {MOST_PARTS} rows of one event; make fewer")
    typed = {c.name: _typed(given[c.name], c.name, c.dtype) for c in transform.columns}
    if events.null_count:  # of no event: pandas makes such rows where a column is assigned to an empty frame
        typed = {name: values.filter(events.is_valid()) for name, values in typed.items()}
    return numbers, typed


def _typed(values: Any, name: str, dtype: DType) -> pa.Array:
    try:
        return to_declared(values, dtype, refuse_infinities=True)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise BadTypeError(f"{name} must be {dtype}: {error}") from error


class _Frame(Protocol):
    """Events as a frame of the user's library, `_row` among its columns."""

    def call(self, function: Callable[[Any], Any], start: int, stop: int) -> Mapping[str, Any]:
        """The columns that the function gives for the rows start to stop - 1, which it may change in place."""


class _PandasFrame:
    def __init__(self, columns: Columns) -> None:
        import pandas as pd

        self._frame = pd.DataFrame({name: series(values) for name, values in columns.items()})
        self._frame[ROW] = np.arange(len(self._frame))

    def call(self, function: Callable[[Any], Any], start: int, stop: int) -> Mapping[str, Any]:
        import pandas as pd

        result = function(self._frame.iloc[start:stop].reset_index(drop=True))
        if not isinstance(result, pd.DataFrame):
            raise BadShapeError(f"the function gives {type(result).__name__}, not a pandas DataFrame; return one")
        if not result.columns.is_unique:
            raise BadShapeError("the function gives two columns of one name; rename one")
        return {str(name): result[name] for name in result.columns}


class _PolarsFrame:
    def __init__(self, columns: Columns) -> None:
        import polars as pl

        numbers = pa.array(np.arange(len(next(iter(columns.values())))))
        frame = pl.from_arrow(pa.table({**columns, ROW: numbers}))
        assert isinstance(frame, pl.DataFrame)
        self._frame = frame

    def call(self, function: Callable[[Any], Any], start: int, stop: int) -> Mapping[str, Any]:
        import polars as pl

        result = function(self._frame.slice(start, stop - start))
        if isinstance(result, pl.LazyFrame):
            result = result.collect()
        if not isinstance(result, pl.DataFrame):
            raise BadShapeError(f"the function gives {type(result).__name__}, not a Polars DataFrame; return one")
        return {column.name: column for column in result.get_columns()}


_FRAMES: Mapping[str, Callable[[Columns], _Frame]] = {"pandas": _PandasFrame, "polars": _PolarsFrame}


def _joined(transform: Transform, parts: list[tuple[Ints, Columns]], failed: dict[int, Exception]) -> Transformed:
    """All attempts together, in the order of events, the rows of one event in the order given."""
    rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in parts)])
    order = np.argsort(rows, kind="stable")
    in_order = bool((np.diff(rows) >= 0).all())
    columns = {}
    for column in transform.columns:
        values = pa.concat_arrays([pa.nulls(0, arrow_type(column.dtype)), *(held[column.name] for _, held in parts)])
        columns[column.name] = values if in_order else values.take(pa.array(order))
    rows = rows[order]
    return Transformed(columns, rows, np.arange(len(rows)) - np.searchsorted(rows, rows), failed)
