"""What `feast apply` does to the catalog, what it refuses, and what it keeps as Feast's own values."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headrace.catalog.definitions import Catalog, Service, ViewReference
from headrace.errors import DefinitionError, RequestError

MakeStore = Callable[..., Any]


def card() -> Any:
    from feast import Entity, ValueType

    return Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)


def payments(name: str = "payments") -> Any:
    from headrace.define import events

    return events(name, time="ts", columns={"card_id": "string", "amount": "double", "ts": "timestamp"})


def windowed(name: str = "spend", function: str = "sum", source: Any = None) -> Any:
    from headrace.define import stream_view, windows

    return stream_view(name, card(), source or payments(), windows("amount", [function], over=["1h"]))


def plain(name: str = "limits", kind: Any = None, entities: Any = None, **more: Any) -> Any:
    from feast import FeatureView, Field, FileSource
    from feast.types import Float64

    return FeatureView(
        name=name,
        entities=[card()] if entities is None else entities,
        schema=[Field(name="value", dtype=kind or Float64)],
        source=FileSource(name=f"{name}_rows", path=f"{name}.parquet", timestamp_field="at"),
        **more,
    )


def catalog_of(store: Any) -> Catalog:
    from headrace.feast_plugin.shared import shared_of

    return shared_of(store.config).catalog(fresh=True)


def test_views_applied_apart_live_beside_each_other(feast_store: MakeStore) -> None:
    store = feast_store()
    store.apply([card(), windowed()])
    first = catalog_of(store)
    store.apply([plain()])  # the entity is known from before
    second = catalog_of(store)
    assert [view.name for view in second.views] == ["spend", "limits"]
    assert second.view("spend") == first.view("spend")
    assert second.version == first.version + 1
    store.apply([plain(), windowed()])
    assert catalog_of(store) == second


def test_a_removed_view_leaves_the_catalog_and_its_rows_are_not_seen_again(feast_store: MakeStore) -> None:
    store = feast_store()
    row = pd.DataFrame({"card_id": ["a"], "value": [1.0], "at": [datetime.now(UTC)]})
    row.to_parquet(Path(store.repo_path) / "limits.parquet")
    store.apply([card(), plain(), windowed()])
    store.write_to_online_store("limits", row)
    asked = {"features": ["limits:value"], "entity_rows": [{"card_id": "a"}]}
    assert store.get_online_features(**asked).to_dict()["value"] == [1.0]
    store.apply([windowed()], objects_to_delete=[plain()], partial=False)
    assert [view.name for view in catalog_of(store).views] == ["spend"]
    store.apply([plain()])
    assert store.get_online_features(**asked).to_dict()["value"] == [None]
    store.teardown()
    assert catalog_of(store).views == ()


def test_services_of_the_catalog_stay_as_long_as_their_views_do(feast_store: MakeStore) -> None:
    from dataclasses import replace

    from headrace.feast_plugin.shared import shared_of
    from headrace.stores.catalogs import save_catalog

    store = feast_store()
    store.apply([card(), windowed(), windowed("other", "max")])
    shared, before = shared_of(store.config), catalog_of(store)
    references = {
        name: (ViewReference(name, name, (before.view(name).features[0].name,)),) for name in ("spend", "other")
    }
    services = tuple(Service(f"by_{name}", held) for name, held in references.items())
    save_catalog(shared.store, shared.settings, replace(before, services=services))
    store.apply([plain()])
    assert catalog_of(store).services == services
    store.apply([], objects_to_delete=[windowed("other", "max")], partial=False)
    assert [service.name for service in catalog_of(store).services] == ["by_spend"]


def test_a_change_of_what_a_serving_view_means_is_refused(feast_store: MakeStore) -> None:
    from headrace.feast_plugin.shared import shared_of
    from headrace.stores.offline import OfflineStore
    from materialize.worker import Worker

    store = feast_store()
    store.apply([card(), windowed()])
    before, shared = catalog_of(store), shared_of(store.config)
    Worker(shared.store, OfflineStore(shared.settings.data_dir), before).start()
    with pytest.raises(DefinitionError, match="the values of spend would mean something else; run headrace apply --re"):
        store.apply([windowed(function="max")])
    assert catalog_of(store) == before


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "an unknown column": (lambda: windowed(source=payments("p")) and _bad_column(), "needs column 'nowhere'"),
    "no entities": (lambda: plain(entities=[]), "without entities is not supported.*other_views: keep"),
    "a map": (lambda: plain(kind=_map()), "Feast's type Map.*other_views: keep under online_store"),
}


def _bad_column() -> Any:
    from feast import Aggregation, Field, StreamFeatureView
    from feast.types import Float64

    return StreamFeatureView(
        name="bad",
        entities=[card()],
        source=payments(),
        ttl=timedelta(0),
        timestamp_field="ts",
        mode="pandas",
        aggregations=[Aggregation(column="nowhere", function="sum", time_window=timedelta(hours=1), name="s")],
        schema=[Field(name="s", dtype=Float64)],
    )


def _map() -> Any:
    from feast.types import Map

    return Map


@pytest.mark.parametrize("name", REFUSED)
def test_what_headrace_apply_refuses_feast_apply_refuses_too(feast_store: MakeStore, name: str) -> None:
    make, message = REFUSED[name]
    store = feast_store()
    store.apply([card(), windowed()])
    before = catalog_of(store)
    with pytest.raises(DefinitionError, match=message):
        store.apply([card(), make()])
    assert catalog_of(store) == before


@pytest.mark.filterwarnings("ignore:View '.*' is kept as Feast's values:UserWarning")
def test_other_views_are_kept_as_feast_s_values_where_the_configuration_says_so(feast_store: MakeStore) -> None:
    from feast.types import Map

    store = feast_store(other_views="keep")
    now = pd.Timestamp.now("UTC")
    rows = pd.DataFrame({"value": [2.5], "at": [now]})
    notes = pd.DataFrame({"card_id": ["a", "b"], "value": [{"x": "1"}, {"x": "ü"}], "at": [now] * 2})
    rows.to_parquet(Path(store.repo_path) / "world.parquet")
    notes.to_parquet(Path(store.repo_path) / "notes.parquet")
    world, note = plain("world", entities=[]), plain("notes", kind=Map)
    store.apply([card(), world, note, windowed()])
    assert [view.name for view in catalog_of(store).views] == ["spend"]
    store.write_to_online_store("notes", notes)
    store.write_to_online_store(
        "notes", notes.assign(value=[{"x": "9"}, {"x": "9"}], at=[now - pd.Timedelta("1h")] * 2)
    )
    store.materialize(now - timedelta(days=1), now + timedelta(seconds=1), feature_views=["world"])
    asked = {"features": ["notes:value", "world:value"], "entity_rows": [{"card_id": key} for key in ("a", "b", "c")]}
    found = store.get_online_features(**asked, full_feature_names=True).to_dict()
    assert found["notes__value"] == [{"x": "1"}, {"x": "ü"}, None]
    assert found["world__value"] == [2.5, 2.5, 2.5]
    frame = pd.DataFrame({"card_id": ["b", "c"], "event_timestamp": [now, now]})
    past = store.get_historical_features(frame, asked["features"], full_feature_names=True).to_df()
    assert past["world__value"].tolist() == [2.5, 2.5]
    assert past["notes__value"].tolist() == [{"x": "ü"}, None]
    store.apply([], objects_to_delete=[note], partial=False)
    store.apply([note])
    assert store.get_online_features(["notes:value"], [{"card_id": "a"}]).to_dict()["value"] == [None]


@pytest.mark.filterwarnings("ignore:View '.*' is kept as Feast's values:UserWarning")
def test_composite_keys_of_kept_views_are_told_apart(feast_store: MakeStore) -> None:
    from feast import Entity, ValueType
    from feast.types import Array, Int64

    store = feast_store(other_views="keep")
    pair = [Entity(name=name, join_keys=[f"{name}_id"], value_type=ValueType.STRING) for name in ("left", "right")]
    now = pd.Timestamp.now("UTC")
    keys = [("a,b", "c"), ("a", "b,c"), ("c", "a,b")]
    rows = pd.DataFrame(
        {
            "left_id": [left for left, _ in keys],
            "right_id": [right for _, right in keys],
            "value": [np.array([i, i]) for i in range(3)],
            "at": [now] * 3,
        }
    )
    rows.to_parquet(Path(store.repo_path) / "pairs.parquet")
    store.apply([*pair, plain("pairs", kind=Array(Int64), entities=pair)])
    store.write_to_online_store("pairs", rows)
    asked = [{"right_id": right, "left_id": left} for left, right in keys]
    assert store.get_online_features(["pairs:value"], asked).to_dict()["value"] == [[0, 0], [1, 1], [2, 2]]


def test_a_feature_that_the_catalog_lacks_says_what_to_do(feast_store: MakeStore) -> None:
    store = feast_store()
    store.apply([card(), windowed()])
    view = store.get_stream_feature_view("spend")
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    key = EntityKey(join_keys=["card_id"], entity_values=[Value(string_val="a")])
    with pytest.raises(RequestError, match="applied with the features sum_amount_1h, not with 'old'; run feast apply"):
        store._get_provider().online_read(store.config, view, [key], ["old"])
