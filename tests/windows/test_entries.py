from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveEvent, agree, window_value
from strategies import DTYPES, EVERY, aggregation, events, times_us

from headrace.dtypes import arrow_type
from headrace.windows.aggregates import state_fields
from headrace.windows.entries import (
    EntryList,
    EntryRows,
    Places,
    empty_entries,
    entry_lists,
    lift_entries,
    list_of,
    merge_entries,
    read_entries,
)
from headrace.windows.functions import Aggregation
from headrace.windows.sketches import buckets, estimate_distinct, midpoints, registers

LISTED = [agg for agg in EVERY if not state_fields(agg)]


def lifted(held: EntryList, batch: list[NaiveEvent]) -> EntryRows:
    columns = {name: pa.array([e.values[name] for e in batch], arrow_type(dtype)) for name, dtype in DTYPES.items()}
    keys, times = np.array([e.key for e in batch], np.int64), np.array([e.time_us for e in batch], np.int64)
    partition, offset, index = np.array([e.position for e in batch], np.int64).reshape(-1, 3).T
    return lift_entries(held, keys, times, columns, Places(partition, offset, index << 16))


def newest_by_key(history: list[NaiveEvent]) -> np.ndarray:
    return np.array([max([e.time_us for e in history if e.key == key], default=-(2**60)) for key in range(3)], np.int64)


def plain(column: pa.Array) -> list[object]:
    if pa.types.is_list(column.type) and pa.types.is_timestamp(column.type.value_type):
        column = column.cast(pa.list_(pa.int64()))
    return (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()


def merged(held: EntryList, order: list[NaiveEvent], batch_size: int) -> EntryRows:
    kept = empty_entries(held)
    for start in range(0, len(order), batch_size):
        delta = lifted(held, order[start : start + batch_size])
        kept = merge_entries(held, kept, delta, newest_by_key(order[: start + batch_size]))
    return kept


@given(events(), st.lists(st.sampled_from(LISTED), min_size=1, max_size=5), st.integers(1, 9), times_us(), st.data())
@settings(max_examples=300, deadline=None)
def test_lists_of_any_batching_equal_the_loop(
    history: list[NaiveEvent], aggs: list[Aggregation], batch_size: int, later_us: int, data: st.DataObject
) -> None:
    lists = entry_lists(aggs)
    order = data.draw(st.permutations(history))
    rows = [merged(held, order, batch_size) for held in lists]
    t_us = np.array([max([e.time_us + 1 for e in history if e.key == key] + [later_us]) for key in range(4)], np.int64)
    for agg in aggs:
        number = list_of(lists, agg)
        assert number is not None
        got = read_entries(lists[number], agg, rows[number], t_us)
        assert got.type == arrow_type(agg.dtype)
        for key, (t, value) in enumerate(zip(t_us.tolist(), plain(got), strict=True)):
            assert agree(value, window_value(agg, history, key, t)), (agg, key, t)


@given(events(), st.sampled_from(LISTED), st.integers(1, 9), st.data())
@settings(deadline=None)
def test_order_and_batches_leave_no_trace(
    history: list[NaiveEvent], agg: Aggregation, batch_size: int, data: st.DataObject
) -> None:
    (held,) = entry_lists([agg])
    one = merged(held, history, len(history) or 1)
    other = merged(held, data.draw(st.permutations(history)), batch_size)
    assert one.keys.tolist() == other.keys.tolist()
    assert all(one.columns[name].tolist() == other.columns[name].tolist() for name in one.columns)
    assert one.text is None or one.text.tolist() == other.text.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("n", [0, 1, 10, 1_000, 30_000, 1_000_000])
def test_distinct_counts_are_within_their_error(n: int) -> None:
    register, rank = registers(np.arange(n, dtype=np.int64) * 7)
    ranks = np.zeros((1, 2048), np.uint8)
    np.maximum.at(ranks[0], register, rank.astype(np.uint8))
    assert abs(int(estimate_distinct(ranks)[0]) - n) <= 4 * 0.023 * n


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_a_bucket_stands_for_its_values_within_one_percent(values: list[float]) -> None:
    given_values = np.array(values)
    shown = midpoints(buckets(given_values))
    tiny = np.abs(given_values) < np.finfo(np.float64).tiny
    assert (shown[tiny] == 0).all()
    assert (np.abs(shown - given_values)[~tiny] <= 0.0100001 * np.abs(given_values)[~tiny]).all()
    order = np.argsort(given_values)
    assert (np.diff(buckets(given_values)[order]) >= 0).all()


def test_one_list_serves_all_windows_of_a_column() -> None:
    aggs = [aggregation(f, "word", w) for f in ("last", "last_2", "count_distinct") for w in (60, 3600)]
    assert [(held.kind, held.keep) for held in entry_lists(aggs)] == [("distinct", 1000), ("last", 2)]
