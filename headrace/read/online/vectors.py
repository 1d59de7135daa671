"""One view's features for the rows of a request, in the form that was cheapest to read: Python's values, or arrays.

Both forms give the same columns, bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Column
from headrace.dtypes import arrow_type
from headrace.stores.codec.rows import stored_array

__all__ = ["NOT_FOUND", "NULL_VALUE", "OUTSIDE_MAX_AGE", "PRESENT", "FewRows", "Line", "ManyRows", "Vector"]

Ints = NDArray[np.int64]
Codes = NDArray[np.uint8]

PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE = range(4)

Line = tuple[int, int, Sequence[Any], bool]
"""One row of one view: its status, the time of the newest event behind it (0 for none), its features as Python's values
(timestamps as microseconds, None for null), and whether none of them is null."""


@dataclass(slots=True)
class FewRows:
    """Rows as Python's values, in the features' order: timestamps as microseconds, None for null.

    `statuses` and `times_us` are per row: the status of a feature that is not null, and the time of the newest event
    behind the row, 0 for none. `out_of_range` says how many values of which features are null because their type or
    their bound cannot hold them.
    """

    features: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    statuses: Sequence[int]
    times_us: Sequence[int]
    out_of_range: Mapping[str, int] = field(default_factory=dict)

    def array(self, feature: int) -> pa.Array:
        """One feature, typed."""
        return pa.array([row[feature] for row in self.rows], arrow_type(self.features[feature].dtype))

    def array_of(self, name: str) -> pa.Array:
        """`array` of the feature called so."""
        return self.array(_place(self.features, name))

    def statuses_of(self, feature: int) -> Codes:
        """The status of every row of one feature."""
        pairs = zip(self.rows, self.statuses, strict=True)
        return np.array([_status(row[feature] is None, status) for row, status in pairs], np.uint8)


def _place(features: Sequence[Column], name: str) -> int:
    return next(place for place, feature in enumerate(features) if feature.name == name)


def _status(missing: bool, status: int) -> int:
    return NULL_VALUE if missing and status == PRESENT else status


@dataclass(slots=True)
class Vector:
    """One feature: an array as stored (timestamps int64, bools uint8) or a list of strings, null where `missing` (None:
    nowhere); or a column of Arrow, which knows its nulls."""

    values: Any
    missing: NDArray[np.bool_] | None = None


@dataclass(slots=True)
class ManyRows:
    """Rows as one vector per feature; all else as in FewRows, in arrays."""

    features: Sequence[Column]
    vectors: list[Vector]
    statuses: Codes
    times_us: Ints
    out_of_range: Mapping[str, int] = field(default_factory=dict)

    def array(self, feature: int) -> pa.Array:
        """One feature, typed."""
        vector, dtype = self.vectors[feature], self.features[feature].dtype
        if isinstance(vector.values, pa.Array):
            return vector.values
        return stored_array(vector.values, vector.missing, dtype)

    def missing(self, feature: int) -> NDArray[np.bool_] | None:
        """Which rows of one feature are null, None for none."""
        vector = self.vectors[feature]
        if not isinstance(vector.values, pa.Array):
            return vector.missing
        return np.asarray(vector.values.is_null()) if vector.values.null_count else None

    def array_of(self, name: str) -> pa.Array:
        """`array` of the feature called so."""
        return self.array(_place(self.features, name))

    def statuses_of(self, feature: int) -> Codes:
        """The status of every row of one feature."""
        missing = self.missing(feature)
        if missing is None:
            return self.statuses
        found: Codes = np.where(missing & (self.statuses == PRESENT), np.uint8(NULL_VALUE), self.statuses)
        return found
