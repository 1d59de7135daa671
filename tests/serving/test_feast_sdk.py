"""Feast's own SDK, with `online_store: {type: remote}`, against our server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from shop import Live, now


@pytest.fixture(scope="module")
def sdk(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Bool, Float32, String, UnixTimestamp

    folder: Path = tmp_path_factory.mktemp("sdk")
    batch = folder / "profile.parquet"
    pd.DataFrame({"card_id": ["x"], "event_timestamp": [datetime.now(UTC)]}).to_parquet(batch)
    store = FeatureStore(
        config=RepoConfig(
            project="shop",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"type": "remote", "path": live.url},
            entity_key_serialization_version=3,
            repo_path=folder,
        )
    )
    card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)
    fields = [("limit", Float32), ("city", String), ("vip", Bool), ("since", UnixTimestamp)]
    views = [
        FeatureView(
            name=name,
            entities=[card],
            ttl=timedelta(days=1),
            schema=[Field(name="card_id", dtype=String), *(Field(name=n, dtype=t) for n, t in fields)],
            source=FileSource(name=f"{name}_batch", path=str(batch), timestamp_field="event_timestamp"),
        )
        for name in ("profile", "nowhere")
    ]
    store.apply([card, *views])
    return store


def test_what_the_sdk_writes_it_reads_back(live: Live, sdk: Any) -> None:
    rows = {"card_id": ["s1", "s2"], "limit": [1.5, 2.5], "city": ["Köln", None], "vip": [True, False]}
    times = {"since": [datetime(2013, 1, 1, tzinfo=UTC)] * 2, "event_timestamp": [datetime.now(UTC)] * 2}
    sdk.write_to_online_store("profile", pd.DataFrame({**rows, **times}))
    live.wait_until_applied()
    names = ["limit", "city", "vip"]
    keys = [{"card_id": "s1"}, {"card_id": "s2"}, {"card_id": "never"}]
    seen = sdk.get_online_features(features=[f"profile:{name}" for name in names], entity_rows=keys).to_dict()
    assert seen["card_id"] == ["s1", "s2", "never"]
    assert [seen[name] for name in names] == [[1.5, 2.5, None], ["Köln", None, None], [True, False, None]]


def test_features_of_a_stream_reach_the_sdk_by_service(live: Live, sdk: Any) -> None:
    from feast import FeatureService

    live.push([{"id": "sdk1", "card_id": "stream", "amount": 4, "ts": now(-5)}])
    live.wait_until_applied()
    service = FeatureService(name="card_v1", features=[])
    seen = sdk.get_online_features(features=service, entity_rows=[{"card_id": "stream"}]).to_dict()
    assert (seen["count_1h"], seen["sum_1h"]) == ([1], [4.0])


def test_an_unknown_view_is_feast_s_own_exception(sdk: Any) -> None:
    from feast.errors import FeatureViewNotFoundException

    with pytest.raises(FeatureViewNotFoundException, match="There is no feature view 'nowhere'"):
        sdk.get_online_features(features=["nowhere:city"], entity_rows=[{"card_id": "a"}])


def test_a_wrong_key_is_a_feast_error_with_our_message(sdk: Any) -> None:
    from feast.errors import FeastError

    with pytest.raises(FeastError, match="card_id must be string, got 5"):
        sdk.get_online_features(features=["profile:city"], entity_rows=[{"card_id": 5}])
