from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.catalog.definitions import Catalog, Column, DType, FeatureView, Source, Transform
from headrace.compute.expectations import NO_WATERMARK
from headrace.compute.view_events import SourceEvents, view_events
from headrace.errors import DataError

COLUMNS = (
    Column("k", DType.STRING),
    Column("n", DType.INT64),
    Column("v", DType.FLOAT64),
    Column("b", DType.BOOL),
    Column("ts", DType.TIMESTAMP),
)
SOURCE = Source("events", COLUMNS, "ts", max_future_us=1_000)
TS = pa.timestamp("us", "UTC")
BIG = 2**62 + 1


def events(**columns: list[Any]) -> SourceEvents:
    n = len(next(iter(columns.values())))
    types = {"k": pa.string(), "n": pa.int64(), "v": pa.float64(), "b": pa.bool_()}
    times = np.arange(n, dtype=np.int64)
    arrays = {name: pa.array(columns.get(name, [None] * n), kind) for name, kind in types.items()}
    arrays["ts"] = pa.array(times).cast(TS)
    nothing = np.zeros(n, np.int64)
    return SourceEvents(arrays, times, times, times + 10, nothing, nothing, np.full(n, NO_WATERMARK))


def seen(body: str, given: SourceEvents, mode: Any = "pandas", clock: Any = "wall", moves: bool = False) -> Any:
    code = f"import polars as pl\ndef f(df):\n    {body}\n"
    transform = Transform(mode, code, "f", COLUMNS, moves)
    view = FeatureView("view", "windowed", ("k",), (), "f", source="events", transform=transform)
    return view_events(Catalog("p", 1, clock, (), (SOURCE,), (view,)), view, given)


def test_a_view_without_a_share_takes_events_as_they_are() -> None:
    given = events(v=[1.0])
    view = FeatureView("view", "windowed", ("k",), (), "f", source="events")
    found = view_events(Catalog("p", 1, "wall", (), (SOURCE,), (view,)), view, given)
    assert found.columns is given.columns
    assert found.part is None


FAILING = {
    "infinity": ("pandas", "return df.assign(v=1 / df.v)", {1: "v must be float64: infinities"}),
    "polars infinity": ("polars", "return df.with_columns(v=1 / pl.col('v'))", {1: "infinities are refused"}),
    "type": ("pandas", "return df.assign(n=[3 if v else 'x' for v in df.v])", {1: "n must be int64"}),
    "fraction": ("pandas", "return df.assign(n=df.v / 2 + df.v.eq(0) * 0.5)", {1: "n must be int64"}),
    "moved": ("polars",
              "return df.with_columns(ts=pl.col('ts') + pl.duration(microseconds=pl.col('v').eq(0).cast(int)))",
              {1: "gives 'ts' another value, and does not name it"}),
}  # fmt: skip


@pytest.mark.parametrize(("mode", "body", "failed"), FAILING.values(), ids=FAILING)
def test_an_event_that_becomes_nothing_possible_is_dead(mode: Any, body: str, failed: dict[int, str]) -> None:
    found = seen(body, events(v=[2.0, 0.0, 4.0]), mode)
    assert set(found.dead) == set(failed)
    assert all(words in found.dead[event] for event, words in failed.items())
    assert found.row.tolist() == [0, 2]
    assert found.counts == {("quarantined", "", "transform"): 1}


def test_an_event_fails_as_a_whole() -> None:
    body = "return pl.concat([df, df.with_columns(ts=pl.when(pl.col('v') == 0).then(None).otherwise(pl.col('ts')))])"
    found = seen(body, events(v=[0.0, 1.0]), "polars", moves=True)
    assert found.dead == {0: "the transform gives 'ts' as null"}
    assert (found.row.tolist(), found.part.tolist()) == ([1, 1], [0, 1])


def test_a_moved_time_may_not_lie_ahead_of_the_arrival() -> None:
    body = "return df.with_columns(ts=pl.col('ts') + pl.duration(microseconds=pl.col('n')))"
    given = events(n=[1_000, 1_001, -5])
    found = seen(body, given, "polars", moves=True)
    assert found.dead == {1: "the transform gives 'ts' over 0.001 s after the arrival"}
    assert found.event_time_us.tolist() == [1_000, -3]
    assert len(seen(body, given, "polars", "event", moves=True).row) == 3


def test_what_a_row_looks_like_does_not_depend_on_the_nulls_beside_it() -> None:
    given = events(n=[BIG, None, BIG + 1, 3], b=[True, None, None, False], v=[1.0, 2.0, None, 4.0])
    found = seen("return df[df.v.isna() | (df.v > 0)]", given)
    assert {name: found.columns[name].to_pylist() for name in ("n", "b", "v")} == {
        "n": [BIG, None, BIG + 1, 3],
        "b": [True, None, None, False],
        "v": [1.0, 2.0, None, 4.0],
    }


def test_a_function_that_changes_its_frame_in_place_harms_no_retry() -> None:
    body = "df['v'] = df['v'] * 2\n    assert (df['v'] < 15).all()\n    return df"
    found = seen(body, events(v=[float(v) for v in range(10)]))
    assert found.columns["v"].to_pylist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]
    assert sorted(found.dead) == [8, 9]


def test_rows_come_in_the_order_of_their_events() -> None:
    found = seen("return pl.concat([df.reverse(), df])", events(v=[1.0, 2.0]), "polars")
    assert (found.row.tolist(), found.part.tolist()) == ([0, 0, 1, 1], [0, 1, 0, 1])
    assert found.offset.tolist() == [10, 10, 11, 11]


def test_no_events_call_no_function() -> None:
    found = seen("raise ValueError('never')", events(v=[]))
    assert (len(found.row), found.columns["v"].type) == (0, pa.float64())


def test_code_that_cannot_be_loaded_says_so() -> None:
    given = events(v=[1.0])
    with pytest.raises(DataError, match="transform of view 'view' cannot be loaded here: ModuleNotFoundError"):
        seen("return df\nimport not_installed_anywhere", given)
