"""Values to typed columns: what is refused, and that the answer never depends on the values around."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
import pyarrow as pa
import pytest

from headrace.catalog.definitions import Column, Source
from headrace.compute.columns import typed_column
from headrace.compute.events import parse_entries
from headrace.dtypes import DType
from headrace.moments import EARLIEST_US, LATEST_US
from headrace.stores.stream import Entry, pack_offset

TS = Column("ts", DType.TIMESTAMP)
NOW = pack_offset("1700000000000-0")
EAST, WEST = timezone(timedelta(hours=1)), timezone(timedelta(hours=-1))


@pytest.mark.parametrize("nest", [b"[%s]", b'{"a":%s}'], ids=["lists", "objects"])
@pytest.mark.parametrize("dtype", [dtype for dtype in DType if not dtype.is_list])
def test_a_value_nested_as_deep_as_the_parser_reads_costs_one_row(dtype: DType, nest: bytes) -> None:
    source = Source("s", (Column("x", dtype), TS), "ts")
    deep = b"1"
    for _ in range(1_000):
        deep = nest % deep
    good = orjson.dumps({"x": None, "ts": "2023-11-14T22:00:00Z"})
    lines = [good, b'{"ts":"2023-11-14T22:00:00Z","x":%s}' % deep, good]
    batch = parse_entries(source, 0, [Entry(NOW, "ndjson", 3, 3, b"\n".join(lines))], "wall", None)
    assert batch.index.tolist() == [0, 2]
    assert batch.dead[0].reason in (f"x must be {dtype}, got a list", f"x must be {dtype}, got an object")


@pytest.mark.parametrize("value", ["x" * 1_000_000, 10**1_000, b"x" * 10_000, {"a": "x" * 10_000}, ["x"] * 10_000])
def test_a_refused_value_is_shown_in_few_characters(value: Any) -> None:
    reason = typed_column([value], Column("x", DType.BOOL))[1][0]
    assert reason.startswith("x must be bool, got ") and len(reason) < 120


INSIDE: dict[Any, int] = {
    "0001-01-01T00:00:00Z": EARLIEST_US,
    "0001-01-01": EARLIEST_US,
    "0001-01-01T01:00:00+01:00": EARLIEST_US,
    "9999-12-31T23:59:59.999999Z": LATEST_US,
    "9999-12-31T23:59:59.9999999": LATEST_US,
    datetime(1, 1, 1, tzinfo=UTC): EARLIEST_US,
    datetime(9999, 12, 31, 23, 59, 59, 999_999): LATEST_US,
}
OUTSIDE: list[Any] = [
    "0000-01-01T00:00:00Z",
    "0000-12-31T23:30:00-01:00",
    "0001-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59-00:01",
    "9999-12-31T23:59:59.999999-23:59",
    datetime(1, 1, 1, tzinfo=EAST),
    datetime(9999, 12, 31, 23, 59, tzinfo=WEST),
]
COMPANY: list[Any] = [
    [],
    ["nonsense"],
    ["2020-01-01T00:00:00Z"],
    ["2020-01-01"],
    [datetime(2020, 1, 1, tzinfo=UTC)],
    [5],
]


@pytest.mark.parametrize("others", COMPANY, ids=repr)
@pytest.mark.parametrize("value", [*INSIDE, *OUTSIDE], ids=str)
def test_the_years_1_to_9999_of_utc_hold_in_whatever_company(value: Any, others: list[Any]) -> None:
    array, refused = typed_column([value, *others], TS)
    assert array[0].cast(pa.int64()).as_py() == INSIDE.get(value)
    assert (0 in refused) == (value not in INSIDE)


def test_a_time_outside_the_years_is_refused_with_that_reason() -> None:
    assert typed_column(["9999-12-31T23:59:59-01:00"], TS)[1] == {
        0: "ts must be timestamp, got '9999-12-31T23:59:59-01:00': outside the years 1 to 9999 of UTC"
    }
