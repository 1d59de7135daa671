from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveEvent, agree, magnitude, window_value
from strategies import DTYPES, EVERY, aggregation, events, times_us

from headrace.dtypes import arrow_type
from headrace.windows.aggregates import result_array, state_fields
from headrace.windows.functions import Aggregation
from headrace.windows.suffix_tiles import (
    TileGroup,
    TileRows,
    drop_old,
    empty_rows,
    lift_events,
    merge_rows,
    partial_rows,
    read_rows,
    tile_groups,
)

TILED = [agg for agg in EVERY if state_fields(agg)]


def partial(group: TileGroup, batch: list[NaiveEvent]) -> TileRows:
    columns = {name: pa.array([e.values[name] for e in batch], arrow_type(dtype)) for name, dtype in DTYPES.items()}
    keys, times = np.array([e.key for e in batch], np.int64), np.array([e.time_us for e in batch], np.int64)
    return partial_rows(group, lift_events([group], keys, times, columns))


def newest(history: list[NaiveEvent], keys: np.ndarray) -> np.ndarray:
    return np.array([max(e.time_us for e in history if e.key == key) for key in keys], np.int64)


@given(events(), st.lists(st.sampled_from(TILED), min_size=1, max_size=5), st.integers(1, 9), times_us(), st.data())
@settings(max_examples=300, deadline=None)
def test_tiles_of_any_batching_equal_the_loop(
    history: list[NaiveEvent], aggs: list[Aggregation], batch_size: int, later_us: int, data: st.DataObject
) -> None:
    groups = {group.hop_us: group for group in tile_groups(aggs)}
    order = data.draw(st.permutations(history))
    rows = {}
    for hop, group in groups.items():
        kept = empty_rows(group)
        for start in range(0, len(order), batch_size):
            merged = merge_rows(kept, partial(group, order[start : start + batch_size]))
            kept = drop_old(group, merged, newest(order[: start + batch_size], merged.keys))
        rows[hop] = kept
    asked = np.array([0, 1, 2, 3], np.int64)
    t_us = np.array([max([e.time_us + 1 for e in history if e.key == key] + [later_us]) for key in asked], np.int64)
    for agg in aggs:
        state = read_rows(groups[agg.hop_us], rows[agg.hop_us], asked, t_us, agg.window_us)
        values = result_array(agg, {field: state[field] for field in state_fields(agg)})
        plain = (values.cast(pa.int64()) if pa.types.is_timestamp(values.type) else values).to_pylist()
        for key, t, value in zip(asked, t_us, plain, strict=True):
            truth = window_value(agg, history, key, int(t))
            assert agree(value, truth, magnitude(agg, history, key, int(t))), (agg, key, t)


@given(events(), events())
@settings(deadline=None)
def test_merging_is_commutative(left: list[NaiveEvent], right: list[NaiveEvent]) -> None:
    (group,) = tile_groups([aggregation("sum", "whole", 60), aggregation("max", "real", 60)])
    one = merge_rows(partial(group, left), partial(group, right))
    other = merge_rows(partial(group, right), partial(group, left))
    assert one.keys.tolist() == other.keys.tolist() and one.tiles.tolist() == other.tiles.tolist()
    assert all((one.state[field] == other.state[field]).all() for field in group.fields)


def test_functions_of_one_column_share_their_fields() -> None:
    aggs = [aggregation(function, "real", 60) for function in ("count", "sum", "mean")]
    (group,) = tile_groups(aggs)
    assert [(field.kind, field.column) for field in group.fields] == [("count", "real"), ("sum", "real")]


def test_rows_older_than_the_longest_window_are_dropped() -> None:
    (group,) = tile_groups([aggregation("count", "*", 60)])
    second = 1_000_000
    rows = partial(group, [NaiveEvent(0, t * second, (0, t, 0), dict.fromkeys(DTYPES)) for t in range(0, 300, 10)])
    kept = drop_old(group, rows, np.full(len(rows), 290 * second))
    assert kept.tiles.min() * group.hop_us == 230 * second
