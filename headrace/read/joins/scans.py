"""Rows of the past, as they are read: some at a time, as often as asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["PART", "OnRead", "RowScan", "SlimScan"]

OnRead = Callable[[int], None]
"""Called with how many rows of the files were read since the last call."""

PART = "row.part"
"""The column that numbers the rows that a transform made of one event."""


@dataclass(frozen=True, slots=True)
class RowScan:
    """`tables` gives the rows in no order, as tables of `schema`; the files that it reads have about `rows` rows."""

    schema: pa.Schema
    rows: int
    tables: Callable[[OnRead], Iterator[pa.Table]]
    slim: SlimScan | None = None


@dataclass(frozen=True, slots=True)
class SlimScan:
    """The same rows without their values, for one who will need few of them: `tables` are of `shape`, a RowShape, in
    which a row's last place is its number; `chosen` reads the rows of some numbers (rising) whole."""

    shape: Any
    tables: Callable[[OnRead], Iterator[pa.Table]]
    chosen: Callable[[NDArray[np.int64]], Iterator[pa.Table]]
