"""A repo that is not ours, by the command line and HTTP alone: apply, up, push, lookup, dataset."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

HEADRACE = [sys.executable, "-P", "-m", "headrace"]

ENTITIES = """
from feast import Entity, ValueType

buyer = Entity(name="buyer", join_keys=["buyer_id"], value_type=ValueType.STRING)
shop = Entity(name="shop", join_keys=["shop_no"], value_type=ValueType.INT64)
"""
DEFINITIONS = """
from datetime import timedelta

from entities import buyer, shop
from feast import FeatureService, FeatureView, Field, FileSource, PushSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.types import Float64, String

from headrace.define import events, stream_view, windows

orders = events(
    "orders", time="at", id="order_id",
    columns={"order_id": "string", "buyer_id": "string", "shop_no": "long", "amount": "double", "at": "timestamp"},
)
visits = PushSource(
    name="visits",
    batch_source=FileSource(path="data/visits.parquet", timestamp_field="seen"),
    tags={"schema": "shop_no bigint, mood string, seen timestamp"},
)
pair_orders = stream_view(
    "pair_orders", [shop, buyer], orders,
    windows("*", ["count"], over=["1h", "lifetime"]), windows("amount", ["sum", "last"], over=["1h"]),
)
shop_orders = StreamFeatureView(
    name="shop_orders", entities=[shop], source=orders, timestamp_field="at", mode="python",
    ttl=timedelta(0), schema=[Field(name="max_amount_3600s", dtype=Float64)],
    aggregations=[Aggregation(column="amount", function="max", time_window=timedelta(hours=1))],
)
shop_mood = FeatureView(
    name="shop_mood", entities=[shop], source=visits, ttl=timedelta(hours=1), schema=[Field(name="mood", dtype=String)]
)
pairs_v1 = FeatureService(
    name="pairs_v1",
    features=[shop_mood, pair_orders, shop_orders.with_join_key_map({"shop_no": "other_shop"})],
)
"""
BUYERS = ["a:b", "a,b", "日本 {x}", "", "50%"]
HOUR_S = 3600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("another repo")
    repo = folder / "definitions"
    repo.mkdir()
    (repo / "feature_store.yaml").write_text(
        "project: market\nregistry: data/registry.db\nprovider: local\nentity_key_serialization_version: 3\n"
    )
    (repo / "entities.py").write_text(ENTITIES)
    (repo / "market.py").write_text(DEFINITIONS)
    return folder


def headrace(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*HEADRACE, *arguments], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "HEADRACE_REPO": str(folder / "definitions"), "HEADRACE_DATA_DIR": str(folder / "the data")}


@pytest.fixture(scope="module")
def http(folder: Path) -> Iterator[httpx.Client]:
    headrace(folder, "apply")
    with subprocess.Popen(
        [*HEADRACE, "up", "--port", "0"], cwd=folder, env=environment(folder), stdout=subprocess.PIPE, text=True
    ) as up:
        assert up.stdout is not None
        seen = []
        for line in up.stdout:
            seen.append(line)
            if "ready" in line.lower() and "http://" in line:
                break
        else:
            raise AssertionError("".join(seen))
        url = next(word.strip(".,;") for word in seen[-1].split() if word.startswith("http://"))
        with httpx.Client(base_url=url, timeout=20) as client:
            yield client
        up.send_signal(signal.SIGINT)
        rest = up.communicate(timeout=60)[0]
        assert up.returncode == 0, rest


def stamp(age_s: float, base_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(base_s - age_s))


def wait(http: httpx.Client, kind: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        streams = http.get("/streams").json()
        if all(row["head"] == row[kind] for row in streams.values()):
            return
        time.sleep(0.1)
    raise AssertionError(streams)


def look_up(http: httpx.Client, entities: dict[str, list[Any]], **more: Any) -> dict[str, list[Any]]:
    reply = http.post("/get-online-features", json={"feature_service": "pairs_v1", "entities": entities, **more})
    assert reply.status_code == 200, reply.text
    names = reply.json()["metadata"]["feature_names"]
    return dict(zip(names, (result["values"] for result in reply.json()["results"]), strict=True))


@pytest.mark.timeout(240)
def test_apply_up_push_lookup_dataset(folder: Path, http: httpx.Client) -> None:
    base_s = time.time() // 1 - 1
    rows = [
        {"order_id": str(i), "buyer_id": buyer, "shop_no": shop, "amount": i + 0.5, "at": stamp(i, base_s)}
        for i, (buyer, shop) in enumerate((buyer, shop) for buyer in BUYERS for shop in (-7, 7))
    ]
    with (folder / "orders.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row for row in rows if row["buyer_id"])
    headrace(folder, "push", "orders", "orders.csv")
    df = {name: [row[name] for row in rows if not row["buyer_id"]] for name in rows[0]}
    assert http.post("/push", json={"push_source_name": "orders", "df": df}).json()["accepted"] == 2
    old = {**rows[0], "order_id": "old", "at": stamp(3 * HOUR_S, base_s)}  # in the lifetime alone
    mood = {"shop_no": [7, -7], "mood": ["fine", "grim"], "seen": [stamp(60, base_s), stamp(2 * HOUR_S, base_s)]}
    assert http.post("/push", json={"push_source_name": "orders", "df": {k: [v] for k, v in old.items()}}).is_success
    assert http.post("/push", json={"push_source_name": "visits", "df": mood}).is_success
    wait(http, "applied")

    asked = {
        "buyer_id": [row["buyer_id"] for row in rows],
        "shop_no": [row["shop_no"] for row in rows],
        "other_shop": [-row["shop_no"] for row in rows],
    }
    as_of = stamp(-1, base_s)
    online = look_up(http, asked, as_of=as_of)
    assert online["count_1h"] == [1] * len(rows)
    assert online["count_lifetime"] == [2] + [1] * (len(rows) - 1)
    assert online["sum_amount_1h"] == online["last_amount_1h"] == [row["amount"] for row in rows]
    most = {shop: max(row["amount"] for row in rows if row["shop_no"] == shop) for shop in (-7, 7)}
    assert online["max_amount_3600s"] == [most[-row["shop_no"]] for row in rows]
    assert online["mood"] == ["fine" if row["shop_no"] == 7 else None for row in rows]

    wait(http, "archived")
    labels = [
        {**{name: values[i] for name, values in asked.items()}, "event_timestamp": as_of} for i in range(len(rows))
    ]
    with (folder / "labels.csv").open("w", newline="") as file:
        label_writer = csv.DictWriter(file, [*asked, "event_timestamp"], quoting=csv.QUOTE_NONNUMERIC)
        label_writer.writeheader()
        label_writer.writerows(labels)
    headrace(folder, "dataset", "--service", "pairs_v1", "--labels", "labels.csv", "--out", "rows.csv")
    offline = list(csv.DictReader(io.StringIO((folder / "rows.csv").read_text())))
    assert [row["buyer_id"] for row in offline] == asked["buyer_id"]
    for name in online:
        shown = ["" if value is None else str(value) for value in online[name]]
        assert [number(row[name]) for row in offline] == [number(text) for text in shown], name


def number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 422, "JSON"),
        (b"[]", 422, ""),
        (b'{"feature_service": "none", "entities": {"buyer_id": ["a"]}}', 404, "none"),
        (b'{"feature_service": "pairs_v1", "entities": {"buyer_id": ["a"]}}', 422, "shop_no"),
        (b'{"feature_service": "pairs_v1", "entities": {}}', 422, ""),
        (
            b'{"feature_service": "pairs_v1", "entities": {"buyer_id": [], "shop_no": [], "other_shop": []}}',
            422,
            "rows",
        ),
        (
            b'{"feature_service": "pairs_v1", "entities": {"buyer_id": [1], "shop_no": [1], "other_shop": [1]}}',
            422,
            "string",
        ),
        (
            b'{"feature_service": "pairs_v1", "entities": {"buyer_id": ["a"], "shop_no": ["1"], "other_shop": [1]}}',
            422,
            "int64",
        ),
        (b'{"features": ["pair_orders"], "entities": {"buyer_id": ["a"], "shop_no": [1]}}', 422, "colon"),
        (b'{"features": ["pair_orders:none"], "entities": {"buyer_id": ["a"], "shop_no": [1]}}', 422, "none"),
        (b'{"features": ["none:x"], "entities": {"buyer_id": ["a"], "shop_no": [1]}}', 404, "none"),
    ],
)
def test_bad_requests_are_4xx_with_a_message(http: httpx.Client, body: bytes, status: int, says: str) -> None:
    reply = http.post("/get-online-features", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == status, reply.text
    assert says in reply.text


def test_too_many_rows_are_refused(http: httpx.Client) -> None:
    n = 1_001
    entities = {"buyer_id": ["a"] * n, "shop_no": [1] * n, "other_shop": [1] * n}
    reply = http.post("/get-online-features", json={"feature_service": "pairs_v1", "entities": entities})
    assert reply.status_code == 422 and "1000" in reply.text


def test_a_bad_event_is_a_dead_letter_and_its_neighbours_arrive(folder: Path, http: httpx.Client) -> None:
    at = stamp(0, time.time())
    lines = [
        f'{{"order_id": "good{i}", "buyer_id": "dead", "shop_no": 1, "amount": 1, "at": "{at}"}}' for i in range(2)
    ]
    body = "\n".join([lines[0], "{broken", lines[1]])
    headers = {"content-type": "application/x-ndjson"}
    assert http.post("/push", params={"source": "orders"}, content=body, headers=headers).json()["accepted"] == 3
    wait(http, "applied")
    wait(http, "archived")
    assert look_up(http, {"buyer_id": ["dead"], "shop_no": [1], "other_shop": [1]})["count_lifetime"] == [2]
    explained = headrace(folder, "explain", "pair_orders", "1", "dead", "--json")
    assert '"agree": true' in explained
    from headrace.stores.offline import OfflineStore

    (letter,) = OfflineStore(folder / "the data").read_dead_letters().to_pylist()
    assert letter["payload"] == b"{broken" and "JSON" in letter["reason"]


def test_doctor_finds_nothing_to_mend(folder: Path, http: httpx.Client) -> None:
    url = http.base_url
    said = subprocess.run(
        [*HEADRACE, "doctor"],
        cwd=folder,
        env={**environment(folder), "HEADRACE_PORT": str(url.port)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "fail" not in said.stdout and "all 3 ready" in said.stdout
