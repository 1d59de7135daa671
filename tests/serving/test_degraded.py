"""Answers without the store: what they hold, what they say of themselves, and how the server comes back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shop import CARD_SPEND, Live, now, running, shop

from headrace.catalog.definitions import Catalog
from headrace.settings import Settings
from headrace.stores.connection import open_store

BOTH_LANES = True
DEADLINE_MS = 250
FEATURES = ["card_spend:count_1h", "card_spend:sum_1h", "profile:limit", "profile:city"]


def with_defaults() -> Catalog:
    catalog = shop()
    spend = replace(CARD_SPEND, defaults=(("count_1h", "-1"),))
    return replace(catalog, views=(spend, *catalog.views[1:]))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Live]:
    """A server that may degrade, and a card that it has answered for."""
    folder: Path = tmp_path_factory.mktemp("degraded")
    options: dict[str, Any] = {"deadline_ms": DEADLINE_MS, "degrade": True, "fast_lane": request.param == "lane"}
    settings = Settings.model_validate({"repo": folder, "data_dir": folder / "data", "port": 0, **options})
    with running(settings, with_defaults()) as server:
        server.push([{"id": "1", "card_id": "a", "shop_id": 1, "amount": 5.0, "ts": now()}])
        row = {"card_id": ["a"], "limit": [9.0], "city": ["Rome"], "vip": [True], "since": [now()]}
        server.post(
            "/write-to-online-store",
            {"feature_view_name": "profile", "df": {**row, "event_timestamp": [now()], "created": [None]}},
        )
        server.wait_until_applied()
        yield server


def ask(live: Live, cards: list[str], status: int = 200, **more: Any) -> dict[str, Any]:
    params = {name: more.pop(name) for name in ("metadata", "strict") if name in more}
    body = {"features": FEATURES, "entities": {"card_id": cards}, **more}
    reply = live.http.post("/get-online-features", json=body, params=params)
    assert reply.status_code == status, reply.text
    found: dict[str, Any] = reply.json()
    return found


def values(reply: dict[str, Any]) -> list[list[Any]]:
    """By row, the key first."""
    return [list(row) for row in zip(*[result["values"] for result in reply["results"]], strict=True)]


def store_process(live: Live) -> int:
    with open_store(live.settings) as store:
        return int(store.info("server")["process_id"])  # type: ignore[index]


@pytest.fixture
def frozen(live: Live) -> Iterator[int]:
    """The store's server, stopped by a signal."""
    until_well(live)
    pid = store_process(live)
    os.kill(pid, signal.SIGSTOP)
    yield pid
    os.kill(pid, signal.SIGCONT)
    until_well(live)


def until_well(live: Live) -> None:
    deadline = time.monotonic() + 30
    while True:
        reply = ask(live, ["a"], metadata="full")
        if {view["tier"] for view in reply["metadata"]["views"].values()} == {"store"}:
            return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_frozen_store_is_answered_for_by_what_was_answered_last(live: Live, frozen: int) -> None:
    reply = ask(live, ["a"], metadata="full")
    assert values(reply) == [["a", 1, 5.0, 9.0, "Rome"]]
    assert [result["statuses"] for result in reply["results"]] == [["PRESENT"]] * 5
    for view in reply["metadata"]["views"].values():
        assert view["tier"] == "cache" and view["tiers"] == ["cache"]
        assert view["t"][0] < reply["metadata"]["t"][0]
    assert reply["metadata"]["views"]["card_spend"]["positions"]


def test_a_key_that_was_never_answered_has_the_defaults_and_nulls(live: Live, frozen: int) -> None:
    reply = ask(live, ["never seen", "a"], metadata="full")
    assert values(reply) == [["never seen", -1, None, None, None], ["a", 1, 5.0, 9.0, "Rome"]]
    statuses = [result["statuses"] for result in reply["results"]]
    assert statuses[1:] == [["PRESENT", "PRESENT"], *[["NULL_VALUE", "PRESENT"]] * 3]
    views = reply["metadata"]["views"]
    assert views["card_spend"]["tier"] == "mixed" and views["card_spend"]["tiers"] == ["default", "cache"]
    assert views["profile"]["tiers"] == ["null", "cache"]


