"""Rows through Feast's stock SDK and CLI: written, materialized, looked up and joined."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from plugged import Plugged, forget, write_profiles

from headrace.errors import DataError, RequestError, UnknownNameError
from headrace.stores.embedded import detach

pytestmark = pytest.mark.timeout(300)  # Feast's CLI is another process, which imports it anew

PROFILE = ["profile:limit", "profile:city", "profile:since"]
MakeStore = Callable[..., Any]


def profile_views(root: Path, path: str = "profiles.parquet", **more: Any) -> list[Any]:
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, String, UnixTimestamp

    card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)
    fields = [("limit", Float64), ("city", String), ("since", UnixTimestamp)]
    source = FileSource(name="profiles", path="profiles.parquet", timestamp_field="at", created_timestamp_column="made")
    view = FeatureView(
        name="profile",
        entities=[card],
        ttl=timedelta(days=2),
        schema=[Field(name=name, dtype=kind) for name, kind in fields],
        source=source,
    )
    return [card, view]


def profile_rows(*rows: tuple[str, float, datetime]) -> pd.DataFrame:
    keys, limits, times = zip(*rows, strict=True)
    since = [pd.Timestamp("2020-02-29 12:00:00", tz="UTC")] * len(rows)
    places = {"city": ["Trier"] * len(rows), "since": since}
    return pd.DataFrame({"card_id": keys, "limit": limits, **places, "at": times, "made": times})


def looked_up(store: Any, *cards: str, features: list[str] = PROFILE) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = store.get_online_features(features, [{"card_id": card} for card in cards]).to_dict()
    return found


def test_the_cli_materializes_the_newest_row_of_each_key(plugged: Plugged) -> None:
    found = looked_up(plugged.feast, "a", "b", "never")
    assert found["limit"] == [3.0, None, None]  # of two rows of one time the later created one; past the ttl; unseen
    assert found["city"] == ["Bonn", None, None]
    assert found["since"][0] == datetime(2013, 5, 1, 12, tzinfo=UTC)


@pytest.fixture(params=["headrace.feast_plugin.HeadraceBatchEngine", "local"])
def applied(request: pytest.FixtureRequest, feast_store: MakeStore) -> Any:
    store = feast_store(engine=request.param)
    write_profiles(Path(store.repo_path), datetime.now(UTC))
    store.apply(profile_views(Path(store.repo_path)))
    return store


def test_materializing_never_overwrites_a_newer_row(applied: Any) -> None:
    now = datetime.now(UTC)
    applied.write_to_online_store("profile", profile_rows(("a", 50.0, now), ("b", 60.0, now - timedelta(days=30))))
    applied.materialize(now - timedelta(days=9), now)
    assert looked_up(applied, "a")["limit"] == [50.0]
    applied.write_to_online_store("profile", profile_rows(("a", 70.0, now - timedelta(hours=2))))
    assert looked_up(applied, "a")["limit"] == [50.0]
    asyncio.run(applied.write_to_online_store_async("profile", profile_rows(("a", 80.0, now + timedelta(seconds=1)))))
    found = asyncio.run(applied.get_online_features_async(PROFILE, [{"card_id": "a"}])).to_dict()
    assert (found["limit"], found["city"]) == ([80.0], ["Trier"])
    assert found["since"] == [datetime(2020, 2, 29, 12, tzinfo=UTC)]


def test_only_rows_between_start_and_end_are_materialized(applied: Any) -> None:
    now = datetime.now(UTC)
    applied.materialize(now - timedelta(hours=6), now - timedelta(hours=4))
    assert looked_up(applied, "a", "b")["limit"] == [1.0, None]


def test_what_was_forgotten_is_not_materialized_again(applied: Any) -> None:
    from headrace.feast_plugin.shared import shared_of

    now = datetime.now(UTC)
    applied.materialize(now - timedelta(days=9), now)
    assert looked_up(applied, "a")["limit"] == [3.0]
    shared = shared_of(applied.config)
    forget(shared.settings, shared.catalog(), "card", "a")
    assert looked_up(applied, "a")["limit"] == [None]
    applied.materialize(now - timedelta(days=9), now)
    assert looked_up(applied, "a")["limit"] == [None]
    applied.write_to_online_store("profile", profile_rows(("a", 7.0, now - timedelta(hours=1)), ("c", 8.0, now)))
    assert looked_up(applied, "a", "c")["limit"] == [None, 8.0]
    frame = pd.DataFrame({"card_id": ["a"], "event_timestamp": [now]})
    assert applied.get_historical_features(frame, ["profile:limit"]).to_df()["limit"].isna().all()
    source = applied.get_data_source("profiles")
    pulled = applied._get_provider().offline_store.pull_all_from_table_or_query(
        applied.config, source, ["card_id"], ["limit"], "at"
    )
    assert pulled.to_df()["card_id"].tolist() == ["b"]


def test_of_rows_of_one_time_the_later_created_wins(applied: Any) -> None:
    now = datetime.now(UTC)
    rows = profile_rows(("a", 1.0, now), ("a", 2.0, now)).assign(made=[now, now - timedelta(hours=1)])
    applied.write_to_online_store("profile", rows)
    assert looked_up(applied, "a")["limit"] == [1.0]


def test_a_row_says_when_it_was_true(applied: Any) -> None:
    now = datetime.now(UTC)
    applied.write_to_online_store("profile", profile_rows(("x", 1.0, now), ("old", 1.0, now - timedelta(days=3))))
    found = applied.get_online_features(["profile:limit"], [{"card_id": key} for key in ("x", "old", "never")]).proto
    limits = found.results[list(found.metadata.feature_names.val).index("limit")]
    assert list(limits.statuses) == [1, 4, 3]  # PRESENT, OUTSIDE_MAX_AGE, NOT_FOUND
    assert limits.event_timestamps[0].ToDatetime(tzinfo=UTC) == now
    assert limits.event_timestamps[2].ToMilliseconds() == 0


def test_values_of_a_wrong_type_and_infinities_are_refused(applied: Any) -> None:
    with pytest.raises(RequestError, match="Values must have the declared types; row 1"):
        applied.write_to_online_store(
            "profile", profile_rows(("a", 1.0, datetime.now(UTC)), ("b", float("inf"), datetime.now(UTC)))
        )
    assert looked_up(applied, "a")["limit"] == [None]


def test_rows_of_the_past_are_joined_as_they_were(applied: Any) -> None:
    now = pd.Timestamp.now("UTC")
    hours = [0.5, 2.0, 6.0, 0.0]
    frame = pd.DataFrame(
        {"card_id": ["a", "a", "a", "b"], "when": [now - pd.Timedelta(hours=hour) for hour in hours], "n": range(4)}
    )
    job = applied.get_historical_features(frame, ["profile:limit", "profile:city"], full_feature_names=True)
    found = job.to_df()
    assert found["profile__limit"].fillna(-1).tolist() == [3.0, 1.0, -1, -1]  # b: past its ttl
    assert found["n"].tolist() == [0, 1, 2, 3]
    assert job.to_arrow().schema.field("profile__limit").type == pa.float64()


@pytest.fixture(params=["parquet", "delta"])
def files_only(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Our offline store beneath another online store: what Feast knows of files alone."""
    from feast import FeatureStore, RepoConfig
    from feast.data_format import DeltaFormat

    from headrace.feast_plugin.shared import close_shared

    rows = write_profiles(tmp_path, datetime.now(UTC))
    views = profile_views(tmp_path)
    if request.param == "delta":
        write_deltalake(str(tmp_path / "rows"), pa.Table.from_pandas(rows))
        views = profile_views(tmp_path, path="rows", file_format=DeltaFormat())
    store = FeatureStore(
        config=RepoConfig(
            project="files",
            provider="local",
            registry=str(tmp_path / "registry.db"),
            online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
            offline_store={"type": "headrace.feast_plugin.HeadraceOfflineStore", "data_dir": str(tmp_path / "data")},
            entity_key_serialization_version=3,
            repo_path=tmp_path,
        )
    )
    store.apply(views)
    yield store
    close_shared()
    detach(tmp_path / "data")


