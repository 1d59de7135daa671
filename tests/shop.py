"""A small shop: its catalog, and a real server, worker and archiver over a real store."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import orjson

from headrace.catalog.definitions import (
    Aggregation,
    Catalog,
    Column,
    Entity,
    FeatureView,
    OnDemandView,
    Service,
    Source,
    ViewReference,
)
from headrace.dtypes import DType
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from materialize.archiver import run_archiver
from materialize.run_worker import run_worker
from serving.run import Server, bind, make_config, url_of

HOUR_US = 3_600_000_000
COUNT = Aggregation("count_1h", "count", "*", HOUR_US, 300_000_000, DType.INT64, DType.INT64)
SPENT = Aggregation("sum_1h", "sum", "amount", HOUR_US, 300_000_000, DType.FLOAT64, DType.FLOAT64)

PAYMENTS = Source(
    "payments",
    (
        Column("id", DType.STRING),
        Column("card_id", DType.STRING),
        Column("shop_id", DType.INT64),
        Column("amount", DType.FLOAT64),
        Column("ts", DType.TIMESTAMP),
    ),
    timestamp="ts",
    event_id="id",
)
CLICKS = Source(
    "clicks", (Column("id", DType.INT64), Column("ts", DType.TIMESTAMP)), timestamp="ts", event_id="id", partitions=3
)
CARD_SPEND = FeatureView(
    "card_spend",
    "windowed",
    ("card",),
    (Column("count_1h", DType.INT64), Column("sum_1h", DType.FLOAT64)),
    "f1",
    source="payments",
    aggregations=(COUNT, SPENT),
)
PROFILE = FeatureView(
    "profile",
    "plain",
    ("card",),
    (
        Column("limit", DType.FLOAT32),
        Column("city", DType.STRING),
        Column("vip", DType.BOOL),
        Column("since", DType.TIMESTAMP),
    ),
    "f2",
    ttl_us=24 * HOUR_US,
)
SHARE = OnDemandView(
    "share",
    (Column("share", DType.FLOAT64),),
    (ViewReference("card_spend", "card_spend", ("sum_1h",)),),
    (Column("amount", DType.FLOAT64),),
    "python",
    'def share(inputs):\n    return {"share": [a / (s or a) for a, s in zip(inputs["amount"], inputs["sum_1h"])]}\n',
    "share",
    "f3",
)


def reference(name: str, *features: str) -> ViewReference:
    return ViewReference(name, name, features)


SERVICES = (
    Service("card_v1", (reference("card_spend", "count_1h", "sum_1h"), reference("profile", "limit", "city", "since"))),
    Service("share_v1", (reference("share", "share"),)),
)


def shop(clock: Any = "wall", version: int = 1) -> Catalog:
    return Catalog(
        "shop",
        version,
        clock,
        (Entity("card", "card_id", DType.STRING), Entity("shop", "shop_id", DType.INT64)),
        (PAYMENTS, CLICKS),
        (CARD_SPEND, PROFILE),
        (SHARE,),
        SERVICES,
    )


def now(offset_s: float = 0) -> str:
    return datetime.fromtimestamp(time.time() + offset_s, UTC).isoformat().replace("+00:00", "Z")


class Live:
    """The running server, as a client sees it."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url
        self.settings = settings
        self.http = httpx.Client(base_url=url, timeout=20)

    def post(self, path: str, body: Any, status: int = 200, **params: Any) -> Any:
        reply = self.http.post(path, json=body, params=params)
        assert reply.status_code == status, reply.text
        return reply.json()

    def push(self, rows: list[dict[str, Any]], source: str = "payments") -> dict[str, Any]:
        """Pushes rows as NDJSON."""
        body = b"\n".join(map(orjson.dumps, rows))
        reply = self.http.post(
            "/push", params={"source": source}, content=body, headers={"content-type": "application/x-ndjson"}
        )
        assert reply.status_code == 200, reply.text
        held: dict[str, Any] = reply.json()
        return held

    def look_up(self, cards: list[Any], service: str = "card_v1", **more: Any) -> dict[str, list[Any]]:
        """Values by feature name."""
        body = {"feature_service": service, "entities": {"card_id": cards}, **more}
        reply = self.post("/get-online-features", body, timestamps="rfc3339")
        return dict(zip(reply["metadata"]["feature_names"], (r["values"] for r in reply["results"]), strict=True))

    def wait_until_ready(self) -> None:
        """Waits until every view is served: one that is built from the archive is applied before that."""
        deadline = time.monotonic() + 60
        while (reply := self.http.get("/ready")).status_code != 200:
            assert time.monotonic() < deadline, reply.text
            time.sleep(0.02)

    def wait_until_applied(self, kind: str = "applied") -> dict[str, Any]:
        """Waits until every source's `kind` has reached its head."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            streams: dict[str, Any] = self.http.get("/streams").json()
            if all(row["head"] == row[kind] for row in streams.values()):
                return streams
            time.sleep(0.05)
        raise AssertionError(streams)


@contextlib.contextmanager
def running(settings: Settings, catalog: Catalog) -> Iterator[Live]:
    """Server, worker and archiver in threads of this process, over the embedded store of the data directory; ready."""
    with open_store(settings) as store:
        save_catalog(store, settings, catalog)
    stop = threading.Event()
    listener, listening = bind(settings), threading.Event()
    server = Server(make_config(settings), listening.set)
    threads = [
        threading.Thread(target=run_worker, args=(settings, stop)),
        threading.Thread(target=run_archiver, args=(settings, stop)),
        threading.Thread(target=server.run, kwargs={"sockets": [listener]}),
    ]
    for thread in threads:
        thread.start()
    assert listening.wait(20)
    live = Live(url_of(listener), settings)
    try:
        live.wait_until_ready()
        yield live
    finally:
        live.http.close()
        server.should_exit = True
        stop.set()
        for thread in threads:
            thread.join(30)
        listener.close()
        detach(settings.data_dir)
