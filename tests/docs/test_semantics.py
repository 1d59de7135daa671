"""The table of aggregates says what the functions take, give, and come to where nothing is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headrace.dtypes import DType, arrow_type
from headrace.errors import DefinitionError
from headrace.windows.functions import FUNCTIONS, Aggregation, output_dtype
from headrace.windows.point_in_time import aggregate_windows

PAGE = Path(__file__).parents[2] / "docs" / "semantics.md"
INT, FLOAT = {DType.INT32, DType.INT64}, {DType.FLOAT32, DType.FLOAT64}
PLAIN = [dtype for dtype in DType if not dtype.is_list]
KINDS = {"int": INT, "float": FLOAT, "bool": {DType.BOOL}, "timestamp": {DType.TIMESTAMP}, "any": set(PLAIN), "-": INT}


def rows() -> list[tuple[str, str, set[DType], str, str]]:
    """(function, column, the types it is said to take, the type out, the empty window) of every line and function."""
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) != 6 or not re.match(r"`[a-z_]+N?`", cells[0]):
            continue
        column = "*" if cells[1] == "-" else "x"
        taken = set().union(*(KINDS[kind.strip()] for kind in cells[1].split(",")))
        names = re.findall(r"`([a-z_]+N?)`", cells[0])
        found += [(name, column, taken, cells[2], re.split(r"[:;,]", cells[3])[0]) for name in names]
    return found


ROWS = rows()


def test_every_function_is_in_it() -> None:
    assert {name for name, *_ in ROWS} == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_names_the_types_that_a_function_takes(name: str) -> None:
    said = set().union(*(taken for other, column, taken, *_ in ROWS if other == name and column == "x"))
    assert said == {dtype for dtype in PLAIN if takes(name.replace("N", "3"), dtype)}


def takes(function: str, dtype: DType) -> bool:
    try:
        output_dtype(function, "x", dtype)
    except DefinitionError:
        return False
    return True


@pytest.mark.parametrize(("name", "column", "taken", "out", "empty"), ROWS, ids=[f"{r[0]}-{r[3]}" for r in ROWS])
def test_it_names_what_a_function_gives(name: str, column: str, taken: set[DType], out: str, empty: str) -> None:
    function = name.replace("N", "3")
    for dtype in taken:
        given = {"as the column": dtype, "list of the column's type": dtype.list_type}.get(out) or DType(out)
        assert output_dtype(function, column, dtype) is given
        agg = Aggregation("f", function, column, None, 0, dtype, given)
        columns = {"x": pa.array([None], arrow_type(dtype))}
        no, at = np.zeros(0, np.int64), np.array([5])
        nothing = aggregate_windows(no, no, {"x": columns["x"].slice(0, 0)}, np.array([-1]), at, [agg])
        nulls = aggregate_windows(np.array([0]), np.array([0]), columns, np.array([0]), at, [agg])
        expected = {"0": 0, "null": None}[empty]
        assert nothing["f"].to_pylist() == [expected]
        assert nulls["f"].to_pylist() == [1 if column == "*" else expected]
