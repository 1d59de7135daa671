"""The client, over HTTP and straight to the store alike."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from shop import SERVICES, Live, now, reference, shop

import headrace
from headrace.catalog.definitions import Service
from headrace.client import FeatureClient
from headrace.dtypes import DType
from headrace.errors import AsOfError, RequestError, SettingsError, UnknownNameError
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.models import Manifest, ModelInput, promote, save_model

MICROSECOND = datetime(2020, 2, 3, 4, 5, 6, 789_012, tzinfo=UTC)


@pytest.fixture(scope="module")
def held(live: Live) -> datetime:
    """Card `a` has two payments, the later at the returned moment, and a profile; `b` a profile of nulls."""
    moment = now(-5)
    live.push([{"id": "a1", "card_id": "a", "amount": 1.5, "ts": now(-50)}])
    live.push([{"id": "a2", "card_id": "a", "amount": 2.0, "ts": moment}])
    df = {"card_id": ["a", "b"], "limit": [0.5, None], "city": ["Ulm", None], "vip": [True, None]}
    times = {"since": [MICROSECOND.isoformat(), None], "event_timestamp": [moment, moment]}
    live.post("/write-to-online-store", {"feature_view_name": "profile", "df": df | times})
    live.wait_until_applied()
    return datetime.fromisoformat(moment)


ASKED = ["card_spend:count_1h", "card_spend:sum_1h", "profile:limit", "profile:city", "profile:vip", "profile:since"]
CARDS = {"card_id": ["a", "b", "c", None]}


def test_a_vector_has_its_types_and_its_nulls(client: FeatureClient, held: datetime) -> None:
    vectors = client.get(ASKED, CARDS)
    assert (vectors.keys, vectors.features) == (["card_id"], [name.split(":")[1] for name in ASKED])
    assert len(vectors) == 4
    assert vectors.to_dict() == {
        "card_id": ["a", "b", "c", None],
        "count_1h": [2, 0, 0, 0],
        "sum_1h": [3.5, None, None, None],
        "limit": [0.5, None, None, None],
        "city": ["Ulm", None, None, None],
        "vip": [True, None, None, None],
        "since": [MICROSECOND, None, None, None],
    }
    types = {"count_1h": pa.int64(), "limit": pa.float32(), "vip": pa.bool_(), "since": pa.timestamp("us", "UTC")}
    schema = vectors.to_arrow().schema
    assert {name: schema.field(name).type for name in types} == types


def test_a_vector_says_what_became_of_every_value_and_when(client: FeatureClient, held: datetime) -> None:
    vectors = client.get("card_v1", CARDS)
    assert vectors.statuses["sum_1h"] == ["PRESENT", "NULL_VALUE", "NULL_VALUE", "NULL_VALUE"]
    assert vectors.statuses["city"] == ["PRESENT", "NULL_VALUE", "NOT_FOUND", "NOT_FOUND"]
    assert vectors.event_timestamps["count_1h"] == [held, None, None, None]
    assert vectors.event_timestamps["city"] == [held, held, None, None]
    assert timedelta(0) < datetime.now(UTC) - vectors.t[0] < timedelta(minutes=1)
    assert vectors.catalog_version >= 1 and vectors.metadata == {}


def test_numbers_become_an_array_and_nothing_else_does(client: FeatureClient, held: datetime) -> None:
    vectors = client.get(ASKED, CARDS)
    numbers = vectors.to_numpy(["vip", "count_1h", "limit"])
    assert numbers.dtype == np.float64
    np.testing.assert_array_equal(numbers, [[1, 2, 0.5], [np.nan, 0, np.nan], [np.nan, 0, np.nan], [np.nan, 0, np.nan]])
    assert vectors.to_numpy(["limit"], np.float32).dtype == np.float32
    with pytest.raises(RequestError, match="'city' is of string"):
        vectors.to_numpy()
    with pytest.raises(RequestError, match="no feature 'age'"):
        vectors.to_numpy(["age"])


def test_a_frame_holds_keys_and_features(client: FeatureClient, held: datetime) -> None:
    frame = client.get("card_v1", {"card_id": ["a"]}).to_pandas()
    assert list(frame.columns) == ["card_id", "count_1h", "sum_1h", "limit", "city", "since"]
    assert frame["since"][0] == pd.Timestamp(MICROSECOND)


@pytest.mark.parametrize(
    "entities",
    [
        [{"card_id": "a"}, {"card_id": "c"}],
        {"card_id": np.array(["a", "c"])},
        {"card_id": pd.Series(["a", "c"])},
        {"card_id": pa.array(["a", "c"])},
        {"card_id": ("a", "c")},
        pd.DataFrame({"card_id": ["a", "c"]}).to_dict("list"),
    ],
    ids=["rows", "numpy", "pandas", "arrow", "tuple", "frame"],
)
def test_entities_come_as_rows_or_as_columns_of_any_kind(client: FeatureClient, held: datetime, entities: Any) -> None:
    assert client.get("card_v1", entities).to_dict()["count_1h"] == [2, 0]


def test_full_names_as_of_and_metadata_are_the_wire_s(client: FeatureClient, held: datetime) -> None:
    later = datetime.now(UTC) + timedelta(minutes=30)
    vectors = client.get("card_v1", CARDS, full_feature_names=True, as_of=later, metadata="full")
    assert vectors.features[:2] == ["card_spend__count_1h", "card_spend__sum_1h"]
    assert vectors.t == [later] * 4
    spend, profile = vectors.metadata["views"]["card_spend"], vectors.metadata["views"]["profile"]
    assert (spend["tier"], spend["positions"].keys(), spend["warming"]) == ("store", {"0"}, True)
    assert spend["age_s"] == [(later - held) / timedelta(seconds=1), None, None, None]
    assert profile["age_s"] == [(later - held) / timedelta(seconds=1)] * 2 + [None] * 2
    assert vectors.metadata["catalog_version"] == vectors.catalog_version


def test_request_data_reaches_on_demand_views(client: FeatureClient, held: datetime) -> None:
    vectors = client.get("share_v1", {"card_id": ["a", "c"], "amount": np.array([7.0, 3.0])})
    assert vectors.to_dict() == {"card_id": ["a", "c"], "share": [2.0, 1.0]}
    assert vectors.statuses == {"share": ["PRESENT", "PRESENT"]}


def test_mistakes_are_the_exceptions_that_name_them(client: FeatureClient, held: datetime) -> None:
    with pytest.raises(UnknownNameError, match="no feature service 'nope'"):
        client.get("nope", CARDS)
    with pytest.raises(RequestError, match="card_id must be string, got 1"):
        client.get("card_v1", {"card_id": [1]})
    with pytest.raises(RequestError, match="1 to 50 rows"):
        client.get("card_v1", {"card_id": ["a"] * 51})
    with pytest.raises(AsOfError, match="must not precede"):
        client.get("card_v1", CARDS, as_of=held - timedelta(seconds=1))
    with pytest.raises(RequestError, match="RFC 3339"):
        client.get("card_v1", CARDS, as_of="soon")
    with pytest.raises(RequestError, match="must be a list of values"):
        client.get("card_v1", {"card_id": "a"})
    with pytest.raises(RequestError, match="row 1 has"):
        client.get("card_v1", [{"card_id": "a"}, {"card": "a"}])
    with pytest.raises(UnknownNameError, match="no source 'nope'"):
        client.push("nope", [{"id": "1"}])
    with pytest.raises(RequestError, match="event time in 'ts'"):
        client.push("payments", pa.table({"id": ["1"]}))


def test_events_come_as_rows_columns_tables_and_frames(client: FeatureClient, live: Live) -> None:
    moment = datetime.now(UTC) - timedelta(seconds=5)
    tag = "http" if "HttpBackend" in repr(client._runner and client._runner.client._backend) else "store"
    columns = {"card_id": [f"pushed-{tag}"], "amount": [1.0], "ts": [moment]}
    rows: list[Any] = [
        [{name: column[0] for name, column in columns.items()}],
        columns,
        pa.table(columns),
        pa.RecordBatch.from_pydict(columns),
        pd.DataFrame(columns),
        pl.DataFrame(columns),
    ]
    for number, some in enumerate(rows):
        with_id = {"id": [f"{tag}{number}"]}
        if isinstance(some, list):
            some = [{**some[0], "id": with_id["id"][0]}]
        elif isinstance(some, dict):
            some = some | with_id
        elif isinstance(some, pa.Table | pa.RecordBatch):
            some = some.append_column("id", pa.array(with_id["id"]))
        else:
            some = (
                pd.DataFrame(columns | with_id) if isinstance(some, pd.DataFrame) else pl.DataFrame(columns | with_id)
            )
        pushed = client.push("payments", some)
        assert (pushed.accepted, list(pushed.position)) == (1, ["0"])
    live.wait_until_applied()
    assert client.get("card_v1", {"card_id": [f"pushed-{tag}"]}).to_dict()["count_1h"] == [len(rows)]
    assert client.push("payments", []).accepted == 0


@pytest.fixture(scope="module")
def model(live: Live) -> Manifest:
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    inputs = (ModelInput("card_spend__count_1h", DType.INT64), ModelInput("card_spend__sum_1h", DType.FLOAT64))
    rows = pd.DataFrame({item.name: np.arange(20.0) for item in inputs})
    pipeline = make_pipeline(SimpleImputer(), LogisticRegression()).fit(rows, (np.arange(20) > 10).astype(int))
    bare = Manifest("fraud", "card_v1", inputs, "fraud", 0.0, 1, {}, {}, {}, {}, "2026-01-01T00:00:00Z")
    manifest = save_model(live.settings.data_dir, bare, pipeline)
    promote(live.settings.data_dir, "fraud", manifest.version)
    return manifest


def test_a_model_s_scores(client: FeatureClient, live: Live, held: datetime, model: Manifest) -> None:
    found = client.predict(CARDS, deadline_s=30)
    assert (found.model, found.version, found.predictions.shape, len(found.t)) == ("fraud", model.version, (4,), 4)
    direct = live.post("/predict", {"model": "fraud", "entities": CARDS})["predictions"]
    np.testing.assert_allclose(found.predictions, direct)
    with pytest.raises(UnknownNameError, match="no model 'nope'"):
        client.predict(CARDS, model="nope")
    with pytest.raises(RequestError, match="reads 'card_v1'"):
        client.predict(CARDS, model="fraud", service="share_v1")


def test_threads_share_a_client(client: FeatureClient, held: datetime) -> None:
    found: list[list[int]] = []

    def ask() -> None:
        found.extend(client.get("card_v1", {"card_id": ["a", "c"]}).to_dict()["count_1h"] for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[2, 0]] * 100


def test_a_blocking_call_works_within_a_running_loop(client: FeatureClient, held: datetime) -> None:
    async def notebook() -> list[int]:
        return client.get("card_v1", {"card_id": ["a"]}).to_dict()["count_1h"]

    assert asyncio.run(notebook()) == [2]


@pytest.mark.parametrize("kind", ["over http", "from the store"])
def test_coroutines_answer_alike_many_at_once(live: Live, held: datetime, kind: str) -> None:
    async def ask() -> list[dict[str, list[Any]]]:
        made = (
            headrace.AsyncFeatureClient(live.url, connections=3)
            if kind == "over http"
            else headrace.AsyncFeatureClient.from_store(live.settings)
        )
        async with made as client:
            calls = [client.get("card_v1", {"card_id": [card]}) for card in ["a", "b", "c"] * 10]
            return [vectors.to_dict() for vectors in await asyncio.gather(*calls)]

    found = asyncio.run(ask())
    assert [(row["card_id"], row["count_1h"]) for row in found] == [(["a"], [2]), (["b"], [0]), (["c"], [0])] * 10


FORKED = """
import os, sys
from pathlib import Path
import headrace
from headrace.settings import Settings
url, folder = sys.argv[1:]
settings = Settings(repo=folder, data_dir=Path(folder) / "data")
clients = [headrace.FeatureClient(url), headrace.FeatureClient.from_store(settings)]
before = [client.get("card_v1", {"card_id": ["a"]}).to_dict() for client in clients]
child = os.fork()
after = [client.get("card_v1", {"card_id": ["a"]}).to_dict() for client in clients]
for client in clients:
    client.close()
