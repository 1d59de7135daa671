"""The audit over a real server, worker and archiver: it names each way in which served values may differ."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shop import CARD_SPEND, Live, now, shop

from headrace.catalog.definitions import Catalog
from headrace.read.audit import AuditReport, audit
from headrace.read.history import History
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.keys import layout_field
from headrace.stores.offline import OfflineStore
from headrace.stores.served import read_served
from materialize.archiver import run_archiver
from materialize.run_worker import run_worker
from serving.run import Server, bind, make_config, url_of

FEATURES = ["card_spend__count_1h", "card_spend__sum_1h"]


def logged_shop() -> Catalog:
    catalog = shop()
    return replace(catalog, services=tuple(replace(service, log_rate=1.0) for service in catalog.services))


@contextmanager
def thread(target: Any, *args: Any) -> Iterator[None]:
    stop = threading.Event()
    running = threading.Thread(target=target, args=(*args, stop))
    running.start()
    try:
        yield
    finally:
        stop.set()
        running.join(30)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Server and archiver; a worker runs where a test has one run."""
    folder: Path = tmp_path_factory.mktemp("audited")
    settings = Settings.model_validate(
        {"repo": folder, "data_dir": folder / "data", "port": 0, "degrade": True, "deadline_ms": 300}
    )
    with open_store(settings) as store:
        save_catalog(store, settings, logged_shop())
    listener, listening = bind(settings), threading.Event()
    server = Server(make_config(settings), listening.set)
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    serving.start()
    assert listening.wait(20)
    held = Live(url_of(listener), settings)
    with thread(run_archiver, settings):
        yield held
    held.http.close()
    server.should_exit = True
    serving.join(30)
    listener.close()
    detach(settings.data_dir)


def push(live: Live, event_id: str, card: str, amount: float, ago_s: float) -> None:
    live.push([{"id": event_id, "card_id": card, "shop_id": 1, "amount": amount, "ts": now(-ago_s)}])


def ask(live: Live, request_id: str, card: str) -> list[Any]:
    body = {"feature_service": "card_v1", "entities": {"card_id": [card]}}
    reply = live.http.post("/get-online-features", json=body, headers={"X-Request-ID": request_id})
    assert reply.status_code == 200, reply.text
    return [result["values"][0] for result in reply.json()["results"]][1:3]


def audited(live: Live, catalog: Catalog | None = None) -> AuditReport:
    """The report, once everything that was pushed and served is archived."""
    live.wait_until_applied("archived")
    time.sleep(1.0)
    root, held = OfflineStore(live.settings.data_dir).root, -1
    while held != (held := read_served(root, "card_v1").num_rows):
        time.sleep(1.0)
    return audit(catalog or logged_shop(), History(OfflineStore(live.settings.data_dir), live.settings.repo), "card_v1")


def outcomes(report: AuditReport, request_id: str) -> set[str]:
    return {of.outcome for of in report.findings if of.request_id == request_id and of.feature in FEATURES}


def test_lag_late_events_degraded_answers_and_wrong_values_are_each_named(live: Live) -> None:
    with thread(run_worker, live.settings):
        push(live, "1", "a", 5.0, 600)
        push(live, "1", "a", 5.0, 600)  # a repeat
        live.wait_until_applied()
        assert ask(live, "right", "a") == [1, 5.0]
        assert ask(live, "unseen", "u") == [0, None]
        report = audited(live)
        assert [report.outcomes[feature] for feature in FEATURES] == [{"equal": 2}, {"equal": 2}]
    push(live, "2", "a", 7.0, 0)
    assert ask(live, "lagging", "a") == [1, 5.0]
    report = audited(live)
    assert outcomes(report, "lagging") == {"lag"} and report.bugs == 0
    assert [report.outcomes[feature]["equal"] for feature in FEATURES] == [2, 2]

    with thread(run_worker, live.settings):
        live.wait_until_applied()
        assert ask(live, "caught up", "a") == [2, 12.0]
        push(live, "3", "a", 1.0, 900)
        live.wait_until_applied()
        time.sleep(1.1)  # what is kept for a degraded answer is at most a second older
        assert ask(live, "all", "a") == [3, 13.0]
        report = audited(live)
        assert outcomes(report, "right") == {"late"} and outcomes(report, "lagging") == {"lag", "late"}
        assert outcomes(report, "caught up") == {"late"} and outcomes(report, "all") == set()
        assert report.bugs == 0

        with open_store(live.settings) as store:
            pid = int(store.info("server")["process_id"])  # type: ignore[index]
        os.kill(pid, signal.SIGSTOP)
        try:
            assert ask(live, "degraded", "a") == [3, 13.0]
        finally:
            os.kill(pid, signal.SIGCONT)
        time.sleep(2.5)  # what keeps the store unasked for a while
        report = audited(live)
        assert [report.outcomes[feature]["degraded"] for feature in FEATURES] == [1, 1] and report.bugs == 0

        with open_store(live.settings) as store:  # somebody writes what no event says
            key = "headrace:shop:card:"
            blob: Any = store.hget(key + "a", layout_field(CARD_SPEND))
            store.hset(key + "w", layout_field(CARD_SPEND), blob)
        assert ask(live, "wrong", "w") == [3, 13.0]
    report = audited(live)
    assert outcomes(report, "wrong") == {"bug"} and report.bugs == 2
    changed = replace(logged_shop(), views=(replace(CARD_SPEND, fingerprint="new"), *shop().views[1:]))
    of_before = audited(live, changed)
    assert of_before.bugs == 0 and of_before.outcomes[FEATURES[0]]["definition"] == report.rows - 1

    command = [sys.executable, "-m", "headrace", "audit", "card_v1", "--data-dir", str(live.settings.data_dir)]
    command += ["--repo", str(live.settings.repo)]
    environment = {**os.environ, "HEADRACE_REPO": str(live.settings.repo)}
    (live.settings.repo / "feature_store.yaml").write_text("project: shop\nprovider: local\nregistry: r.db\n")
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout, done.stderr
    assert json.loads(done.stdout)["bugs"] == 2
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1 and "bug: card_spend__count_1h of request wrong row 0: served 3" in done.stdout
