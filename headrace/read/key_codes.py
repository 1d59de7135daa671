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


class KeyCodes:
    """int64 codes for the keys of label rows; `labels` holds the code of every row, -1 for a null key.

    A view without join keys gives every row the code 0.
    """

    def __init__(self, columns: Sequence[pa.Array[Any]], rows: int) -> None:
        self._steps: list[tuple[Any, Ints]] = []
        codes = np.zeros(rows, np.int64)
        for column in columns:
            values = pc.drop_null(pc.unique(column))
            mixed = _mixed(codes, column, values)
            seen = np.unique(mixed[mixed >= 0])
            self._steps.append((values, seen))
            codes = _places(mixed, seen)
        self.labels: Ints = codes

    def of(self, columns: Sequence[pa.Array[Any]], rows: int) -> Ints:
        """The codes of other rows' keys (columns in the same order), -1 for a null key and one no label has."""
        codes = np.zeros(rows, np.int64)
        for column, (values, seen) in zip(columns, self._steps, strict=True):
            codes = _places(_mixed(codes, column.cast(values.type), values), seen)
        return codes


def _mixed(codes: Ints, column: Any, values: Any) -> Ints:
    part = np.asarray(pc.fill_null(pc.index_in(column, value_set=values), -1)).astype(np.int64)
    mixed: Ints = np.where((codes < 0) | (part < 0), -1, codes * max(len(values), 1) + part)
    return mixed


def _places(mixed: Ints, seen: Ints) -> Ints:
    if not len(seen):
        return np.full(len(mixed), -1, np.int64)
    at = np.minimum(np.searchsorted(seen, mixed), len(seen) - 1)
    places: Ints = np.where(seen[at] == mixed, at, -1)
    return places
