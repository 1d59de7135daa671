from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import point_in_time
from benchmarks.point_in_time import Size, measure


def test_the_benchmark_holds_equal_answers_against_each_other() -> None:
    rows = measure(Size(rows=0, events=(2_000, 6_000)))
    found = {(row.peer_name.split()[0], row.unit) for row in rows}
    assert found == {("DuckDB", "s"), ("DuckDB", "MB"), ("ours,", "MB"), ("ours,", "events/s")}
    assert all(row.ratio for row in rows)


def test_another_answer_is_noticed(tmp_path: Path) -> None:
    values = {"n": [0, 1, 2], "x": [1.0, None, 3.0]}
    ours, theirs = tmp_path / "ours.parquet", tmp_path / "theirs.parquet"
    pq.write_table(pa.table(values), ours)
    for x, same in [([1.0, None, 3.0 + 1e-12], True), ([1.0, None, 3.1], False), ([1.0, 0.0, 3.0], False)]:
        pq.write_table(pa.table({"n": [2, 1, 0], "x": x[::-1]}), theirs)
        if same:
            point_in_time._refuse_other_rows(ours, theirs, ["x"])
        else:
            with pytest.raises(RuntimeError, match="answers differ in x"):
                point_in_time._refuse_other_rows(ours, theirs, ["x"])
    pq.write_table(pa.table({"n": [0, 2], "x": [1.0, 3.0]}), theirs)
    point_in_time._refuse_other_rows(ours, theirs, ["x"])
    pq.write_table(pa.table({"n": [0, 1], "x": [1.0, None]}), theirs)
    with pytest.raises(RuntimeError, match="answers differ in x"):
        point_in_time._refuse_other_rows(ours, theirs, ["x"])
