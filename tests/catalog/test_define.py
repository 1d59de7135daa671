"""The short forms, and that Feast alone works with what they return."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureService, FeatureStore, FeatureView, RepoConfig, StreamFeatureView, ValueType
from feast.types import Float64, Int64, String

from headrace.define import entity, events, stream_view, windows
from headrace.errors import DefinitionError

COLUMNS = {"id": "string", "card_id": "bigint", "amount": "double", "country": "string", "ts": "timestamp"}


def payments(**options: Any) -> Any:
    return events("payments", time="ts", columns=COLUMNS, **options)


def test_events_are_a_push_source_with_the_ddl_in_its_tags() -> None:
    source = payments(id="id", partitions=4, dedup="1h", max_future=timedelta(seconds=30), tags={"team": "risk"})
    assert source.tags == {
        "team": "risk",
        "schema": "id string, card_id bigint, amount double, country string, ts timestamp",
        "event_id": "id",
        "partitions": "4",
        "dedup_horizon": "1h",
        "max_future_skew": "30s",
    }
    assert source.batch_source.timestamp_field == "ts"
    assert payments(history="old/rows.parquet").batch_source.path == "old/rows.parquet"


def test_windows_name_features_by_function_column_and_window() -> None:
    found = [
        *windows("*", ["count"], ["10m", "1h"]),
        *windows("amount", ["sum", "max"], [timedelta(days=1), "lifetime"]),
    ]
    assert [item.name for item in found] == [
        "count_10m",
        "count_1h",
        "sum_amount_24h",
        "sum_amount_lifetime",
        "max_amount_24h",
        "max_amount_lifetime",
    ]
    assert [item.time_window for item in found][-1] is None
    assert windows("amount", ["sum"], ["60m"], hop="1m")[0].slide_interval == timedelta(minutes=1)
    assert windows("amount", ["sum"], ["60m"])[0].name == "sum_amount_60m"


@pytest.mark.filterwarnings("ignore:.*experimental:RuntimeWarning")
def test_a_stream_view_fills_its_schema_in() -> None:
    card = entity("card", key="card_id", dtype="bigint")
    view = stream_view(
        "spend", card, payments(), windows("amount", ["mean"], ["1h"]), windows("country", ["last", "count"], ["1h"])
    )
    assert isinstance(view, StreamFeatureView)
    assert [(field.name, field.dtype) for field in view.features] == [
        ("mean_amount_1h", Float64),
        ("last_country_1h", String),
        ("count_country_1h", Int64),
    ]
    assert [(field.name, field.dtype) for field in view.entity_columns] == [("card_id", Int64)]
    assert card.value_type == ValueType.INT64


REFUSED = {
    "expect": (lambda: payments(expect={"amount": ["positive"]}), "'positive', which is no rule; use one of not_null"),
    "type": (lambda: events("e", time="ts", columns={"ts": "date"}), "'date'; use one of int"),
    "time": (lambda: events("e", time="at", columns={"ts": "timestamp"}), "time of source 'e' is 'at'"),
    "id": (lambda: payments(id="no"), "id of source 'payments' is 'no'"),
    "window": (lambda: windows("amount", ["sum"], ["500ms"]), "whole seconds"),
    "duration": (lambda: windows("amount", ["sum"], ["soon"]), "'soon'"),
    "hop of a lifetime": (lambda: windows("amount", ["sum"], hop="1m"), "lifetime has no hop"),
    "one function": (lambda: windows("amount", "sum", ["1h"]), r"is a list, got 'sum'; write \['sum'\]"),
    "key of doubles": (lambda: entity("e", dtype="double"), "string or an integer"),
    "missing column": (
        lambda: stream_view("v", entity("card"), payments(), windows("amout", ["sum"], ["1h"])),
        "'sum_amout_1h' of view 'v'.*needs column 'amout'",
    ),
    "sum of strings": (
        lambda: stream_view("v", entity("card"), payments(), windows("country", ["sum"], ["1h"])),
        "'sum_country_1h' of view 'v'.*numeric",
    ),
}


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_where_it_is_written(make: Any, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        make()


@pytest.mark.filterwarnings("ignore:.*experimental:RuntimeWarning")
def test_stock_feast_applies_them_without_any_file(tmp_path: Path) -> None:
    card = entity("card", key="card_id", dtype="bigint")
    source = payments(id="id")
    view = stream_view("spend", card, source, windows("amount", ["sum", "last"], ["1h"]), windows("*", ["count"]))
    service = FeatureService(name="fraud", features=[view[["sum_amount_1h"]]])
    config = RepoConfig(
        project="shop",
        provider="local",
        registry=str(tmp_path / "registry.db"),
        online_store=None,
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    store.apply([card, source, view, service])
    found = store.get_stream_feature_view("spend")
    assert {field.name for field in found.features} >= {"sum_amount_1h", "last_amount_1h", "count_lifetime"}
    assert found.stream_source.tags["event_id"] == "id"
    assert isinstance(found, FeatureView)
