"""Join keys as small integers, so that a point-in-time join compares numbers whatever the keys are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

__all__ = ["KeyCodes"]

Ints = NDArray[np.int64]

_TABLE_SIZE = 1 << 22


class KeyCodes:
    """int64 codes for the keys of label rows; `labels` holds the code of every row, -1 for a null key.

    A view without join keys gives every row the code 0.
    """

    def __init__(self, columns: Sequence[pa.Array[Any]], rows: int) -> None:
        self._steps: list[tuple[_Values, Ints]] = []
        codes = np.zeros(rows, np.int64)
        for number, column in enumerate(columns):
            values = _Values(column)
            mixed = _mixed(codes, column, values)
            if number:
                rising = np.sort(mixed[mixed >= 0])
                seen = rising[np.r_[True, rising[1:] != rising[:-1]][: len(rising)]]
                codes = _places(mixed, seen)
            else:  # every value has been seen
                seen, codes = np.empty(0, np.int64), mixed
            self._steps.append((values, seen))
        self.labels: Ints = codes

    def of(self, columns: Sequence[pa.Array[Any]], rows: int) -> Ints:
        """The codes of other rows' keys (columns in the same order), -1 for a null key and one no label has."""
        codes = np.zeros(rows, np.int64)
        for number, (column, (values, seen)) in enumerate(zip(columns, self._steps, strict=True)):
            mixed = _mixed(codes, column.cast(values.known.type), values)
            codes = _places(mixed, seen) if number else mixed
        return codes


class _Values:
    """The different values of a column, and where among them a value stands."""

    def __init__(self, column: pa.Array[Any]) -> None:
        self.known: Any = pc.drop_null(pc.unique(column))
        self._first, self._table = 0, None
        if pa.types.is_integer(column.type) and len(self.known):
            numbers = np.asarray(self.known).astype(np.int64)
            self._first, last = int(numbers.min()), int(numbers.max())
            if last - self._first < max(_TABLE_SIZE, len(numbers)):
                self._table = np.full(last - self._first + 3, -1, np.int64)
                self._table[numbers - self._first + 1] = np.arange(len(numbers))

    def places(self, column: pa.Array[Any]) -> Ints:
        """The place of each value, -1 for null and an unknown one."""
        if self._table is None:
            found: Ints = np.asarray(pc.fill_null(pc.index_in(column, value_set=self.known), -1)).astype(np.int64)
            return found
        numbers = np.asarray(pc.fill_null(column, self._first - 1) if column.null_count else column).astype(np.int64)
        last = self._first + len(self._table) - 2
        return self._table[np.clip(numbers, self._first - 1, last) - (self._first - 1)]


def _mixed(codes: Ints, column: Any, values: _Values) -> Ints:
    part = values.places(column)
    mixed: Ints = np.where((codes < 0) | (part < 0), -1, codes * max(len(values.known), 1) + part)
    return mixed


def _places(mixed: Ints, seen: Ints) -> Ints:
    if not len(seen):
        return np.full(len(mixed), -1, np.int64)
    at = np.minimum(np.searchsorted(seen, mixed), len(seen) - 1)
    places: Ints = np.where(seen[at] == mixed, at, -1)
    return places
