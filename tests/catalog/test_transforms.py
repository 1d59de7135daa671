"""Transforms and expectations as users write them, from the text of a definition to the catalog and the check."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.catalog.definitions import catalog_from_json, catalog_to_json
from headrace.compute.check_transforms import check_transforms, try_transform
from headrace.errors import DataError, DefinitionError

AGG = 'windows("amount", ["sum"], over=["1h"])'


def view(body: str, options: str = "", engine: str = "pandas", aggregations: str = AGG) -> str:
    """A view with a transform; `body` is its function's."""
    return f"""
import polars as pl
RATE = 2.0
def change(df):
    {body}
spend = stream_view("spend", card, payments, {aggregations}, transform=change, engine="{engine}"{options})
"""


def test_a_transform_is_compiled_with_its_code_and_columns(compiled: Any) -> None:
    columns = ', columns={"card_id": "string", "euros": "double", "ts": "timestamp"}'
    body = 'return df[df["amount"] > 0].assign(euros=df["amount"] * RATE)'
    catalog = compiled(view(body, columns, aggregations='windows("euros", ["sum"], over=["1h"])'))
    transform = catalog.view("spend").transform
    assert (transform.mode, transform.function, transform.moves_time) == ("pandas", "change", False)
    assert [column.name for column in transform.columns] == ["card_id", "euros", "ts"]
    assert "RATE = 2.0" in transform.code
    assert catalog_from_json(catalog_to_json(catalog)) == catalog
    assert check_transforms(catalog) == []


def test_plain_feast_says_the_same(compiled: Any) -> None:
    text = """
from feast.stream_feature_view import stream_feature_view
@stream_feature_view(entities=[card], ttl=timedelta(0), source=payments, mode="pandas", timestamp_field="ts",
    aggregations=[Aggregation(column="euros", function="sum", time_window=timedelta(hours=1), name="euros_1h")],
    schema=[Field(name="card_id", dtype=String), Field(name="euros_1h", dtype=Float64)],
    tags={"engine": "polars", "transformed": "card_id string, euros double, ts timestamp",
          "expect": '{"amount": ["not_null"]}'})
def spend(df):
    import polars as pl
    return df.with_columns(euros=pl.col("amount") * 2, ts=pl.col("ts"))
"""
    catalog = compiled(text)
    spend = catalog.view("spend")
    assert (spend.transform.mode, spend.transform.moves_time) == ("polars", True)
    assert [item.text for item in spend.expectations] == ["not_null"]
    assert check_transforms(catalog) == []


def test_a_plain_view_may_have_a_transform(compiled: Any) -> None:
    text = """
def change(df):
    return df.assign(euros=df["amount"] * 2)
last = StreamFeatureView(name="last", entities=[card], source=payments, mode="pandas", udf=change,
    schema=[Field(name="card_id", dtype=String), Field(name="euros", dtype=Float64)],
    tags={"transformed": "card_id string, euros double, ts timestamp"})
"""
    last = compiled(text).view("last")
    assert (last.kind, last.batch, [feature.name for feature in last.features]) == ("plain", None, ["euros"])


def test_what_changes_a_value_changes_the_fingerprint(compiled: Any) -> None:
    texts = {
        "none": view("return df").replace(', transform=change, engine="pandas"', ""),
        "same": view("return df"),
        "code": view("return df[df.amount > 0]"),
        "engine": view("return df", engine="polars"),
        "expect": view("return df", ', expect={"amount": ["not_null"]}'),
        "rule": view("return df", ', expect={"amount": ["between(0, 1)"]}'),
    }
    prints = {name: compiled(text).view("spend").fingerprint for name, text in texts.items()}
    assert len(set(prints.values())) == len(prints)
    warned = compiled(view("return df", ', expect={"amount": ["not_null: warn"]}')).view("spend").fingerprint
    assert warned == prints["same"]


def test_a_source_s_expectations_change_its_views(load: Any, compiled: Any) -> None:
    plain = view("return df").replace(', transform=change, engine="pandas"', "")
    before = compiled(plain).view("spend").fingerprint
    expecting = 'payments.tags["expect"] = \'{"country": ["max_length(2)"]}\'\n' + plain
    catalog = compiled(expecting)
    assert catalog.source("payments").expectations[0].text == "max_length(2)"
    assert catalog.view("spend").fingerprint != before


WORKING = {
    "filter": ("pandas", "return df[df.amount > 1]"),
    "explode": ("pandas", "return df.loc[df.index.repeat(df['count_items'].fillna(0).astype(int) % 3)]"),
    "sorted": ("pandas", "return df.sort_values('amount')"),
    "polars": ("polars", "return df.filter(pl.col('amount') > 1).with_columns(pl.col('country').str.to_uppercase())"),
    "lazy": ("polars", "return df.lazy().with_columns(amount=pl.col('amount') * RATE)"),
    "nothing left": ("polars", "return df.filter(pl.lit(False))"),
    "some fail": ("pandas", "assert not (df.country == 'JFK').any()\n    return df"),
}


