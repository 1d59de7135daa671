"""A function that asks for an input that is not there is told which there are."""

import pytest

from headrace.catalog.definitions import Column, DType, OnDemandView, ViewReference
from headrace.compute.check import check_functions
from headrace.compute.on_demand import OnDemandFunction
from headrace.errors import DataError, DefinitionError

INPUTS = (ViewReference("spend", "spend", ("sum_1h",)),)
REQUEST = (Column("amount", DType.FLOAT64),)
COLUMNS = [Column("sum_1h", DType.FLOAT64), *REQUEST]


def view(body, mode="pandas"):
    code = f"def share(inputs):\n    {body}\n"
    return OnDemandView("share", (Column("share", DType.FLOAT64),), INPUTS, REQUEST, mode, code, "share", "f")


@pytest.mark.parametrize(
    ("body", "mode"),
    [
        ("return inputs[['total']].rename(columns={'total': 'share'})", "pandas"),
        ("return inputs.assign(share=inputs['total'])", "pandas"),
        ("return inputs.assign(share=inputs.total)", "pandas"),
        ("return {'share': inputs['total']}", "python"),
        ("return {'share': inputs['total']}", "singleton"),
    ],
)
def test_apply_names_the_missing_input_those_there_are_and_the_place(body, mode):
    with pytest.raises(DefinitionError) as refusal:
        check_functions([view(body, mode)], {"share": COLUMNS}, {"share": "shop.py, line 7"})
    text = str(refusal.value)
    assert text.startswith("shop.py, line 7: On-demand feature view 'share' reads 'total', which is none of its inputs")
    assert "inputs: sum_1h, amount; correct the name" in text


def test_a_key_of_the_functions_own_table_is_not_taken_for_an_input():
    import pyarrow as pa

    function = OnDemandFunction(view("return {'share': [{'x': 1.0}[str(a)] for a in inputs['amount']]}", "python"))
    with pytest.raises(DataError, match="failed: KeyError"):
        function.compute({"sum_1h": pa.array([1.0]), "amount": pa.array([2.0])})