def test_files_are_joined_and_materialized_without_a_catalog(files_only: Any) -> None:
    now = pd.Timestamp.now("UTC")
    hours = [0.5, 2.0, 6.0, 0.0]
    frame = pd.DataFrame(
        {
            "card_id": ["a", "a", "a", "b"],
            "event_timestamp": [now - pd.Timedelta(hours=hour) for hour in hours],
        }
    )
    found = files_only.get_historical_features(frame, ["profile:limit", "profile:city"]).to_df()
    assert found["limit"].fillna(-1).tolist() == [3.0, 1.0, -1, -1]
    files_only.write_to_offline_store("profile", profile_rows(("z", 5.0, now)), reorder_columns=True)
    files_only.materialize(now - timedelta(days=9), now)
    assert looked_up(files_only, "a", "b", "z")["limit"] == [3.0, 9.0, 5.0]


def assert_knows_what_was_known(store: Any) -> None:
    now = pd.Timestamp.now("UTC")
    frame = pd.DataFrame({"card_id": ["a"], "event_timestamp": [now - pd.Timedelta(hours=0.3)]})
    asked = {"entity_df": frame, "features": ["profile:limit"]}
    assert store.get_historical_features(**asked).to_df()["limit"].tolist() == [3.0]
    known = store.get_historical_features(**asked, filter_by_created_timestamp=True).to_df()
    assert known["limit"].tolist() == [2.0]  # of the same time, and there by then


