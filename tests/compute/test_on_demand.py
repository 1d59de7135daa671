"""On-demand functions: dtypes, nulls, and rows that do not depend on each other."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
import pytest

from headrace.catalog.definitions import Column, DType, OnDemandView, ViewReference
from headrace.compute.check import check_functions, try_function
from headrace.compute.on_demand import OnDemandFunction
from headrace.dtypes import arrow_type
from headrace.errors import DataError, DefinitionError

Mode = Literal["pandas", "python", "singleton"]


def view(code: str, mode: Mode = "pandas", inputs: tuple[ViewReference, ...] = (), **features: str) -> OnDemandView:
    columns = tuple(Column(name, DType(dtype)) for name, dtype in features.items())
    return OnDemandView("v", columns, inputs, (), mode, code, "f", "0" * 12)


def compute(given: OnDemandView, **inputs: tuple[str, list[Any]]) -> dict[str, list[Any]]:
    arrays = {name: pa.array(values, arrow_type(DType(dtype))) for name, (dtype, values) in inputs.items()}
    result = OnDemandFunction(given).compute(arrays)
    assert [values.type for values in result.values()] == [arrow_type(feature.dtype) for feature in given.features]
    return {name: values.to_pylist() for name, values in result.items()}


PANDAS = "import pandas as pd\ndef f(df):\n    out = pd.DataFrame(index=df.index)\n"
RATIO = {
    "pandas": PANDAS + "    out['ratio'] = df['a'] / df['b']\n    return out\n",
    "python": "def f(d):\n    return {'ratio': [a / b if b else None for a, b in zip(d['a'], d['b'])]}\n",
    "singleton": "def f(d):\n    return {'ratio': d['a'] / d['b'] if d['b'] else None}\n",
}


@pytest.mark.parametrize("mode", RATIO)
def test_every_mode_computes_rows(mode: Mode) -> None:
    given = view(RATIO[mode], mode, ratio="float64")
    assert compute(given, a=("float64", [1.0, 3.0, 1.0]), b=("int64", [2, 4, 0])) == {"ratio": [0.5, 0.75, None]}


@pytest.mark.parametrize("mode", RATIO)
def test_no_rows_give_no_rows(mode: Mode) -> None:
    assert compute(view(RATIO[mode], mode, ratio="float64"), a=("float64", []), b=("int64", [])) == {"ratio": []}


def test_declared_types_are_cast_to_and_nan_and_infinity_are_null() -> None:
    code = PANDAS + "    out['hour'] = df['t'].dt.hour\n    out['x'] = 1.0 / df['n']\n    return out\n"
    times = [datetime(2013, 1, 1, 5, tzinfo=UTC), None, datetime(2013, 1, 1, 23, tzinfo=UTC)]
    given = view(code, hour="int64", x="float32")
    assert compute(given, t=("timestamp", times), n=("float64", [0.0, 4.0, None])) == {
        "hour": [5, None, 23],
        "x": [None, 0.25, None],
    }


@pytest.mark.parametrize("mode", ["python", "singleton"])
def test_times_and_strings_pass_through_and_naive_times_are_utc(mode: Mode) -> None:
    body = {
        "python": "from datetime import datetime\ndef f(d):\n    return {'t': [datetime(2013, 1, 1)] * len(d['s']), "
        "'s': d['s'], 'b': [s == 'x' for s in d['s']]}\n",
        "singleton": "from datetime import datetime\ndef f(d):\n"
        "    return {'t': datetime(2013, 1, 1), 's': d['s'], 'b': d['s'] == 'x'}\n",
    }
    result = compute(view(body[mode], mode, t="timestamp", s="string", b="bool"), s=("string", ["x", None]))
    assert result == {"t": [datetime(2013, 1, 1, tzinfo=UTC)] * 2, "s": ["x", None], "b": [True, False]}


def test_an_integer_column_keeps_its_type_beside_a_null() -> None:
    code = PANDAS + "    out['kind'] = str(df['n'].dtype)\n    out['n'] = df['n'] + 1\n    return out\n"
    big = 2**60 + 1
    result = compute(view(code, kind="string", n="int64"), n=("int64", [big, None, 3]))
    assert result == {"kind": ["int64", "float64", "int64"], "n": [big + 1, None, 4]}


def test_a_row_with_a_null_on_which_the_function_fails_reads_null_alone() -> None:
    code = "def f(d):\n    return {'x': [a * 2 if a is None or a > 1 else a + b for a, b in zip(d['a'], d['b'])]}\n"
    result = compute(view(code, "python", x="int64"), a=("int64", [1, None, 5, 1]), b=("int64", [1, 1, None, None]))
    assert result == {"x": [2, None, 10, None]}


def test_a_failure_on_a_row_without_nulls_names_view_and_reason() -> None:
    code = "def f(d):\n    return {'x': [1 / a for a in d['a']]}\n"
    with pytest.raises(DataError, match="'v' failed: ZeroDivisionError"):
        compute(view(code, "python", x="float64"), a=("float64", [1.0, 0.0, None]))


WRONG = {
    "missing": ("return {'y': [1] * 2}", "declares 'x', its function gives y"),
    "short": ("return {'x': [1]}", "has 1 values for 2 rows"),
    "scalar": ("return {'x': 1}", "list of 2 values, got int"),
    "fraction": ("return {'x': [0.5, 1.0]}", "declared as int64"),
    "text": ("return {'x': ['1', '2']}", "declared as int64: the function gives string"),
    "too large": ("return {'x': [2**70, 1]}", "declared as int64"),
    "no dict": ("return [1, 2]", "gives a dict, got list"),
}


@pytest.mark.parametrize(("body", "words"), WRONG.values(), ids=WRONG)
def test_wrong_outputs_are_refused(body: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        compute(view(f"def f(d):\n    {body}\n", "python", x="int64"), a=("int64", [1, 2]))


def test_inputs_also_have_feasts_full_names() -> None:
    inputs = (ViewReference("spend", "other", ("a",)),)
    code = "def f(d):\n    return {'x': [p + q for p, q in zip(d['spend__a'], d['other__a'])]}\n"
    assert compute(view(code, "python", inputs, x="int64"), a=("int64", [1, 2])) == {"x": [2, 4]}


def test_code_that_cannot_be_loaded_says_what_is_missing() -> None:
    with pytest.raises(DataError, match="No module named 'not_installed_here'"):
        OnDemandFunction(view("import not_installed_here\ndef f(d):\n    return d\n", x="int64"))


A = [Column("a", DType.INT64)]
NOT_ROW_WISE = {
    "mean": PANDAS + "    out['x'] = df['a'] - df['a'].mean()\n    return out\n",
    "shift": PANDAS + "    out['x'] = df['a'].shift(1)\n    return out\n",
    "count": PANDAS + "    out['x'] = len(df)\n    return out\n",
    "state": "import pandas as pd\nseen = []\ndef f(df):\n    seen.append(1)\n    return df.assign(x=len(seen))\n",
}


@pytest.mark.parametrize("code", NOT_ROW_WISE.values(), ids=NOT_ROW_WISE)
def test_a_function_whose_rows_depend_on_others_is_refused(code: str) -> None:
    with pytest.raises(DataError, match="row-wise"):
        try_function(view(code, x="float64"), A)


def test_a_row_wise_function_passes_and_a_weak_spot_for_nulls_is_noted() -> None:
    every = [Column(str(dtype), dtype) for dtype in DType]
    assert try_function(view(PANDAS + "    out['x'] = df['int64'] * 2.5\n    return out\n", x="float64"), every) == []
    notes = try_function(view("def f(d):\n    return {'x': [a * 2 for a in d['a']]}\n", "python", x="int64"), A)
    assert len(notes) == 1 and "read null" in notes[0]


def test_functions_are_tried_in_a_process_that_knows_installed_packages_alone() -> None:
    clean = "import sys\ndef f(d):\n    assert '' not in sys.path\n    return {'x': [print(i) or 1 for i in d['a']]}\n"
    assert check_functions([view(clean, "python", x="int64")], {"v": A}) == []
    with pytest.raises(DefinitionError, match=r"NameError.*missing"):
        check_functions(
            [view("def f(d):\n    return {'x': [missing for i in d['a']]}\n", "python", x="int64")], {"v": A}
        )
    with pytest.raises(DefinitionError, match="ended its process"):
        check_functions([view("import os\ndef f(d):\n    os._exit(3)\n", "python", x="int64")], {"v": A})
