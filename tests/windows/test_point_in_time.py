from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import UNSEEN, NaiveEvent, agree, known_at, magnitude, plain_row, window_value
from strategies import DTYPES, EVERY, aggregation, aggregations, events, times_us

from headrace.dtypes import arrow_type
from headrace.windows.functions import Aggregation, parse_function
from headrace.windows.latest import LatestJoin, latest_rows
from headrace.windows.point_in_time import Events, WindowJoin, aggregate_windows


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


@given(events(), st.lists(st.tuples(st.integers(-1, 3), times_us()), min_size=1, max_size=10))
@settings(deadline=None)
def test_latest_rows_equal_the_loop(history: list[NaiveEvent], labels: list[tuple[int, int]]) -> None:
    label_keys, label_times = (np.array(part, np.int64) for part in zip(*labels, strict=True))
    rows = latest_rows(*arrays(history), label_keys, label_times)
    for (key, t_us), row in zip(labels, rows, strict=True):
        truth = plain_row(history, key, t_us, 0)
        assert (row < 0) if truth is UNSEEN else history[row].values == truth


def parts_of(history: list[NaiveEvent], data: st.DataObject) -> list[tuple[Events, np.ndarray]]:
    """The events shuffled and cut into parts, each with its arrival times."""
    shuffled = data.draw(st.permutations(history))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(history)), max_size=4)))
    found = []
    for start, stop in pairwise([0, *cuts, len(history)]):
        part = shuffled[start:stop]
        places = tuple(np.array([e.position[i] for e in part], np.int64) for i in range(3))
        arrivals = np.array([e.arrival_us for e in part], np.int64)
        found.append((Events(*arrays(part), columns_of(part), places), arrivals))
    return found


def arrived(history: list[NaiveEvent], data: st.DataObject) -> list[NaiveEvent]:
    """The events, some of them arriving late, some before they happened."""
    late = st.sampled_from([0, 0, 1, -1, 1_000_000]) | st.integers(-(10**8), 10**9)
    return [replace(event, arrival_us=event.time_us + data.draw(late)) for event in history]


LABELS = st.lists(st.tuples(st.integers(-1, 3), times_us()), min_size=1, max_size=12)


@given(events(), aggregations(), LABELS, st.data())
@settings(max_examples=80, deadline=None)
def test_parts_in_any_order_give_the_same_to_the_last_bit(
    history: list[NaiveEvent], aggs: list[Aggregation], labels: list[tuple[int, int]], data: st.DataObject
) -> None:
    label_keys, label_times = (np.array(part, np.int64) for part in zip(*labels, strict=True))
    join = WindowJoin(label_keys, label_times, aggs)
    for part, _ in parts_of(history, data):
        join.add(part)
    whole = aggregate_windows(*arrays(history), columns_of(history), label_keys, label_times, aggs)
    got = join.columns()
    assert all(got[name].equals(column) for name, column in whole.items())


@given(events(), aggregations(), LABELS, st.data())
@settings(max_examples=80, deadline=None)
def test_as_known_equals_the_loop_over_what_had_arrived(
    history: list[NaiveEvent], aggs: list[Aggregation], labels: list[tuple[int, int]], data: st.DataObject
) -> None:
    history = arrived(history, data)
    label_keys, label_times = (np.array(part, np.int64) for part in zip(*labels, strict=True))
    join = WindowJoin(label_keys, label_times, aggs)
    for part, arrivals in parts_of(history, data):
        join.add_known(part, arrivals)
    got = join.columns()
    for agg in aggs:
        for (key, t_us), value in zip(labels, plain(got[agg.feature]), strict=True):
            known = known_at(history, t_us)
            truth = window_value(agg, known, key, t_us)
            assert agree(value, truth, magnitude(agg, known, key, t_us)), (agg, key, t_us)


SCHEMA = pa.schema([pa.field(name, arrow_type(dtype)) for name, dtype in DTYPES.items()])


@pytest.mark.parametrize("as_known", [False, True])
@given(history=events(), labels=LABELS, ttl_us=st.sampled_from([0, 1, 60_000_000]), data=st.data())
@settings(deadline=None)
def test_the_newest_row_of_parts_equals_the_loop(
    history: list[NaiveEvent], labels: list[tuple[int, int]], ttl_us: int, data: st.DataObject, as_known: bool
) -> None:
    history = arrived(history, data)
    label_keys, label_times = (np.array(part, np.int64) for part in zip(*labels, strict=True))
    join = LatestJoin(label_keys, label_times, SCHEMA, ttl_us, 3)
    for part, arrivals in parts_of(history, data):
        if as_known:
            join.add_known(part, arrivals)
        else:
            join.add(part)
    got = {name: plain(column) for name, column in join.columns().items()}
    for row, (key, t_us) in enumerate(labels):
        truth = plain_row(known_at(history, t_us) if as_known else history, key, t_us, ttl_us)
        expected = dict.fromkeys(DTYPES) if truth in (UNSEEN, None) else truth
        assert {name: values[row] for name, values in got.items()} == expected


def test_keys_and_times_that_do_not_fit_one_number_are_found_all_the_same() -> None:
    far = 253_402_300_799_999_999
    n = 200
    history = [NaiveEvent(i, far if i % 2 else -far // 4, (0, i, 0), {"whole": i}) for i in range(n)]
    agg = aggregation("sum", "whole", 60)
    columns = {"whole": pa.array(range(n), pa.int64())}
    labels = np.arange(n)
    got = aggregate_windows(*arrays(history), columns, labels, np.full(n, far + 1), [agg])
    assert got[agg.feature].to_pylist() == [i if i % 2 else None for i in range(n)]


def test_sums_of_parts_that_leave_an_int64_are_null() -> None:
    agg, labels = aggregation("sum", "whole", None), np.zeros(1, np.int64)
    join = WindowJoin(labels, labels + 100, [agg])
    found = []
    for i in range(6):
        join.add(Events(labels, labels + i, {"whole": pa.array([2**61], pa.int64())}, ()))
        found += join.columns()[agg.feature].to_pylist()
    assert found == [2**61, 2**62, 3 * 2**61, None, None, None]
    assert join.beyond == {agg.feature: 1}
