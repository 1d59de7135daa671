from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.read.online.record_batches import RecordBatchTemplate, pack_array, pack_moments, pack_numbers

END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
MOMENT = pa.timestamp("us", "UTC")
VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint8(): st.integers(0, 255),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=9),
    MOMENT: st.integers(-(2**55), 2**55),
}


def read(schema: pa.Schema, parts: list[bytes]) -> pa.RecordBatch:
    raw = b"".join((schema.serialize().to_pybytes(), *parts, END))
    with pa.ipc.open_stream(raw) as reader:
        (batch,) = list(reader)
    batch.validate(full=True)
    return batch


@st.composite
def batches(draw: st.DrawFn) -> list[pa.RecordBatch]:
    """Some batches of one schema, each the slice of a longer one."""
    kinds = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=6))
    found = []
    for _ in range(draw(st.integers(1, 3))):
        rows, before = draw(st.integers(0, 20)), draw(st.integers(0, 9))
        columns = []
        for kind in kinds:
            value = VALUES[kind] if draw(st.booleans()) else st.none() | VALUES[kind]
            values = draw(st.lists(value, min_size=rows + before, max_size=rows + before))
            columns.append(pa.array(values, kind)[before:])
        found.append(pa.RecordBatch.from_arrays(columns, [f"c{i}" for i in range(len(kinds))]))
    return found


@given(batches())
@settings(deadline=None)
def test_batches_are_read_back_by_arrow_as_they_were(made: list[pa.RecordBatch]) -> None:
    template = RecordBatchTemplate(made[0].schema)
    for batch in [*made, *made]:
        packed = [pack_array(column) for column in batch.columns]
        assert None not in packed
        assert read(batch.schema, template.write(batch.num_rows, packed)).equals(batch)  # type: ignore[arg-type]


def test_numbers_and_moments_keep_their_bytes_and_their_nulls() -> None:
    values, missing = np.array([1.5, 2.5, 3.5]), np.array([False, True, False])
    times_us = np.array([5, 0, 7])
    schema = pa.schema([("x", pa.float64()), ("y", pa.float64()), ("t", MOMENT)])
    columns = [pack_numbers(values), pack_numbers(values[::-1], missing), pack_moments(times_us)]
    found = read(schema, RecordBatchTemplate(schema).write(3, columns)).to_pydict()
    assert found["x"] == [1.5, 2.5, 3.5] and found["y"] == [3.5, None, 1.5]
    assert [None if moment is None else moment.microsecond for moment in found["t"]] == [5, None, 7]


@pytest.mark.parametrize("array", [pa.array([[1]]), pa.array(["a"]).dictionary_encode()])
def test_columns_within_columns_are_left_to_arrow(array: pa.Array[Any]) -> None:
    assert pack_array(array) is None
