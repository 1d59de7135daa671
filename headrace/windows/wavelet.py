"""Questions about the values of slices of an array, for many slices at once: how many lie below, which is the k-th.

A wavelet matrix: level by level, from the highest bit, values with a 0 move before those with a 1, and every slice
moves with its values. A level is made, asked and forgotten, so memory stays that of a few arrays, and a question costs
one step per bit however long its slice is.

Claude, Navarro, Ordonez: The wavelet matrix, Information Systems 47 (2015).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["count_below", "count_distinct", "kth_smallest"]

Ints = NDArray[np.int64]


def _levels(values: Ints) -> Iterator[tuple[int, Ints]]:
    """For every bit from the highest: its number, and how many of the first i values have a 0 there, n + 1 long."""
    for bit in range(int(values.max(initial=0)).bit_length() - 1, -1, -1):
        zero = (values >> bit) & 1 == 0
        yield bit, np.r_[0, np.cumsum(zero)]
        if bit:
            values = np.r_[values[zero], values[~zero]]


def count_below(values: Ints, lo: Ints, hi: Ints, bounds: Ints) -> Ints:
    """How many of values[lo:hi] are below the bound, slice by slice; `values` and `bounds` are >= 0."""
    top = int(values.max(initial=0)).bit_length()
    over = bounds >> top > 0
    found: Ints = np.where(over, hi - lo, 0)
    asked = np.flatnonzero(~over & (lo < hi))
    lo, hi, bounds = lo[asked], hi[asked], bounds[asked]
    below = np.zeros(len(asked), np.int64)
    for bit, zeros in _levels(values):
        lo0, hi0 = zeros[lo], zeros[hi]
        one = (bounds >> bit) & 1 == 1
        below += np.where(one, hi0 - lo0, 0)
        lo, hi = np.where(one, zeros[-1] + lo - lo0, lo0), np.where(one, zeros[-1] + hi - hi0, hi0)
    found[asked] = below
    return found


def kth_smallest(values: Ints, lo: Ints, hi: Ints, k: Ints) -> Ints:
    """The value at rank `k` (from 0) of the sorted values[lo:hi], slice by slice, none empty; `values` are >= 0."""
    found = np.zeros(len(k), np.int64)
    for bit, zeros in _levels(values):
        lo0, hi0 = zeros[lo], zeros[hi]
        one = k >= hi0 - lo0
        found |= one.astype(np.int64) << bit
        k = np.where(one, k - (hi0 - lo0), k)
        lo, hi = np.where(one, zeros[-1] + lo - lo0, lo0), np.where(one, zeros[-1] + hi - hi0, hi0)
    return found


def count_distinct(values: Ints, lo: Ints, hi: Ints) -> Ints:
    """How many different values each of values[lo:hi] has: those that occur for the first time since `lo`."""
    order = np.argsort(values, kind="stable")
    before = np.zeros(len(values), np.int64)  # 1 + the place of the one before, 0 for none
    same = values[order][1:] == values[order][:-1]
    before[order[1:][same]] = order[:-1][same] + 1
    return count_below(before, lo, hi, lo + 1)
