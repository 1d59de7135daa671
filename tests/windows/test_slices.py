"""Slices of arrays: extremes, counts, ranks and distinct values against the loop."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.windows.extremes import merge_extremes
from headrace.windows.wavelet import count_below, count_distinct, kth_smallest

VALUES = st.lists(st.integers(0, 40) | st.integers(0, 2**40), max_size=40)


@st.composite
def slices(draw: st.DrawFn, n: int) -> tuple[np.ndarray, np.ndarray]:
    bound = st.integers(0, n)
    pairs = [sorted(pair) for pair in draw(st.lists(st.tuples(bound, bound), min_size=1, max_size=10))]
    return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])


@given(VALUES, st.data())
def test_extremes(values: list[int], data: st.DataObject) -> None:
    lo, hi = data.draw(slices(len(values)))
    for ufunc, plain, held in ((np.maximum, max, 7), (np.minimum, min, 30)):
        out = np.full(len(lo), held)
        merge_extremes(out, np.array(values, np.int64), lo, hi, ufunc)
        assert out.tolist() == [plain([held, *values[a:b]]) for a, b in zip(lo, hi, strict=True)]


@given(VALUES, st.data())
def test_counts(values: list[int], data: st.DataObject) -> None:
    lo, hi = data.draw(slices(len(values)))
    bounds = np.array(data.draw(st.lists(st.integers(0, 2**41), min_size=len(lo), max_size=len(lo))))
    parts = [values[a:b] for a, b in zip(lo, hi, strict=True)]
    array = np.array(values, np.int64)
    below = [sum(value < bound for value in part) for part, bound in zip(parts, bounds.tolist(), strict=True)]
    assert count_below(array, lo, hi, bounds).tolist() == below
    assert count_distinct(array, lo, hi).tolist() == [len(set(part)) for part in parts]


@given(VALUES, st.data())
def test_ranks(values: list[int], data: st.DataObject) -> None:
    lo, hi = data.draw(slices(len(values)))
    lo, hi = lo[lo < hi], hi[lo < hi]
    ranks = np.array([data.draw(st.integers(0, b - a - 1)) for a, b in zip(lo.tolist(), hi.tolist(), strict=True)], int)
    found = kth_smallest(np.array(values, np.int64), lo, hi, ranks)
    assert found.tolist() == [sorted(values[a:b])[k] for a, b, k in zip(lo, hi, ranks, strict=True)]
