"""A repo that Feast's own CLI has applied to our stores, and the processes behind it, stepped by hand."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import redis
from naive import NaiveEvent

from headrace.catalog.definitions import Catalog
from headrace.read.forgetting import forget_keys, parse_keys
from headrace.settings import Settings
from headrace.stores.catalogs import load_catalog
from headrace.stores.connection import open_store
from headrace.stores.offline import OfflineStore
from materialize.archiver import Archiver
from materialize.worker import Worker

YAML = """
project: {project}
provider: local
registry: registry.db
entity_key_serialization_version: 3
online_store: {{type: headrace.feast_plugin.HeadraceOnlineStore, data_dir: data, other_views: {other_views}}}
offline_store: {{type: headrace.feast_plugin.HeadraceOfflineStore, data_dir: data}}
batch_engine: {{type: {engine}}}
"""
OURS = "headrace.feast_plugin.HeadraceBatchEngine"
DEFINITIONS = """
from datetime import timedelta
import pandas as pd
import redis
from feast import (Aggregation, Entity, FeatureService, FeatureView, Field, FileSource, OnDemandFeatureView, PushSource,
                   RequestSource, StreamFeatureView, ValueType)
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Float64, Int64, String, UnixTimestamp

card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)
shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
payments = PushSource(
    name="payments",
    batch_source=FileSource(name="payments_history", path="payments.parquet", timestamp_field="ts"),
    tags={"schema": "card_id string, shop_id bigint, amount double, ts timestamp"},
)
spend = StreamFeatureView(
    name="spend", entities=[card], ttl=timedelta(0), source=payments, timestamp_field="ts", mode="pandas",
    aggregations=[
        Aggregation(column="*", function="count", time_window=timedelta(minutes=10), name="count_10m"),
        Aggregation(column="amount", function="sum", time_window=timedelta(hours=1), name="sum_1h"),
        Aggregation(column="amount", function="max", time_window=timedelta(hours=1), name="max_1h"),
        Aggregation(column="amount", function="last_3", time_window=timedelta(hours=1), name="last_3_1h"),
    ],
    schema=[Field(name="card_id", dtype=String), Field(name="count_10m", dtype=Int64),
            Field(name="sum_1h", dtype=Float64), Field(name="max_1h", dtype=Float64),
            Field(name="last_3_1h", dtype=Array(Float64))],
)
takings = StreamFeatureView(
    name="takings", entities=[shop], ttl=timedelta(0), source=payments, timestamp_field="ts", mode="pandas",
    aggregations=[Aggregation(column="amount", function="sum", time_window=timedelta(hours=1), name="takings_1h")],
    schema=[Field(name="shop_id", dtype=Int64), Field(name="takings_1h", dtype=Float64)],
)
profile = FeatureView(
    name="profile", entities=[card], ttl=timedelta(days=2),
    schema=[Field(name="limit", dtype=Float64), Field(name="city", dtype=String),
            Field(name="since", dtype=UnixTimestamp)],
    source=FileSource(name="profiles", path="profiles.parquet", timestamp_field="at", created_timestamp_column="made"),
)

@on_demand_feature_view(
    sources=[spend[["sum_1h"]], RequestSource(name="asked", schema=[Field(name="amount", dtype=Float64)])],
    schema=[Field(name="share", dtype=Float64)],
)
def share(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"share": inputs["amount"] / inputs["sum_1h"].fillna(0).add(inputs["amount"])})

