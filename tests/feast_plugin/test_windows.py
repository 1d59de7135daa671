"""Windows through Feast's stock SDK: pushed, looked up and joined, against the oracle."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any

import pandas as pd
import pytest
from naive import window_value
from plugged import CARDS, Plugged, micros, nan_is_none

from headrace.catalog.compile import compile_repo
from headrace.catalog.load import load_repo
from headrace.errors import RequestError

pytestmark = pytest.mark.timeout(300)  # Feast's CLI is another process, which imports it anew

SPEND = ["count_10m", "sum_1h", "max_1h", "last_3_1h"]
REFERENCES = [*(f"spend:{name}" for name in SPEND), "takings:takings_1h"]


@pytest.fixture(scope="module")
def pushed(plugged: Plugged) -> Plugged:
    """Some hundred events pushed, in parts, online and online_and_offline, then applied and archived."""
    from feast.data_source import PushMode

    rng = random.Random(5)
    plugged.push(plugged.random_rows(rng, 150))
    plugged.push(plugged.random_rows(rng, 150), to=PushMode.ONLINE_AND_OFFLINE)
    asyncio.run(plugged.feast.push_async("payments", once := plugged.random_rows(rng, 20)))
    plugged.events += list(once.itertuples(index=False, name=None))
    plugged.take_in()
    return plugged


def truth(plugged: Plugged, feature: str, card: Any, shop: Any, t_us: int) -> Any:
    view = plugged.catalog.view("takings" if feature == "takings_1h" else "spend")
    (aggregation,) = [item for item in view.aggregations if item.feature == feature]
    key, column = (shop, 1) if feature == "takings_1h" else (card, 0)
    return window_value(aggregation, plugged.naive(column), key, t_us)


def assert_same(got: Any, expected: Any) -> None:
    assert got == pytest.approx(expected, rel=1e-9) if isinstance(expected, float | list) else got == expected


def test_feast_apply_gives_the_catalog_that_headrace_apply_would_give(plugged: Plugged) -> None:
    compiled = compile_repo(load_repo(plugged.root))
    assert {view.name: view for view in plugged.catalog.views} == {view.name: view for view in compiled.views}
    assert set(plugged.catalog.entities) == set(compiled.entities)
    assert plugged.catalog.sources == compiled.sources


def test_pushed_events_are_in_the_log_once_whatever_the_number_of_views(pushed: Plugged) -> None:
    archived = pushed.offline.read_events(pushed.catalog.source("payments"), ["amount"])
    assert archived.num_rows == len(pushed.events) == 320


def test_online_windows_equal_the_oracle(pushed: Plugged) -> None:
    rows = [{"card_id": card, "shop_id": shop} for shop, card in enumerate([*CARDS, "never"])]
    before = pd.Timestamp.now("UTC")
    found = pushed.feast.get_online_features(features=REFERENCES, entity_rows=rows).to_dict()
    between = pd.Timestamp.now("UTC")
    again = asyncio.run(pushed.feast.get_online_features_async(features=REFERENCES, entity_rows=rows)).to_dict()
    after = pd.Timestamp.now("UTC")
    assert any(value is not None for value in found["sum_1h"])
    for answer, times in ((found, (before, between)), (again, (between, after))):
        for feature in (*SPEND, "takings_1h"):
            for row, got in zip(rows, answer[feature], strict=True):
                possible = [truth(pushed, feature, row["card_id"], row["shop_id"], micros(t)) for t in times]
                try:
                    assert_same(got, possible[0])
                except AssertionError:
                    assert_same(got, possible[1])


def test_an_unseen_key_has_windows_and_they_are_empty(pushed: Plugged) -> None:
    found = pushed.feast.get_online_features(
        features=["spend:count_10m", "spend:sum_1h"], entity_rows=[{"card_id": "never"}]
    )
    assert found.to_dict() == {"card_id": ["never"], "count_10m": [0], "sum_1h": [None]}
    statuses = dict(zip(found.proto.metadata.feature_names.val, found.proto.results, strict=True))
    assert [list(statuses[name].statuses) for name in ("count_10m", "sum_1h")] == [[1], [2]]  # PRESENT, NULL_VALUE


def test_historical_windows_equal_the_oracle(pushed: Plugged) -> None:
    rng = random.Random(6)
    at_events = [event[3] for event in rng.sample(pushed.events, 15)]
    times = at_events + [pushed.now - timedelta(microseconds=rng.randrange(9_000_000_000)) for _ in range(60)]
    frame = pd.DataFrame(
        {
            "label": range(len(times)),
            "shop_id": [rng.randrange(4) for _ in times],
            "event_timestamp": [pd.Timestamp(time).tz_convert(None) for time in times],  # without a zone: UTC
            "card_id": [rng.choice([*CARDS, "never"]) for _ in times],
        }
    )
    found = pushed.feast.get_historical_features(frame, REFERENCES).to_df()
    assert list(found["label"]) == list(frame["label"])
    assert list(found.columns) == [*frame.columns, *SPEND, "takings_1h"]
    for row in found.itertuples():
        for feature in (*SPEND, "takings_1h"):
            got = getattr(row, feature)
            got = list(got) if feature.startswith("last_3") and got is not None else nan_is_none(got)
            assert_same(got, truth(pushed, feature, row.card_id, row.shop_id, micros(row.event_timestamp)))


def test_a_service_with_an_on_demand_view_answers_the_same_both_ways(pushed: Plugged) -> None:
    service = pushed.feast.get_feature_service("card_v1")
    asked = pd.DataFrame({"card_id": ["a"], "amount": [7.0], "event_timestamp": [pd.Timestamp.now("UTC")]})
    past = pushed.feast.get_historical_features(asked, service).to_df().iloc[0]
    online = pushed.feast.get_online_features(service, [{"card_id": "a", "amount": 7.0}]).to_dict()
    assert online["share"][0] == pytest.approx(7.0 / (online["sum_1h"][0] + 7.0))
    assert past["share"] == pytest.approx(7.0 / (past["sum_1h"] + 7.0))


def test_a_renamed_view_is_read_by_the_key_that_its_map_names(pushed: Plugged) -> None:
    service = pushed.feast.get_feature_service("paid_by")
    rows = [{"payer_id": "a"}, {"payer_id": "never"}]
    plain = pushed.feast.get_online_features(["spend:count_10m"], [{"card_id": "a"}]).to_dict()
    found = pushed.feast.get_online_features(service, rows, full_feature_names=True).to_dict()
    assert found == {"payer_id": ["a", "never"], "payer__count_10m": [*plain["count_10m"], 0]}
    past = pd.DataFrame({"payer_id": ["a"], "event_timestamp": [pd.Timestamp.now("UTC")]})
    joined = pushed.feast.get_historical_features(past, service, full_feature_names=True).to_df()
    assert joined["payer__count_10m"].tolist() == plain["count_10m"]


def test_events_are_not_pushed_to_the_offline_store_alone(pushed: Plugged) -> None:
    from feast.data_source import PushMode

    with pytest.raises(RequestError, match="by one log; push them to=online"):
        pushed.feast.push("payments", pushed.random_rows(random.Random(8), 3), to=PushMode.OFFLINE)


def test_what_is_pushed_twice_counts_twice_without_an_id(pushed: Plugged) -> None:
    source = pushed.catalog.source("payments")
    rows = pushed.random_rows(random.Random(9), 2)
    rows["ts"] = pushed.now - timedelta(days=40)
    before = pushed.offline.read_events(source, ["amount"]).num_rows
    pushed.push(rows)
    pushed.push(rows)
    pushed.take_in()
    assert pushed.offline.read_events(source, ["amount"]).num_rows == before + 4


def test_a_push_without_the_event_time_is_refused_and_nothing_is_appended(pushed: Plugged) -> None:
    source = pushed.catalog.source("payments")
    before = pushed.offline.read_events(source, ["amount"]).num_rows
    with pytest.raises(RequestError, match="must have its event time in 'ts', got the columns: card_id"):
        pushed.feast.push("payments", pd.DataFrame({"card_id": ["a"], "amount": [1.0]}))
    pushed.take_in()
    assert pushed.offline.read_events(source, ["amount"]).num_rows == before


def test_rows_are_not_written_into_a_windowed_view_past_the_stream(pushed: Plugged) -> None:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey

    view = pushed.feast.get_stream_feature_view("spend")
    provider = pushed.feast._get_provider()
    with pytest.raises(RequestError, match="computed from the events of 'payments' and takes no rows"):
        provider.online_write_batch(pushed.feast.config, view, [(EntityKey(), {}, pushed.now, None)], None)
