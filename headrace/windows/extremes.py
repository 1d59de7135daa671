"""The least and the largest of slices of an array, for many slices at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["merge_extremes"]

Ints = NDArray[np.int64]


def merge_extremes(out: NDArray[Any], values: NDArray[Any], lo: Ints, hi: Ints, ufunc: np.ufunc) -> None:
    """Merges into `out` (n) what `ufunc` (np.minimum or np.maximum) makes of values[lo:hi], slice by slice; an empty
    slice leaves it.

    A slice is covered by two pieces of the largest power of two that it holds. What all pieces of one size come to is
    one array operation on those of half the size, so a level is made, asked and forgotten.
    """
    sizes = hi - lo
    levels = np.frexp(np.maximum(sizes, 0))[1].astype(np.uint8)  # 0 for none, else 1 + log2 of the piece
    order = np.argsort(levels, kind="stable")
    cuts = np.searchsorted(levels[order], np.arange(int(levels.max(initial=0)) + 2))
    pieces = values
    for level, (start, stop) in enumerate(zip(cuts[1:-1].tolist(), cuts[2:].tolist(), strict=True)):
        width = 1 << level
        if level:
            pieces = ufunc(pieces[: -(width // 2)], pieces[width // 2 :])
        if start < stop:
            rows = order[start:stop]
            out[rows] = ufunc(out[rows], ufunc(pieces[lo[rows]], pieces[hi[rows] - width]))
