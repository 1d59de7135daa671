"""Times in batch files, beyond what can be written as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.catalog.definitions import BatchSource, Column, DType, FeatureView
from headrace.moments import EARLIEST_US, LATEST_US
from headrace.stores.batch_files import read_batch_rows
from headrace.stores.tables import as_declared

COLUMNS = (Column("card", DType.STRING), Column("since", DType.TIMESTAMP), Column("limit", DType.FLOAT64))
BATCH = BatchSource("cards", "cards.parquet", "at", COLUMNS, created_timestamp="made")
VIEW = FeatureView("limits", "batch", ("card",), COLUMNS[1:], "f", batch=BATCH)
BEYOND = [EARLIEST_US - 1, LATEST_US + 1, 2**63 - 1, -(2**63)]


def times(values: list[Any], unit: Any = "us") -> pa.Array:
    return pa.array(values, pa.int64()).cast(pa.timestamp(unit))


@pytest.mark.parametrize("spoilt", ["at", "since", "made"])
def test_a_row_with_a_time_outside_the_years_is_refused_and_counted(tmp_path: Path, spoilt: str) -> None:
    good = [EARLIEST_US, 0, LATEST_US, 1, 2, 3, 4]
    columns = {name: times(good) for name in ("at", "since", "made")}
    columns[spoilt] = times([*good[:3], *BEYOND])
    cards = list("abcdefg")
    pq.write_table(pa.table({"card": cards, "limit": [1.0] * 7, **columns}), tmp_path / "cards.parquet")
    rows = read_batch_rows(VIEW, COLUMNS, tmp_path)
    assert (rows.table["card"].to_pylist(), rows.refused) == (["a", "b", "c"], 4)
    assert rows.event_time_us.tolist() == good[:3]


@pytest.mark.parametrize("nulls", ["since", "made"])
def test_a_null_time_that_is_not_the_event_s_is_no_reason_to_refuse(tmp_path: Path, nulls: str) -> None:
    columns = {name: times([None if name == nulls else 5]) for name in ("at", "since", "made")}
    pq.write_table(pa.table({"card": ["a"], "limit": [None], **columns}), tmp_path / "cards.parquet")
    assert read_batch_rows(VIEW, COLUMNS, tmp_path).refused == 0


COARSE = {
    "seconds": (pa.timestamp("s"), 1_000_000),
    "milliseconds": (pa.timestamp("ms", "Europe/Zurich"), 1_000),
    "days": (pa.date32(), 86_400_000_000),
    "days in milliseconds": (pa.date64(), 1_000),
}


@pytest.mark.parametrize(("kind", "unit_us"), COARSE.values(), ids=COARSE)
def test_a_coarse_time_that_overflows_stays_outside_the_years(kind: pa.DataType, unit_us: int) -> None:
    bits = np.int32 if kind == pa.date32() else np.int64
    most, least = int(np.iinfo(bits).max), int(np.iinfo(bits).min)
    if kind == pa.date64():
        most, least = most // 86_400_000 * 86_400_000, -(-least // 86_400_000) * 86_400_000
    day = 86_400_000_000 // unit_us
    edges = [LATEST_US // 86_400_000_000 * day, EARLIEST_US // unit_us]
    given = pa.array(np.array([0, day, *edges, most, least], bits)).cast(kind)
    found = as_declared(pa.concat_arrays([given, pa.nulls(1, kind)]), DType.TIMESTAMP, "x").cast(pa.int64())
    assert found[:4].to_pylist() == [0, 86_400_000_000, edges[0] * unit_us, EARLIEST_US]
    assert found[4].as_py() > LATEST_US and found[5].as_py() < EARLIEST_US and found[6].as_py() is None


def test_nanoseconds_are_cut() -> None:
    assert as_declared(times([1_999, -1], "ns"), DType.TIMESTAMP, "x").cast(pa.int64()).to_pylist() == [1, 0]
