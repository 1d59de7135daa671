"""Who may ask for what, on both lanes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from shop import Live, now, running, shop

from headrace.errors import SettingsError
from headrace.settings import Settings
from headrace.stores.api_keys import add_key, revoke_keys
from serving.listeners import listening

BOTH_LANES = True
LOOKUP = {"feature_service": "card_v1", "entities": {"card_id": ["a"]}}
EVENT = {"push_source_name": "payments", "df": {"id": ["1"], "card_id": ["a"], "shop_id": [1], "amount": [1.0]}}


@pytest.fixture(scope="module")
def keys() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def live(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, keys: dict[str, str]
) -> Iterator[Live]:
    folder: Path = tmp_path_factory.mktemp("closed")
    file = folder / "keys.json"
    for name, scopes, rate in [("reader", ["read"], None), ("writer", ["write"], None), ("boss", ["admin"], None)]:
        keys[name], _ = add_key(file, name, scopes, rate)
    keys["slow"], _ = add_key(file, "slow", ["read"], 2.0)
    keys["old"], _ = add_key(file, "old", ["read"], None, expires_us=1)
    options: dict[str, Any] = {"port": 0, "api_keys": file, "fast_lane": request.param == "lane"}
    settings = Settings.model_validate({"repo": folder, "data_dir": folder / "data", **options})
    with running(settings, shop()) as server:
        deadline = time.monotonic() + 20
        while server.http.get("/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield server


def look_up(live: Live, **headers: str) -> httpx.Response:
    return live.http.post("/get-online-features", json=LOOKUP, headers=headers)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_without_a_key_with_a_wrong_one_and_with_one_that_has_ended_nothing_is_told(
    live: Live, keys: dict[str, str]
) -> None:
    wrong = [keys["reader"][:-1] + ("a" if keys["reader"][-1] != "a" else "b"), "hr_00000000_x", "x", "ü"]
    sent = [{}, *[{"X-API-Key": key.encode("latin-1")} for key in wrong], {"X-API-Key": keys["old"]}]
    for path in ("/get-online-features", "/push", "/predict", "/write-to-online-store"):
        for headers in sent:
            reply = live.http.post(path, json=LOOKUP, headers=headers)  # type: ignore[arg-type]
            assert reply.status_code == 401 and reply.headers["www-authenticate"].startswith("Bearer")
            assert "card_spend" not in reply.text and keys["reader"] not in reply.text
    for path in ("/metrics", "/streams", "/docs", "/openapi.json", "/no such path"):
        assert live.http.get(path).status_code == 401
    assert live.http.get("/health").status_code == 200 and live.http.get("/ready").status_code == 200


def test_a_key_allows_its_scopes_and_no_others(live: Live, keys: dict[str, str]) -> None:
    event = {**EVENT, "df": {**EVENT["df"], "ts": [now()]}}  # type: ignore[dict-item]
    for name, read, write in [("reader", 200, 403), ("writer", 403, 200), ("boss", 200, 200)]:
        for headers in ({"X-API-Key": keys[name]}, bearer(keys[name])):
            assert look_up(live, **headers).status_code == read
            assert live.http.post("/push", json=event, headers=headers).status_code == write
    assert live.http.get("/metrics", headers=bearer(keys["reader"])).status_code == 200
    refused = live.http.get("/metrics", headers=bearer(keys["boss"])).text
    assert 'headrace_refused_requests_total{reason="scope"}' in refused
    assert 'headrace_refused_requests_total{reason="wrong_key"}' in refused


def test_a_key_may_not_ask_more_often_than_its_rate(live: Live, keys: dict[str, str]) -> None:
    replies = [look_up(live, **bearer(keys["slow"])) for _ in range(20)]
    statuses = [reply.status_code for reply in replies]
    assert statuses[0] == 200 and 429 in statuses and set(statuses) == {200, 429}
    late = next(reply for reply in replies if reply.status_code == 429)
    assert int(late.headers["retry-after"]) >= 1
    assert look_up(live, **bearer(keys["reader"])).status_code == 200


def test_a_changed_file_is_taken_up_and_a_broken_one_is_not(live: Live, keys: dict[str, str]) -> None:
    assert live.settings.api_keys is not None
    file = live.settings.api_keys
    fresh, _ = add_key(file, "fresh", ["read"])
    wait_for(live, fresh, 200)
    revoke_keys(file, ["fresh"])
    wait_for(live, fresh, 401)
    whole = file.read_bytes()
    file.write_bytes(b"{")
    time.sleep(1.5)
    assert look_up(live, **bearer(keys["reader"])).status_code == 200
    file.write_bytes(whole)
    assert os.stat(file).st_mode & 0o077 == 0


def wait_for(live: Live, key: str, status: int) -> None:
    deadline = time.monotonic() + 20
    while look_up(live, **bearer(key)).status_code != status:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_reply_tells_browsers_to_keep_and_guess_nothing(live: Live, keys: dict[str, str]) -> None:
    for reply in (look_up(live, **bearer(keys["reader"])), look_up(live), live.http.get("/health")):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store" and reply.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("host, options, refused", [("0.0.0.0", {}, True), ("0.0.0.0", {"open": True}, False)])
def test_without_keys_a_server_listens_on_loopback_only(
    tmp_path: Path, host: str, options: dict[str, Any], refused: bool
) -> None:
    settings = Settings.model_validate({"repo": tmp_path, "data_dir": tmp_path, "host": host, "port": 0, **options})
    if refused:
        with pytest.raises(SettingsError, match="HEADRACE_API_KEYS"), listening(settings):
            pass
    else:
        with listening(settings):
            pass


def test_a_file_of_keys_that_is_none_is_told(tmp_path: Path) -> None:
    from serving.guards.access import Access

    for content in (b"{", b'{"version": 2, "keys": []}', b'{"version": 1, "keys": [{}]}'):
        (tmp_path / "keys").write_bytes(content)
        with pytest.raises(SettingsError, match="headrace keys new"):
            Access(Settings(api_keys=tmp_path / "keys"))


def test_the_client_sends_its_key_and_says_what_it_lacks(live: Live, keys: dict[str, str]) -> None:
    import headrace

    with headrace.FeatureClient(live.url, api_key=keys["reader"], strict=True, priority="critical") as client:
        assert client.get("card_v1", {"card_id": ["nobody"]}).to_dict()["count_1h"] == [0]
        with pytest.raises(headrace.RequestError, match="scope write"):
            client.push("payments", [{"id": "x", "card_id": "a", "shop_id": 1, "amount": 1.0, "ts": now()}])
    with headrace.FeatureClient(live.url) as client, pytest.raises(headrace.RequestError, match="needs an API key"):
        client.get("card_v1", {"card_id": ["a"]})
    with pytest.raises(headrace.RequestError, match="critical, normal, batch"):
        headrace.FeatureClient(live.url, priority="urgent")