if child:
    assert os.waitpid(child, 0)[1] == 0
sys.stdout.flush()
os._exit(0 if before == after else 1)
"""


def test_a_client_goes_on_in_a_forked_process(live: Live, held: datetime) -> None:
    command = [sys.executable, "-c", FORKED, live.url, str(live.settings.repo)]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_closed_client_says_so(live: Live) -> None:
    client = FeatureClient(live.url)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.get("card_v1", CARDS)


def test_a_store_that_is_not_there_is_a_wrong_set_up(live: Live, free_port: int) -> None:
    url = f"redis://127.0.0.1:{free_port}"
    with pytest.raises(SettingsError, match="must be reachable"):
        FeatureClient.from_store(live.settings.model_copy(update={"redis_url": url}))


def test_a_client_of_the_store_follows_the_catalog(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.stores.embedded import detach

    monkeypatch.setattr("headrace.client.over_store.CATALOG_S", 0.0)
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data")
    with open_store(settings) as store:
        save_catalog(store, settings, shop())
        with FeatureClient.from_store(settings) as client:
            with pytest.raises(UnknownNameError):
                client.get("city_v1", CARDS)
            added = Service("city_v1", (reference("profile", "city"),))
            save_catalog(store, settings, replace(shop(version=2), services=(*SERVICES, added)))
            vectors = client.get("city_v1", CARDS)
            assert (vectors.features, vectors.catalog_version) == (["city"], 2)
    detach(settings.data_dir)
