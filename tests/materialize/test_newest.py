"""Which rows of a file win: equal to a loop over the rows, in any number of parts and readings."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from headrace.stores.batch_files import BatchPart
from materialize.newest import find_newest, winning

Row = tuple[Any, Any, int, int, bool]
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "", "é", None]),
        st.sampled_from([1, 2, -(2**62), None]),
        st.integers(0, 5),
        st.integers(0, 2),
        st.sampled_from([True, True, True, False]),
    ),
    max_size=60,
)


def parts_of(rows: list[Row], sizes: list[int], created: bool) -> list[BatchPart]:
    parts = []
    for size in [*sizes, len(rows)]:
        some, rows = rows[:size], rows[size:]
        who, site, times, made, good = zip(*some, strict=True) if some else [()] * 5
        table = pa.table({"who": pa.array(who, pa.string()), "site": pa.array(site, pa.int64())})
        moments = np.array(made, np.int64) if created else None
        parts.append(BatchPart(table, np.array(times, np.int64), moments, np.array(good, bool), good.count(False)))
    return parts


def winners(rows: list[Row], keys: int, created: bool) -> tuple[list[int], int]:
    """Row numbers, and how many rows that count have a null key: a loop."""
    best: dict[Any, tuple[int, int, int]] = {}
    nulls = 0
    for number, row in enumerate(rows):
        key = row[:keys]
        if not row[4]:
            continue
        if None in key:
            nulls += 1
            continue
        best[key] = max(best.get(key, (-1, -1, -1)), (row[2], row[3] if created else 0, number))
    return sorted(number for _, _, number in best.values()), nulls


@limits(max_examples=80)
@given(ROWS, st.lists(st.integers(0, 20), max_size=4), st.sampled_from([1, 2]), st.booleans(), st.booleans())
def test_the_newest_of_every_key_wins(rows: list[Row], sizes: list[int], keys: int, created: bool, poor: bool) -> None:
    parts, names = parts_of(rows, sizes, created), ["who", "site"][:keys]
    read: list[int] = []
    found = find_newest(lambda: parts, names, 600 if poor else 10**9, read.append)
    expected, nulls = winners(rows, keys, created)
    flags = np.concatenate([found.of(at, len(rows) - at) for at in [0]]) if rows else np.zeros(0, bool)
    assert np.flatnonzero(flags).tolist() == expected
    for first in range(0, len(rows), 7):
        assert found.of(first, 5)[: len(rows) - first].tolist() == flags[first : first + 5].tolist()
    assert (found.keys, found.null_keys, found.rows) == (len(expected), nulls, len(rows))
    assert found.refused == sum(not row[4] for row in rows)
    assert found.newest_us == max((row[2] for row in rows if row[4]), default=None)
    assert sum(read) == found.readings * len(rows) and (poor or found.readings == 1)
    shown = [times.tolist() for _, times in winning(parts, found)]
    assert [us for some in shown for us in some] == [rows[number][2] for number in expected]


def test_little_memory_takes_more_readings_and_finds_the_same() -> None:
    rng = random.Random(7)
    rows: list[Row] = [(f"key {rng.randrange(3_000)}", 0, rng.randrange(50), 0, True) for _ in range(20_000)]
    parts = parts_of(rows, [997] * 20, False)
    expected, _ = winners(rows, 1, False)
    readings = []
    for memory_bytes in (10**9, 500_000, 150_000):
        found = find_newest(lambda: parts, ["who"], memory_bytes)
        assert np.flatnonzero(found.of(0, len(rows))).tolist() == expected
        readings.append(found.readings)
    assert readings[0] == 1 < readings[1] < readings[2]
