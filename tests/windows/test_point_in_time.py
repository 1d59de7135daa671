from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import UNSEEN, NaiveEvent, agree, magnitude, plain_row, window_value
from strategies import DTYPES, EVERY, aggregation, aggregations, events, times_us

from headrace.dtypes import arrow_type
from headrace.windows.aggregates import StateField
from headrace.windows.functions import Aggregation, parse_function
from headrace.windows.point_in_time import aggregate_windows, latest_rows, range_merge


def columns_of(history: list[NaiveEvent]) -> dict[str, pa.Array]:
    return {name: pa.array([e.values[name] for e in history], arrow_type(dtype)) for name, dtype in DTYPES.items()}


def plain(column: pa.Array) -> list[object]:
    if pa.types.is_list(column.type) and pa.types.is_timestamp(column.type.value_type):
        column = column.cast(pa.list_(pa.int64()))
    return (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()


def arrays(history: list[NaiveEvent]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([e.key for e in history], np.int64), np.array([e.time_us for e in history], np.int64)


@given(events(), aggregations(), st.lists(st.tuples(st.integers(-1, 3), times_us()), min_size=1, max_size=12))
@settings(max_examples=300, deadline=None)
def test_the_kernel_equals_the_loop(
    history: list[NaiveEvent], aggs: list[Aggregation], labels: list[tuple[int, int]]
) -> None:
    label_keys, label_times = (np.array(part, np.int64) for part in zip(*labels, strict=True))
    got = aggregate_windows(*arrays(history), columns_of(history), label_keys, label_times, aggs)
    for agg in aggs:
        assert got[agg.feature].type == arrow_type(agg.dtype)
        for (key, t_us), value in zip(labels, plain(got[agg.feature]), strict=True):
            truth = window_value(agg, history, key, t_us)
            assert agree(value, truth, magnitude(agg, history, key, t_us)), (agg, key, t_us)


@pytest.mark.parametrize("agg", EVERY, ids=lambda agg: agg.feature)
def test_no_event_at_or_after_t_counts(agg: Aggregation) -> None:
    t_us = 10_000_000_000
    values = {"whole": 1, "short": 1, "real": 1.0, "word": "x", "flag": True, "moment": 1}
    future = [NaiveEvent(0, t_us + late, (0, 1, late), values) for late in range(3)]
    got = aggregate_windows(*arrays(future), columns_of(future), np.array([0]), np.array([t_us]), [agg])
    assert got[agg.feature].to_pylist() == [0 if "count" in parse_function(agg.function).base else None]


def test_an_integer_sum_that_overflows_is_null_and_one_that_comes_back_is_not() -> None:
    big = 2**63 - 1
    history = [NaiveEvent(0, i, (0, i, 0), {"whole": v}) for i, v in enumerate([big, big, -big, 5])]
    agg = aggregation("sum", "whole", None)
    got = aggregate_windows(
        *arrays(history),
        {"whole": pa.array([e.values["whole"] for e in history], pa.int64())},
        np.zeros(4, np.int64),
        np.arange(1, 5),
        [agg],
    )
    assert got[agg.feature].to_pylist() == [big, None, big, None]


def test_a_small_sum_beside_a_huge_key_keeps_its_digits() -> None:
    history = [NaiveEvent(0, i, (0, i, 0), {"real": 1e15}) for i in range(1000)]
    history.append(NaiveEvent(1, 5, (0, 2000, 0), {"real": 1e-6}))
    agg = aggregation("sum", "real", 60)
    columns = {"real": pa.array([e.values["real"] for e in history])}
    got = aggregate_windows(*arrays(history), columns, np.array([1]), np.array([1_000_000]), [agg])
    assert got[agg.feature].to_pylist() == [1e-6]


@given(st.lists(st.integers(-5, 5), max_size=40), st.data())
def test_range_merge_equals_slices(values: list[int], data: st.DataObject) -> None:
    bound = st.integers(0, len(values))
    pairs = data.draw(st.lists(st.tuples(bound, bound), min_size=1, max_size=10))
    lo, hi = (np.array(part, np.int64) for part in zip(*pairs, strict=True))
    field = StateField("rows", "*", False)
    got = range_merge({field: np.array(values, np.int64)}, lo, hi)[field]
    assert got.tolist() == [sum(values[a:b]) for a, b in pairs]


@given(events(), st.lists(st.tuples(st.integers(-1, 3), times_us()), min_size=1, max_size=10))
@settings(deadline=None)
def test_latest_rows_equal_the_loop(history: list[NaiveEvent], labels: list[tuple[int, int]]) -> None:
    label_keys, label_times = (np.array(part, np.int64) for part in zip(*labels, strict=True))
    rows = latest_rows(*arrays(history), label_keys, label_times)
    for (key, t_us), row in zip(labels, rows, strict=True):
        truth = plain_row(history, key, t_us, 0)
        assert (row < 0) if truth is UNSEEN else history[row].values == truth