@pytest.mark.parametrize(("engine", "body"), WORKING.values(), ids=WORKING)
def test_a_row_wise_transform_passes(compiled: Any, engine: str, body: str) -> None:
    catalog = compiled(view(body, engine=engine))
    notes = try_transform(catalog.view("spend"), catalog.source("payments"))
    assert bool(notes) == ("assert" in body)


REFUSED = {
    "running sum": ("pandas", "return df.assign(amount=df.amount.cumsum())", "gives other rows event by event|halves"),
    "group": ("pandas", "return df.assign(amount=df.groupby('card_id').amount.transform('sum'))", "gives other rows"),
    "previous row": ("polars", "return df.with_columns(amount=pl.col('amount').shift(1))", "gives other rows"),
    "distinct": ("polars", "return df.unique('country')", "of 24 sample events"),
    "behind a filter": (
        "polars",
        "return df.filter(pl.col('country') == 'NL').with_columns(amount=pl.col('amount').cum_sum())",
        "of 88 sample events",
    ),
    "behind two": (
        "pandas",
        "df = df[(df.country == 'NL') & (df.amount > 5_000)]\n    return df.assign(amount=df.amount.rank())",
        "gives other rows",
    ),
    "row lost": ("pandas", "return df.drop(columns='_row')", "no column '_row'.*keep _row"),
    "row lost by group": ("pandas", "return df.groupby('card_id', as_index=False).amount.sum()", "keep _row"),
    "row number used": ("polars", "return df.with_columns(amount=pl.col('_row').cast(pl.Float64))", "gives other rows"),
    "column lost": ("pandas", "return df[['_row', 'card_id', 'ts']]", "gives no column 'payment_id'"),
    "no frame": ("pandas", "return list(df)", "gives list, not a pandas DataFrame"),
    "wrong engine": ("polars", "return df.to_pandas()", "not a Polars DataFrame"),
    "wrong type": ("pandas", "return df.assign(amount=df.country)", "amount must be float64"),
    "no such column": ("pandas", "return df[df.euros > 0]", "AttributeError"),
    "no such key": ("pandas", "return df[df['euros'] > 0]", "KeyError: 'euros'"),
    "no such polars column": ("polars", "return df.filter(pl.col('euros') > 0)", "ColumnNotFoundError"),
    "moved unsaid": (
        "polars",
        "return df.with_columns(pl.selectors.datetime() + pl.duration(days=1))",
        "does not name",
    ),
}


@pytest.mark.parametrize(("engine", "body", "words"), REFUSED.values(), ids=REFUSED)
def test_a_transform_that_cannot_work_is_refused(compiled: Any, engine: str, body: str, words: str) -> None:
    catalog = compiled(view(body, engine=engine))
    with pytest.raises(DataError, match=words):
        try_transform(catalog.view("spend"), catalog.source("payments"))


def test_apply_tries_it_in_a_clean_process(compiled: Any) -> None:
    with pytest.raises(DefinitionError, match="that of view 'spend' gives other rows in halves, for 24 of 24"):
        check_transforms(compiled(view("return df.assign(amount=df.amount.rank())")))


BAD_DEFINITIONS = {
    "engine": (view("return df", engine="spark"), "tag engine.*use one of pandas, polars"),
    "no time": (view("return df", ', columns={"card_id": "string", "amount": "double"}'), "no column 'ts'"),
    "no key": (view("return df", ', columns={"amount": "double", "ts": "timestamp"}'), "card_id"),
    "row": (view("return df", ', columns={"card_id": "string", "amount": "double", "ts": "timestamp", "_row": "int"}'),
            "'_row' tells"),
    "columns": (f'spend = stream_view("spend", card, payments, {AGG}, columns={{"ts": "timestamp"}})', "has none"),
    "tag alone": (f'spend = stream_view("spend", card, payments, {AGG}, tags={{"engine": "polars"}})', "has none"),
    "clock": (view("import time\n    return df.assign(amount=time.time())"), "reads a clock"),
    "rule": (view("return df", ', expect={"amount": ["positive"]}'), "'positive', which is no rule"),
    "rule's column": (view("return df", ', expect={"euros": ["not_null"]}'), "names column 'euros'"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), BAD_DEFINITIONS.values(), ids=BAD_DEFINITIONS)
def test_a_definition_that_cannot_work_is_refused(compiled: Any, text: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        compiled(text)
