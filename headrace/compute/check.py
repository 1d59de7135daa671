"""Tries the functions of on-demand feature views before they serve: each in a clean process, on sample rows.

The process sees installed packages alone (`python -I`), so a function that needs the repo fails here and not in a
server. It runs on an empty frame, on sample rows as a whole, one by one and in another order, and with nulls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from headrace.catalog.definitions import Catalog, Column, DType, OnDemandView, catalog_from_json, catalog_to_json
from headrace.compute.on_demand import OnDemandFunction
from headrace.dtypes import arrow_type
from headrace.errors import DataError, DefinitionError

__all__ = ["ask_clean", "check_functions", "input_columns", "sample_rows", "try_function", "with_holes"]

TIMEOUT_S = 60
TOLERANCE = 1e-9
SAMPLES: dict[DType, list[Any]] = {
    DType.INT32: [1, 2, 0, 7, 12, 100, 3, 1000],
    DType.INT64: [1, 3, 100, 0, 12, 2, 7, 1000],
    DType.FLOAT32: [1.0, 0.5, 2.0, 0.0, 10.0, 100.25, 3.0, 0.125],
    DType.FLOAT64: [1.0, 2.5, 0.5, 10.0, 0.0, 3.25, 100.0, 0.125],
    DType.BOOL: [True, False, True, True, False, False, True, False],
    DType.STRING: ["hello world", "a", "b", "JFK", "42", "a", "x y", "Zürich"],
    DType.TIMESTAMP: [
        datetime(2013, month, 1 + 3 * month, hour, 30, tzinfo=UTC)
        for month, hour in zip(range(1, 9), (0, 3, 23, 12, 5, 8, 17, 20), strict=True)
    ],
}
N = 8
RUNNER = """
import importlib, sys
try:
    import headrace
except ImportError:
    sys.path.append(sys.argv[1])
importlib.import_module(sys.argv[2]).main()
"""


def check_functions(
    views: Sequence[OnDemandView], types: Mapping[str, Sequence[Column]], places: Mapping[str, str] | None = None
) -> list[str]:
    """Try every view's function in its own clean process; `types` maps a view's name to its input columns, `places`
    to where its function is written.

    Returns notes for the user. Raises DefinitionError for a function that fails, or whose rows depend on others.
    """
    with ThreadPoolExecutor(max_workers=max(1, min(4, (os.cpu_count() or 1)))) as pool:
        answers = list(pool.map(lambda view: _ask(view, types[view.name]), views))
    for view, answer in zip(views, answers, strict=True):
        if answer.get("refused"):
            place = (places or {}).get(view.name)
            raise DefinitionError(f"{place}: {answer['refused']}" if place else answer["refused"])
    return [note for answer in answers for note in answer.get("notes", [])]


def input_columns(catalog: Catalog, view: OnDemandView) -> list[Column]:
    """The columns that the view's function is given: other views' features, then request data."""
    columns = []
    for reference in view.inputs:
        features = {feature.name: feature for feature in catalog.view(reference.view).features}
        columns += [features[name] for name in reference.features]
    return [*columns, *view.request]


def _ask(view: OnDemandView, columns: Sequence[Column]) -> dict[str, Any]:
    """What the clean process says about one view."""
    catalog = Catalog(project="check", version=1, clock="wall", on_demand_views=(view,))
    question = {
        "catalog": catalog_to_json(catalog).decode(),
        "columns": [(column.name, column.dtype) for column in columns],
    }
    return ask_clean(__name__, question, f"The function of on-demand feature view {view.name!r}")


def ask_clean(module: str, question: Any, who: str) -> dict[str, Any]:
    """What `main` of `module` answers to `question` in a clean process; refused where it takes too long or dies."""
    package = str(Path(__file__).parents[2])
    with tempfile.TemporaryDirectory() as directory:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", RUNNER, package, module],
                input=orjson.dumps(question),
                capture_output=True,
                timeout=TIMEOUT_S,
                cwd=directory,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"refused": f"{who} took over {TIMEOUT_S} s."}
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        return {"refused": f"{who} ended its process: {last}."}
    answer: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return answer


def main() -> None:
    """The clean process: a question on stdin, the answer as the last line on stdout."""
    question = orjson.loads(sys.stdin.buffer.read())
    view = catalog_from_json(question["catalog"].encode()).on_demand_views[0]
    columns = [Column(name, DType(dtype)) for name, dtype in question["columns"]]
    try:
        answer: dict[str, Any] = {"notes": try_function(view, columns)}
    except DataError as error:
        answer = {"refused": str(error)}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


def sample_rows(columns: Sequence[Column]) -> dict[str, pa.Array]:
    """Eight rows without nulls, in which every column takes another run of its type's sample values."""
    shifts = [shift % N for shift in range(len(columns))]
    return {
        column.name: pa.array(values[shift:] + values[:shift], arrow_type(column.dtype))
        for shift, column in zip(shifts, columns, strict=True)
        for values in [_samples(column.dtype)]
    }


