from __future__ import annotations

import decimal
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from headrace.catalog.definitions import Column, DType, Expectation, Source
from headrace.compute.imports import import_batch, mark_repeats, near_ids
from headrace.stores.import_rows import ImportRows
from headrace.stores.markers import IMPORTS, Applied

SOURCE = Source(
    "trips",
    (
        Column("id", DType.STRING),
        Column("km", DType.FLOAT64),
        Column("n", DType.INT32),
        Column("ok", DType.BOOL),
        Column("ts", DType.TIMESTAMP),
    ),
    "ts",
    event_id="id",
)
NOON_US = 1_714_564_800_000_000
SECOND_US = 1_000_000


def rows(**columns: Any) -> ImportRows:
    arrays = {name: values if isinstance(values, pa.Array | list) else None for name, values in columns.items()}
    n = len(next(iter(arrays.values())) or [])
    return ImportRows(np.arange(10, 10 + n), arrays, 10 + n, 0)


def batch_of(source: Source = SOURCE, bounds_us: Any = (None, None), **columns: Any) -> Any:
    return import_batch(source, 5, rows(**columns), Applied(4, 0, 100, None), 77, bounds_us)


@pytest.mark.parametrize(
    "times",
    [
        pa.array([NOON_US // SECOND_US], pa.timestamp("s")),
        pa.array([NOON_US // 1_000], pa.timestamp("ms", "Europe/Berlin")),
        pa.array([NOON_US * 1_000 + 999], pa.timestamp("ns")),
        pa.array(["2024-05-01T12:00:00"]),
        pa.array(["2024-05-01T14:00:00+02:00"]).dictionary_encode(),
        [datetime(2024, 5, 1, 12, tzinfo=UTC)],
        ["2024-05-01 12:00:00"],
    ],
)
def test_event_times_of_every_unit_and_zone_are_microseconds_utc(times: Any) -> None:
    batch = batch_of(ts=times)
    assert batch.event_time_us.tolist() == [NOON_US] == batch.arrival_us.tolist()
    assert (batch.partition, batch.offset.tolist(), batch.index.tolist()) == (IMPORTS, [5], [10])
    assert batch.end == Applied(5, 10, 101, NOON_US)


def test_a_date_is_its_midnight_and_a_decimal_a_float() -> None:
    batch = batch_of(ts=pa.array([date(2024, 5, 1)]), km=pa.array([decimal.Decimal("1.50")]))
    assert batch.event_time_us.tolist() == [NOON_US - 43_200 * SECOND_US] and batch.table["km"].to_pylist() == [1.5]


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("n", pa.array([2**31, 1, None]), "n must be int32"),
        ("n", pa.array([1.5, 1.0, float("nan")]), "n must be int32, got 1.5"),
        ("n", ["7", 1, None], "n must be int32, got '7'"),
        ("km", pa.array([float("inf"), 1.0, float("nan")]), "km must be float64"),
        ("ok", ["yes", True, None], "ok must be bool, got 'yes'"),
        ("ts", pa.array([None, 0, 0], pa.timestamp("s")), "no event time: ts is null or missing"),
        ("ts", pa.array([2**61, 0, 0], pa.timestamp("us", "UTC")), "ts"),
        ("ts", pa.array(["soon", "2024-05-01", "2024-05-01"]), "ts must be timestamp, got 'soon'"),
    ],
)
def test_a_value_that_does_not_fit_costs_its_row_alone(name: str, values: Any, reason: str) -> None:
    columns = {"id": ["a", "b", "c"], "ts": pa.array([0, 0, 0], pa.timestamp("s")), name: values}
    batch = batch_of(**columns)
    assert batch.table["id"].to_pylist() == ["b", "c"] and batch.index.tolist() == [11, 12]
    (letter,) = batch.dead
    assert reason in letter.reason and (letter.index, letter.arrival_us) == (10, 77)
    assert orjson.loads(letter.payload)["id"] == "a"
    assert batch.end.total == 103


def test_expectations_hold_but_none_of_lateness() -> None:
    rules = (
        Expectation("km", "between", (0, 9), "between(0, 9)"),
        Expectation("n", "not_null", (), "not_null", "drop"),
        Expectation("ts", "max_lateness", (1,), "max_lateness(1us)"),
    )
    source = Source(SOURCE.name, SOURCE.columns, "ts", expectations=rules)
    times = pa.array([9, 8, 7, 6], pa.timestamp("s"))
    batch = batch_of(source, ts=times, km=pa.array([1.0, 99.0, 2.0, 3.0]), n=pa.array([1, 1, None, 1], pa.int64()))
    assert batch.event_time_us.tolist() == [9 * SECOND_US, 6 * SECOND_US]
    assert [letter.reason for letter in batch.dead] == ["expected between(0, 9) of km, got 99.0"]
    assert sum(batch.unexpected.values()) == 2 and batch.watermarks_us.max() < 0


def test_events_after_the_import_are_dead_and_those_older_than_the_archive_left_out() -> None:
    times = pa.array([1, 2, 3], pa.timestamp("s"))
    batch = batch_of(bounds_us=(2 * SECOND_US, 2 * SECOND_US), ts=times)
    assert batch.event_time_us.tolist() == [2 * SECOND_US]
    assert [letter.index for letter in batch.dead] == [12] and "after the import" in batch.dead[0].reason
    assert sum(batch.unexpected.values()) == 1


def test_repeats_lie_at_most_the_horizon_away_on_either_side() -> None:
    minutes = [0, 9, -9, 25, 15, 40, 0, 0]
    ids = ["x", "x", "x", "x", "x", "y", None, None]
    batch = batch_of(id=ids, ts=pa.array([60 * m for m in minutes], pa.timestamp("s")))
    mark_repeats(batch, {"y": [(40 * 60 - 600) * SECOND_US], "x": []})
    assert batch.is_repeat.tolist() == [False, True, True, False, True, True, False, False]
    mark_repeats(batch, {"y": [(40 * 60 - 601) * SECOND_US]})
    assert not batch.is_repeat[5]
    ids_found, first, last = near_ids(batch) or (pa.array([]), 0, 0)
    assert sorted(ids_found.to_pylist()) == ["x", "y"]
    assert (first, last) == (-19 * 60 * SECOND_US, 50 * 60 * SECOND_US)
