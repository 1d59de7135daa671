"""Random aggregations and events for the property tests."""

from __future__ import annotations

from hypothesis import strategies as st
from naive import NaiveEvent

from headrace.dtypes import DType
from headrace.windows.functions import Aggregation, output_dtype
from headrace.windows.window import default_hop_us

DTYPES = {
    "whole": DType.INT64,
    "short": DType.INT32,
    "real": DType.FLOAT64,
    "word": DType.STRING,
    "flag": DType.BOOL,
    "moment": DType.TIMESTAMP,
}
VALUES = {
    "whole": st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9),
    "short": st.integers(-(2**31), 2**31 - 1),
    "real": st.floats(-1e12, 1e12, allow_nan=False) | st.sampled_from([0.1, 1e-9, -0.0]),
    "word": st.text(max_size=5),
    "flag": st.booleans(),
    "moment": st.integers(-(2**50), 2**50),
}
ALLOWED = {
    name: ["count", "last", "first", "last_2", "first_3", "count_distinct", "count_distinct_2", "approx_count_distinct"]
    + (["sum", "mean"] if dtype.is_numeric or dtype is DType.BOOL else [])
    + (["var", "std", "approx_p50", "approx_p95"] if dtype.is_numeric else [])
    + (["min", "max"] if dtype.is_numeric or dtype is DType.TIMESTAMP else [])
    for name, dtype in DTYPES.items()
}
WINDOWS_S = (1, 2, 3, 7, 60, 61, 600, 3600, 5000)


def aggregation(function: str, column: str, window_s: int | None, hop_us: int | None = None) -> Aggregation:
    """One aggregation with its hop and types filled in as apply does."""
    dtype = DTYPES.get(column, DType.INT64)
    window_us = None if window_s is None else window_s * 1_000_000
    hop = hop_us or (default_hop_us(window_us) if window_us else 0)
    name = f"{function}_{column}_{window_s}"
    return Aggregation(name, function, column, window_us, hop, dtype, output_dtype(function, column, dtype))


EVERY = tuple(
    aggregation(function, column, window)
    for column, functions in [*ALLOWED.items(), ("*", ["count"])]
    for function in functions
    for window in (*WINDOWS_S, None)
)


def aggregations() -> st.SearchStrategy[list[Aggregation]]:
    return st.lists(st.sampled_from(EVERY), min_size=1, max_size=6, unique_by=lambda agg: agg.feature)


def times_us() -> st.SearchStrategy[int]:
    """Times that crowd together, meet on tile bounds, and now and then lie far away."""
    second = 1_000_000
    near = st.integers(0, 400 * second)
    bounds = st.integers(0, 8000).map(lambda n: n * 50_000)
    return near | bounds | st.integers(-5 * second, 5 * second) | st.integers(0, 20_000 * second)


@st.composite
def events(draw: st.DrawFn, max_size: int = 30) -> list[NaiveEvent]:
    """Events in position order, times in any order."""
    n = draw(st.integers(0, max_size))
    values = {name: draw(st.lists(st.none() | of, min_size=n, max_size=n)) for name, of in VALUES.items()}
    times = draw(st.lists(times_us(), min_size=n, max_size=n))
    keys = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    return [
        NaiveEvent(keys[i], times[i], (0, 1000 + i // 3, i % 3), {name: values[name][i] for name in VALUES})
        for i in range(n)
    ]