card_v1 = FeatureService(name="card_v1", features=[spend, profile[["limit"]], share])
payer = {"card_id": "payer_id"}
paid_by = FeatureService(name="paid_by", features=[spend[["count_10m"]].with_name("payer").with_join_key_map(payer)])
"""
CARDS = ["a", "b", "c,d", "ü"]


def write_repo(
    root: Path, definitions: str, project: str = "plugged", other_views: str = "refuse", engine: str = OURS
) -> Path:
    root.mkdir(parents=True)
    (root / "feature_store.yaml").write_text(YAML.format(project=project, other_views=other_views, engine=engine))
    (root / "definitions.py").write_text(textwrap.dedent(definitions))
    return root


def write_profiles(root: Path, now: datetime) -> pd.DataFrame:
    """Two rows of one time for `a`, of which the later created counts, an old one for `b`."""
    rows = pd.DataFrame(
        {
            "card_id": ["a", "a", "a", "b"],
            "limit": [1.0, 3.0, 2.0, 9.0],
            "city": ["Köln", "Bonn", None, "Ulm"],
            "since": [pd.Timestamp("2013-05-01 12:00:00", tz="UTC")] * 4,
            "at": [now - timedelta(hours=h) for h in (5, 1, 1, 60)],
            "made": [now - timedelta(hours=h) for h in (5, 0.1, 0.5, 60)],
        }
    )
    rows.to_parquet(root / "profiles.parquet")
    return rows


def feast_cli(root: Path, *commands: str) -> None:
    """Runs commands of Feast's CLI, one after another in one process of their own."""
    script = "import sys; from feast.cli.cli import cli\n"
    script += "for words in sys.argv[2:]: cli(['--chdir', sys.argv[1], *words.split()], standalone_mode=False)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(root), *commands], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Plugged:
    """The repo, Feast's store on it, what was pushed, and worker and archiver."""

    def __init__(self, root: Path, now: datetime) -> None:
        from feast import FeatureStore

        self.root, self.now = root, now
        self.settings = Settings(repo=root, data_dir=root / "data")
        self.feast = FeatureStore(repo_path=str(root))
        self.store = open_store(self.settings)
        self.catalog = load_catalog(self.store, "plugged")
        self.offline = OfflineStore(self.settings.data_dir)
        self.events: list[tuple[str, int, float | None, datetime]] = []

    def push(self, rows: pd.DataFrame, **options: Any) -> None:
        """Pushes with the stock SDK and remembers."""
        self.feast.push("payments", rows, **options)
        self.events += list(rows[["card_id", "shop_id", "amount", "ts"]].itertuples(index=False, name=None))

    def random_rows(self, rng: random.Random, count: int) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "card_id": [rng.choice(CARDS) for _ in range(count)],
                "shop_id": [rng.randrange(3) for _ in range(count)],
                "amount": [rng.choice([float("nan"), rng.uniform(0, 100)]) for _ in range(count)],
                "ts": [self.now - timedelta(microseconds=rng.randrange(7_200_000_000)) for _ in range(count)],
            }
        )

    def take_in(self) -> None:
        """Has the worker apply and the archiver archive what was pushed."""
        applied_and_archived(self.settings, self.store)

    def naive(self, key: int) -> list[NaiveEvent]:
        """What was pushed, keyed by its column number `key`."""
        return [
            NaiveEvent(event[key], micros(event[3]), (0, 0, i), {"amount": nan_is_none(event[2])})
            for i, event in enumerate(self.events)
        ]


def applied_and_archived(settings: Settings, store: redis.Redis) -> None:
    """A worker applies and an archiver archives what the streams hold."""
    archiver = Archiver(settings, store)
    worker = Worker(store, archiver.offline, archiver._catalog)
    worker.start()
    while worker.step(block_ms=1):
        pass
    while archiver._read(0):
        pass
    archiver.flush()
    archiver._publish()


def forget(settings: Settings, catalog: Catalog, entity: str, key: str) -> None:
    """`headrace forget`, carried out by a worker and an archiver that are stepped meanwhile."""
    store, offline = open_store(settings), OfflineStore(settings.data_dir)
    worker, archiver = Worker(store, offline, catalog), Archiver(settings, store)
    worker.start()
    entities, keys = parse_keys(catalog, [entity, key])
    asker = threading.Thread(target=forget_keys, args=(store, catalog, entities, keys, 600, 20))
    asker.start()
    while asker.is_alive():
        worker.step(block_ms=1)
        worker.obey()
        archiver._obey_orders()
        asker.join(0.01)
    store.close()


def micros(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def nan_is_none(value: Any) -> Any:
    return None if value is None or value != value else value