def test_what_a_view_came_to_know_later_is_left_out_where_asked(applied: Any) -> None:
    assert_knows_what_was_known(applied)


def test_what_a_file_came_to_know_later_is_left_out_where_asked(files_only: Any) -> None:
    assert_knows_what_was_known(files_only)


def test_without_an_entity_frame_every_key_and_time_is_a_row(applied: Any) -> None:
    now = datetime.now(UTC)
    found = applied.get_historical_features(
        features=["profile:limit"], start_date=now - timedelta(hours=6), end_date=now
    ).to_df()
    assert found[["card_id", "limit"]].values.tolist() == [["a", 1.0], ["a", 3.0]]


def test_a_dataset_is_saved_and_read_again(applied: Any) -> None:
    from feast.errors import SavedDatasetLocationAlreadyExists
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    frame = pd.DataFrame({"card_id": ["a", "b"], "event_timestamp": [pd.Timestamp.now("UTC")] * 2})
    job = applied.get_historical_features(frame, ["profile:limit"])
    storage = SavedDatasetFileStorage("saved/rows.parquet")
    dataset = applied.create_saved_dataset(job, "rows", storage)
    assert dataset.to_df()["limit"].fillna(0).tolist() == [3.0, 0.0]
    again = applied.get_saved_dataset("rows").to_df()
    assert set(again["card_id"]) == {"a", "b"}
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        applied.create_saved_dataset(job, "other", storage)


def test_offline_rows_are_added_to_the_file_and_joined(applied: Any) -> None:
    now = pd.Timestamp.now("UTC")
    applied.write_to_offline_store("profile", profile_rows(("z", 5.0, now)))
    with pytest.raises(ValueError, match="extra_unexpected_columns: \\['more'\\]"):
        applied.write_to_offline_store("profile", profile_rows(("z", 6.0, now)).assign(more=1))
    frame = pd.DataFrame({"card_id": ["z", "a"], "event_timestamp": [now] * 2})
    assert applied.get_historical_features(frame, ["profile:limit"]).to_df()["limit"].tolist() == [5.0, 3.0]


BAD_FRAMES: dict[str, tuple[Any, str]] = {
    "a query": ("SELECT 1", "no SQL engine behind"),
    "no time": (pd.DataFrame({"card_id": ["a"]}), "has its times in a column 'event_timestamp'"),
    "a missing time": (
        pd.DataFrame({"card_id": ["a", "b"], "event_timestamp": [pd.Timestamp("2024-01-01"), pd.NaT]}),
        "'event_timestamp' is null in 1 rows",
    ),
    "no key": (pd.DataFrame({"event_timestamp": [pd.Timestamp("2024-01-01")]}), "is joined by 'card_id'"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_entity_frames_that_do_not_fit_are_refused(plugged: Plugged, name: str) -> None:
    frame, message = BAD_FRAMES[name]
    with pytest.raises(DataError, match=message):
        plugged.feast.get_historical_features(frame, ["profile:limit"]).to_df()


def test_a_view_that_nobody_applied_is_named(feast_store: MakeStore) -> None:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey

    store = feast_store()
    view = profile_views(Path(store.repo_path))[1]
    with pytest.raises(UnknownNameError, match="There is no feature view 'profile' in the catalog, which has: none"):
        store._get_provider().online_read(store.config, view, [EntityKey()])


def test_other_stores_write_as_before(tmp_path: Path) -> None:
    from feast import FeatureStore, RepoConfig

    import headrace.feast_plugin  # noqa: F401 - it teaches FeatureStore

    write_profiles(tmp_path, datetime.now(UTC))
    store = FeatureStore(
        config=RepoConfig(
            project="other",
            provider="local",
            registry=str(tmp_path / "registry.db"),
            online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
            entity_key_serialization_version=3,
            repo_path=tmp_path,
        )
    )
    store.apply(profile_views(tmp_path))
    store.write_to_online_store("profile", profile_rows(("a", 4.0, datetime.now(UTC))))
    assert looked_up(store, "a")["limit"] == [4.0]
