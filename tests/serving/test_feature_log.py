"""What sampled lookups answered, from the server through the archiver into `served/{service}`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from shop import Live, now, running, shop

from headrace.settings import Settings
from headrace.stores.offline import OfflineStore
from headrace.stores.served import read_served

BOTH_LANES = True


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Live]:
    """A shop that logs every answer of card_v1."""
    folder: Path = tmp_path_factory.mktemp("logged")
    options: dict[str, Any] = {"port": 0, "fast_lane": request.param == "lane", "feature_log_rows": 200}
    settings = Settings.model_validate({"repo": folder, "data_dir": folder / "data", **options})
    catalog = shop()
    services = [replace(service, log_rate=1.0 if service.name == "card_v1" else 0.0) for service in catalog.services]
    with running(settings, replace(catalog, services=tuple(services))) as server:
        server.push([{"id": "1", "card_id": "a", "shop_id": 1, "amount": 5.0, "ts": now()}])
        server.wait_until_applied()
        yield server


def logged(live: Live, requests: set[str]) -> list[dict[str, Any]]:
    """The rows of these requests, once all are in the table."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = read_served(OfflineStore(live.settings.data_dir).root, "card_v1").to_pylist()
        found = [row for row in found if row["request_id"] in requests]
        if {row["request_id"] for row in found} == requests:
            return found
        time.sleep(0.1)
    raise AssertionError(found)


def ask(live: Live, request_id: str, cards: list[str], **more: Any) -> dict[str, Any]:
    body = {"feature_service": "card_v1", "entities": {"card_id": cards}}
    headers = {"X-Request-ID": request_id}
    reply = live.http.post("/get-online-features", json=body, headers=headers, params=more)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


@pytest.mark.parametrize("cards", [["a", "b"], ["a", *[f"m{i}" for i in range(30)]]], ids=["few", "many"])
def test_a_row_holds_what_was_answered_and_how_far_the_log_was_read(live: Live, cards: list[str]) -> None:
    name = f"r{len(cards)}"
    reply = ask(live, name, cards, metadata="full")
    rows = logged(live, {name})
    assert [orjson.loads(row["keys"]) for row in rows] == [{"card_id": card} for card in cards]
    names = reply["metadata"]["feature_names"][1:]
    for number, row in enumerate(rows):
        values, statuses = orjson.loads(row["values"]), orjson.loads(row["statuses"])
        answered = dict(zip(names, [result["values"][number] for result in reply["results"][1:]], strict=True))
        assert {full.partition("__")[2]: value for full, value in values.items()} == answered
        assert list(statuses.values()) == [result["statuses"][number] for result in reply["results"][1:]]
        view = orjson.loads(row["views"])["card_spend"]
        assert view["tier"] == "store" and view["fingerprint"] == "f1"
        assert view["positions"] == {f"payments|{p}": at for p, at in _positions(reply).items()}
        assert (row["rate"], row["catalog_version"], row["row"]) == (1.0, 1, number)
        assert row["t"].isoformat() == reply["metadata"]["t"][number].replace("Z", "+00:00")
        assert row["entity_keys"] == [f"headrace:shop:card:{cards[number]}"]


def _positions(reply: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = reply["metadata"]["views"]["card_spend"]["positions"]
    return found


def test_who_is_logged_follows_from_the_request_id_alone(live: Live) -> None:
    for _ in range(2):
        ask(live, "the same", ["a"])
    assert len(logged(live, {"the same"})) == 2
    reply = live.http.post("/get-online-features", json={"feature_service": "card_v1", "entities": {"card_id": ["q"]}})
    assert reply.status_code == 200
    live.http.post("/get-online-features", json={"features": ["profile:city"], "entities": {"card_id": ["zz"]}})
    time.sleep(1.5)
    rows = read_served(OfflineStore(live.settings.data_dir).root, "card_v1").to_pylist()
    keys = [orjson.loads(row["keys"])["card_id"] for row in rows]
    assert "q" in keys and "zz" not in keys


def test_what_there_is_no_room_for_is_dropped_and_counted(live: Live) -> None:
    for i in range(30):  # of 50 rows, where 200 may wait
        ask(live, f"much {i}", [f"k{j}" for j in range(50)])
    metrics = live.http.get("/metrics").text
    dropped = [line for line in metrics.splitlines() if 'outcome="dropped",service="card_v1"' in line]
    assert dropped and float(dropped[0].split()[-1]) % 50 == 0
