from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, VALUES, aggregation

from headrace.dtypes import DType, arrow_type
from headrace.errors import DefinitionError
from headrace.windows.aggregates import (
    State,
    lift,
    merge_states,
    out_of_range,
    reduce_runs,
    result_array,
    state_fields,
    zeros,
)
from headrace.windows.functions import FUNCTIONS, output_dtype, parse_function
from headrace.windows.point_in_time import aggregate_windows

FIELDS = sorted(
    {
        field
        for function in ("count", "sum", "mean", "min", "max", "var")
        for column in ("whole", "real")
        for field in state_fields(aggregation(function, column, 60))
    }
)
EXACT = [field for field in FIELDS if field.kind not in ("sum", "centre", "spread")]
EVENTS = st.lists(st.tuples(st.none() | VALUES["whole"], st.none() | VALUES["real"]), max_size=12)


def state_of(events: list[tuple[int | None, float | None]]) -> State:
    """The state of all events together."""
    columns = {
        name: pa.array([event[i] for event in events], arrow_type(DTYPES[name]))
        for i, name in enumerate(("whole", "real"))
    }
    if not events:
        return zeros(FIELDS, 1)
    return reduce_runs(lift(FIELDS, columns, len(events)), np.array([0]))


def assert_same(one: State, other: State, events: list[tuple[int | None, float | None]]) -> None:
    for field in EXACT:
        assert one[field][0] == other[field][0], field
    for field in set(FIELDS) - set(EXACT):
        values = [float(event[("whole", "real").index(field.column)] or 0) for event in events]
        scale = math.fsum(v * v for v in values) if field.kind == "spread" else math.fsum(map(abs, values))
        assert abs(one[field][0] - other[field][0]) <= 1e-9 * scale, field


@given(EVENTS, EVENTS, EVENTS)
def test_merges_are_associative_and_commutative_with_a_zero(a: Any, b: Any, c: Any) -> None:
    one, two, three = state_of(a), state_of(b), state_of(c)
    left = merge_states(merge_states(one, two), three)
    assert_same(left, merge_states(one, merge_states(two, three)), a + b + c)
    assert_same(merge_states(one, two), merge_states(two, one), a + b)
    assert_same(merge_states(one, zeros(FIELDS, 1)), one, a)


@given(EVENTS, st.integers(0, 12))
def test_splitting_the_events_changes_nothing(events: Any, cut: int) -> None:
    assert_same(merge_states(state_of(events[:cut]), state_of(events[cut:])), state_of(events), events)


TABLE = [
    ("count", "real", [1.0, None, 2.0], 2),
    ("sum", "real", [0.5, None, 0.25], 0.75),
    ("sum", "flag", [True, True, None], 2),
    ("mean", "flag", [True, False, None], 0.5),
    ("mean", "whole", [1, 2], 1.5),
    ("min", "real", [2.0, -0.5], -0.5),
    ("max", "whole", [-(2**63), None], -(2**63)),
    ("var", "real", [1.0, 3.0], 2.0),
    ("var", "real", [1.0], None),
    ("std", "whole", [1, 2, 3, 4, 5], math.sqrt(2.5)),
    ("first", "word", [None, "b", "a"], "b"),
    ("last", "word", ["b", "a", None], "a"),
    ("first_2", "word", ["c", None, "b", "a"], ["c", "b"]),
    ("last_2", "flag", [True, False, None, True], [False, True]),
    ("count_distinct", "real", [0.0, -0.0, 1.0, None], 2),
    ("count_distinct_2", "word", ["a", "b", "c"], None),
    ("count_distinct_3", "word", ["a", "b", "c"], 3),
    ("approx_count_distinct", "word", ["a", "b", "a"], 2),
]


@pytest.mark.parametrize(("function", "column", "values", "expected"), TABLE)
def test_what_functions_come_to(function: str, column: str, values: list[Any], expected: Any) -> None:
    agg = aggregation(function, column, None)
    columns = {column: pa.array(values, arrow_type(DTYPES[column]))}
    n, zero = len(values), np.zeros(1, np.int64)
    got = aggregate_windows(np.zeros(n, np.int64), np.arange(n), columns, zero, np.array([n]), [agg])
    assert got[agg.feature].to_pylist() == [expected]


def test_overflowing_float_sums_are_null() -> None:
    agg = aggregation("sum", "real", None)
    columns = {"real": pa.array([1e308, 1e308])}
    assert result_array(agg, reduce_runs(lift(state_fields(agg), columns, 2), np.array([0]))).to_pylist() == [None]


@pytest.mark.parametrize(
    ("function", "column", "dtype", "message"),
    [
        ("median", "x", DType.FLOAT64, "no aggregation function 'median'; choose one of count, sum"),
        ("last_0", "x", DType.FLOAT64, "1 to 1000, got 'last_0'"),
        ("first_1001", "x", DType.FLOAT64, "1 to 1000"),
        ("approx_p0", "x", DType.FLOAT64, "1 to 99"),
        ("approx_p100", "x", DType.FLOAT64, "no aggregation function 'approx_p100'"),
        ("count_distinct_999999", "x", DType.STRING, "1 to 100000"),
        ("sum", "x", DType.STRING, "sum needs a numeric column, 'x' is string"),
        ("var", "x", DType.BOOL, "var needs a numeric column"),
        ("max", "x", DType.STRING, "max needs a numeric or timestamp column"),
        ("sum", "*", DType.INT64, "Only count takes"),
    ],
)
def test_what_does_not_fit_is_refused(function: str, column: str, dtype: DType, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        output_dtype(function, column, dtype)


def test_every_listed_function_is_known() -> None:
    for name in FUNCTIONS:
        assert parse_function(name.replace("N", "7"))


BIG = 2**62


@pytest.mark.parametrize(
    ("function", "column", "values", "beyond"),
    [
        ("sum", "whole", [], False),
        ("sum", "whole", [None], False),
        ("sum", "whole", [BIG, BIG], True),
        ("sum", "whole", [BIG, BIG, -1], False),
        ("sum", "whole", [-BIG, -BIG, -1], True),
        ("mean", "whole", [BIG, BIG], False),
        ("max", "whole", [BIG, BIG], False),
        ("sum", "real", [1e308, 1e308], True),
        ("mean", "real", [1e308, 1e308], True),
        ("mean", "real", [1e308, 1e307], False),
        ("var", "real", [1e308, -1e308], True),
        ("std", "real", [1e308], False),
        ("count", "real", [], False),
    ],
)
def test_a_null_that_hides_a_value_is_told_from_an_empty_window(
    function: str, column: str, values: list[Any], beyond: bool
) -> None:
    agg = aggregation(function, column, 60)
    given = {column: pa.array(values, arrow_type(DTYPES[column]))}
    fields = state_fields(agg)
    state = reduce_runs(lift(fields, given, len(values)), np.array([0])) if values else zeros(fields, 1)
    assert out_of_range(agg, state).tolist() == [beyond]
    if beyond:
        assert result_array(agg, state).to_pylist() == [None]