def test_who_is_strict_or_asks_for_a_moment_gets_an_error(live: Live, frozen: int) -> None:
    assert "does not answer" in str(ask(live, ["a"], 503, strict="true")) or "did not answer" in str(
        ask(live, ["a"], 503, strict="true")
    )
    ask(live, ["a"], 503, as_of=now())


def test_many_rows_degrade_row_by_row(live: Live) -> None:
    until_well(live)
    cards = ["a", *[f"m{i}" for i in range(40)]]
    before = values(ask(live, cards))
    pid = store_process(live)
    os.kill(pid, signal.SIGSTOP)
    try:
        reply = ask(live, [*cards, "other"], metadata="full")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert values(reply)[:-1] == before and values(reply)[-1] == ["other", -1, None, None, None]
    assert reply["metadata"]["views"]["card_spend"]["tiers"] == ["cache"] * 41 + ["default"]
    until_well(live)


def test_after_some_failures_nobody_waits_for_the_store_and_the_counters_say_so(live: Live, frozen: int) -> None:
    for _ in range(6):
        ask(live, ["a"])
    taken = []
    for _ in range(3):
        started = time.monotonic()
        ask(live, ["a"])
        taken.append(time.monotonic() - started)
    assert min(taken) < DEADLINE_MS / 1_000  # answered without the store having been asked
    metrics = live.http.get("/metrics").text
    assert 'headrace_breaker_open{shard="0"} 1.0' in metrics
    assert 'headrace_degraded_values_total{tier="cache",view="card_spend"}' in metrics
    assert 'headrace_deadline_exceeded_total{route="/get-online-features"}' in metrics
    assert live.http.get("/ready").status_code == 503
    os.kill(frozen, signal.SIGCONT)
    until_well(live)
    assert 'headrace_breaker_open{shard="0"} 0.0' in live.http.get("/metrics").text


def test_a_deadline_of_the_caller_counts_and_a_wrong_one_is_told(live: Live, frozen: int) -> None:
    body = {"features": FEATURES, "entities": {"card_id": ["a"]}}
    reply = live.http.post("/get-online-features", json=body, headers={"X-Deadline-Ms": "20"})
    assert reply.status_code == 200
    for header, value in (("X-Deadline-Ms", "soon"), ("X-Deadline-Ms", "-1"), ("X-Priority", "high")):
        reply = live.http.post("/get-online-features", json=body, headers={header: value})
        assert reply.status_code == 422 and header in reply.text and value in reply.text


def test_late_replies_leave_the_requests_after_them_unharmed(live: Live) -> None:
    until_well(live)
    pid = store_process(live)
    os.kill(pid, signal.SIGSTOP)
    body = {"features": FEATURES, "entities": {"card_id": ["a"]}}

    def late(_: int) -> int:
        return live.http.post("/get-online-features", json=body, headers={"X-Deadline-Ms": "30"}).status_code

    try:
        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(late, range(300))) == {200}
    finally:
        os.kill(pid, signal.SIGCONT)
    until_well(live)
    for card, count in (("a", 1), ("b", 0), ("a", 1)):
        assert values(ask(live, [card]))[0][:2] == [card, count]


def test_a_view_that_is_not_ready_is_an_error_unless_a_tier_has_it(live: Live) -> None:
    """Taken from the store: the marker that says so. The worker of this test is stopped, so nobody writes it again."""
    until_well(live)
    catalog = with_defaults()
    fresh = replace(CARD_SPEND, name="fresh_spend", fingerprint="f9")
    bare = replace(fresh, name="bare_spend", fingerprint="f10")
    from headrace.stores.catalogs import save_catalog

    with open_store(live.settings) as store:
        defaults = replace(fresh, defaults=(("sum_1h", "0.5"),))
        wanted = replace(catalog, version=9, views=(*catalog.views, defaults, bare))
        stopped = threading.Event()
        save_catalog(store, live.settings, wanted)
        deadline = time.monotonic() + 20
        found: set[int] = set()
        while time.monotonic() < deadline and not stopped.is_set():
            body = {"features": ["fresh_spend:sum_1h"], "entities": {"card_id": ["zz"]}}
            reply = live.http.post("/get-online-features", json=body)
            found.add(reply.status_code)
            if reply.status_code == 200 and reply.json()["results"][1]["values"] == [None]:
                break  # the worker has built it: the window of a card without events
            assert reply.status_code == 404 or reply.json()["results"][1]["values"] == [0.5]
    assert found <= {404, 200}
