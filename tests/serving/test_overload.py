"""More requests than places: the least important are refused at once, the others are answered."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from shop import Live, running, shop

from headrace.settings import Settings
from headrace.stores.connection import open_store

BOTH_LANES = True
PLACES = 10
BODY = {"feature_service": "card_v1", "entities": {"card_id": ["a"]}}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Live]:
    folder: Path = tmp_path_factory.mktemp("full")
    options: dict[str, Any] = {"max_under_way": PLACES, "deadline_ms": 6_000, "degrade": True}
    options |= {"port": 0, "fast_lane": request.param == "lane"}
    settings = Settings.model_validate({"repo": folder, "data_dir": folder / "data", **options})
    with running(settings, shop()) as server:
        yield server


def ask(live: Live, priority: str) -> httpx.Response:
    return live.http.post("/get-online-features", json=BODY, headers={"X-Priority": priority})


def test_batch_may_fill_half_of_the_places_normal_four_fifths_and_critical_all(live: Live) -> None:
    assert ask(live, "batch").status_code == 200
    with open_store(live.settings) as store:
        pid = int(store.info("server")["process_id"])  # type: ignore[index]
    os.kill(pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(PLACES) as pool:
            waiting: list[Future[httpx.Response]] = []
            for priority, places in (("batch", PLACES // 2), ("normal", PLACES * 4 // 5), ("critical", PLACES)):
                while len(waiting) < places:
                    waiting.append(pool.submit(ask, live, priority))
                    time.sleep(0.02)
                time.sleep(0.5)  # all of them are under way
                refused = ask(live, priority)
                assert refused.status_code == 429 and refused.headers["retry-after"] == "1", priority
                assert priority in refused.text
            assert live.http.get("/health").status_code == 200  # reports have no need of a place
            assert [found.result().status_code for found in waiting] == [200] * PLACES  # at their deadline, degraded
    finally:
        os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + 20
    while ask(live, "batch").status_code != 200:
        assert time.monotonic() < deadline
    metrics = live.http.get("/metrics").text
    assert 'headrace_shed_requests_total{priority="batch",reason="concurrency"} 1.0' in metrics