def _samples(dtype: DType) -> list[Any]:
    if not dtype.is_list:
        return SAMPLES[dtype]
    items = SAMPLES[dtype.item]
    return [items[: 1 + i % 3] for i in range(N)]


def try_function(view: OnDemandView, columns: Sequence[Column]) -> list[str]:
    """Run the view's function in this process on sample rows; returns notes.

    Raises DataError if it fails on complete rows, or if a row's features depend on the rows beside it.
    """
    function = OnDemandFunction(view)
    rows = sample_rows(columns)
    function.compute({name: values.slice(0, 0) for name, values in rows.items()})
    _check_row_wise(function, rows)
    holed = {name: with_holes(values, shift) for shift, (name, values) in enumerate(rows.items())}
    _check_row_wise(function, holed)
    return _null_notes(function, {name: pa.nulls(1, values.type) for name, values in rows.items()})


def with_holes(values: pa.Array, shift: int) -> pa.Array:
    """Nulls in half of the rows, in every column in others."""
    mask = np.array([(row >> (shift % 3)) & 1 for row in range(len(values))], dtype=bool)
    return pa.array(values.to_pylist(), values.type, mask=mask)


def _null_notes(function: OnDemandFunction, nulls: dict[str, pa.Array]) -> list[str]:
    if function.accepts(nulls):
        return []
    return [
        f"The function of on-demand feature view {function.view.name!r} fails where all inputs are null; "
        "rows with a null input on which it fails read null."
    ]


def _check_row_wise(function: OnDemandFunction, rows: dict[str, pa.Array]) -> None:
    """Whole, again, one by one and shuffled give the same features of each row."""
    whole = function.compute(rows)
    order = np.array([5, 2, 7, 0, 3, 6, 1, 4])
    shuffled = function.compute({name: values.take(pa.array(order)) for name, values in rows.items()})
    single = [function.compute({name: values.slice(row, 1) for name, values in rows.items()}) for row in range(N)]
    again = function.compute(rows)
    for name, values in whole.items():
        back = shuffled[name].take(pa.array(np.argsort(order)))
        split = pa.concat_arrays([part[name] for part in single])
        for other, how in ((again[name], "run again"), (split, "row by row"), (back, "in another order")):
            if not _equal(values, other):
                raise DataError(
                    f"A function is row-wise and gives the same each time, on-demand feature view "
                    f"{function.view.name!r} gives another {name!r} when {how}: {values.to_pylist()} and "
                    f"{other.to_pylist()}; compute every row from its own inputs alone."
                )


def _equal(one: pa.Array, other: pa.Array) -> bool:
    if one.equals(other) or not pa.types.is_floating(one.type):
        return bool(one.equals(other))
    a, b = (array.to_numpy(zero_copy_only=False) for array in (one, other))
    return bool(np.allclose(a, b, rtol=TOLERANCE, atol=0.0, equal_nan=True))
