from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from shop import CARD_SPEND, Live, now, shop

import serving.state
from headrace.errors import SettingsError, UnavailableError
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.keys import catalog_key, markers_key
from headrace.stores.markers import ready_field
from serving.run import bind
from serving.state import open_state

BOTH_LANES = True


def test_a_view_without_its_marker_makes_the_server_unready_and_its_lookups_503(live: Live) -> None:
    assert live.http.get("/health").json() == {"status": "ok"}
    assert live.http.get("/ready").status_code == 200
    with open_store(live.settings) as store:
        field, key = ready_field(CARD_SPEND), markers_key("shop")
        held = store.hget(key, field)
        store.hdel(key, field)
        reply = live.http.get("/ready")
        assert (reply.status_code, reply.json()["missing"]) == (503, ["card_spend"])
        body = {"feature_service": "card_v1", "entities": {"card_id": ["a"]}}
        lookup = live.http.post("/get-online-features", json=body)
        assert (lookup.status_code, lookup.headers["retry-after"]) == (503, "1")
        store.hset(key, field, held)  # type: ignore[arg-type]
    assert live.http.get("/ready").status_code == 200


def test_a_server_that_cannot_confirm_its_catalog_does_not_answer(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"feature_service": "card_v1", "entities": {"card_id": ["a"]}}
    with monkeypatch.context() as patch:
        patch.setattr(serving.state, "CONFIRM_S", -1.0)
        reply = live.http.get("/ready")
        assert reply.status_code == 503 and "confirmed within" in reply.json()["problem"]
        lookup = live.http.post("/get-online-features", json=body)
        assert lookup.status_code == 503 and "confirmed within" in lookup.text
    assert live.http.get("/ready").status_code == 200
    with open_store(live.settings) as store, monkeypatch.context() as patch:
        patch.setattr(serving.state, "CONFIRM_S", 1.5)
        held = store.getdel(catalog_key("shop"))
        deadline = time.monotonic() + 10
        while live.http.get("/ready").status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        store.set(catalog_key("shop"), held)  # type: ignore[arg-type]
        while live.http.get("/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_new_catalog_is_taken_without_dropping_a_request(live: Live) -> None:
    service = replace(shop().services[0], name="card_v2")
    catalog = replace(shop(version=2), services=(*shop().services, service))
    statuses: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        body = {"feature_service": "card_v1", "entities": {"card_id": ["a"]}}
        while not stop.is_set():
            statuses.append(live.http.post("/get-online-features", json=body).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    with open_store(live.settings) as store:
        save_catalog(store, live.settings, catalog)
    deadline = time.monotonic() + 10
    body = {"feature_service": "card_v2", "entities": {"card_id": ["a"]}}
    while live.http.post("/get-online-features", json=body).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stop.set()
    asking.join()
    assert set(statuses) == {200}


def test_metrics_count_by_route_and_status_with_few_labels(live: Live) -> None:
    live.http.get("/no/such/path/1")
    live.http.get("/no/such/path/2")
    live.http.get("/health")
    live.look_up(["a"])
    text = live.http.get("/metrics").text
    assert 'headrace_requests_total{route="other",status="404"}' in text
    assert 'headrace_requests_total{route="/health",status="200"}' in text
    assert 'headrace_request_seconds_bucket{le="0.01",route="/get-online-features"}' in text
    assert "/no/such" not in text


def test_metrics_and_streams_show_what_the_worker_counted(live: Live) -> None:
    live.push([{"id": "c1", "card_id": None, "amount": 1.0, "ts": now(-1)}, {"id": "c2", "amount": "x", "ts": now()}])
    deadline = time.monotonic() + 10
    while not live.http.get("/streams").json()["payments"]["counts"].get("dead"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    text = live.http.get("/metrics").text
    assert 'headrace_source_events_total{column="",outcome="dead",rule="",source="payments"} 1.0' in text
    assert 'headrace_view_events_total{column="",outcome="null_key",rule="",view="card_spend"} 1.0' in text


def test_values_out_of_range_are_null_and_counted_by_view_and_feature(live: Live) -> None:
    live.push([{"id": f"r{i}", "card_id": "rich", "amount": 1e308, "ts": now(-1)} for i in range(2)])
    live.wait_until_applied()
    reply = live.look_up(["rich", "rich", "poor"])
    assert reply["count_1h"] == [2, 2, 0] and reply["sum_1h"] == [None] * 3
    line = 'headrace_out_of_range_values_total{feature="sum_1h",view="card_spend"} 2.0'
    assert line in live.http.get("/metrics").text


def test_the_api_documents_bodies_and_paths(live: Live) -> None:
    paths = live.http.get("/openapi.json").json()["paths"]
    assert set(paths) >= {"/get-online-features", "/push", "/write-to-online-store", "/predict", "/streams"}
    kinds = paths["/push"]["post"]["requestBody"]["content"]
    assert set(kinds) == {"application/json", "application/x-ndjson", "application/vnd.apache.arrow.stream"}


def test_a_server_refuses_another_clock_than_the_catalog_s(tmp_path: Path) -> None:
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data")
    with open_store(settings) as store, pytest.raises(SettingsError, match="HEADRACE_CLOCK must be the catalog's"):
        save_catalog(store, settings, shop("wall"))
        open_state(settings.model_copy(update={"clock": "event"}))
    detach(settings.data_dir)


def test_a_server_without_a_catalog_says_what_to_run(tmp_path: Path) -> None:
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data")
    (tmp_path / "feature_store.yaml").write_text("project: empty\n")
    with pytest.raises(UnavailableError, match="run headrace apply"):
        open_state(settings)
    detach(settings.data_dir)


def test_a_port_that_is_taken_is_one_clear_line(free_port: int) -> None:
    settings = Settings(port=free_port)
    with bind(settings), pytest.raises(SettingsError, match=f"127.0.0.1:{free_port} cannot be had .*--port"):
        bind(settings)
    with pytest.raises(SettingsError, match="cannot be had"):
        bind(Settings(host="no.such.host.invalid"))
