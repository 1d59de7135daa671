"""The lease of the worker: one works, one stands by, and takes over when the other is gone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from scenario import PARTS, SECOND_US, catalog, ndjson, random_rows

from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.keys import lease_key
from headrace.stores.markers import Markers
from headrace.stores.stream import EventStream
from materialize.lease import Lease, holder


@pytest.fixture
def store(settings: Settings) -> Iterator[redis.Redis]:
    with open_store(settings) as client:
        client.delete(lease_key("leased", "worker"))
        yield client


def wait_for(what: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_one_holds_it_until_it_gives_it_back(store: redis.Redis) -> None:
    first, second = Lease(store, "leased", "worker", 60.0), Lease(store, "leased", "worker", 60.0)
    assert [first.take(), first.take(), second.take()] == [True, True, False]
    assert [first.held, second.held] == [True, False]
    second.release()
    found = holder(store, "leased", "worker")
    assert found is not None and found.process == os.getpid() and 0 < found.left_s <= 60
    first.release()
    assert [first.held, second.take()] == [False, True]


def test_it_ends_by_itself_when_it_is_not_renewed_and_lasts_while_it_is(store: redis.Redis) -> None:
    first, second = Lease(store, "leased", "worker", 0.3), Lease(store, "leased", "worker", 0.3)
    assert first.take()
    with first.renewed():
        time.sleep(0.7)
        assert first.held and not second.take()
    assert second.take()
    wait_for(lambda: not second.held and first.take())


def test_a_store_that_lost_it_gives_it_to_its_holder_again(store: redis.Redis) -> None:
    lease = Lease(store, "leased", "worker", 0.4)
    assert lease.take()
    with lease.renewed():
        store.delete(lease_key("leased", "worker"))
        wait_for(lambda: holder(store, "leased", "worker"))
        assert lease.held


def test_who_waits_takes_over_at_once_and_stops_waiting_when_told(store: redis.Redis) -> None:
    first, second, stop = (
        Lease(store, "leased", "worker", 60.0),
        Lease(store, "leased", "worker", 60.0),
        threading.Event(),
    )
    assert first.take()
    took: list[bool] = []
    waiting = threading.Thread(target=lambda: took.append(second.wait(stop)))
    waiting.start()
    first.release()
    waiting.join(20)
    assert took == [True]
    stop.set()
    assert Lease(store, "leased", "worker", 60.0).wait(stop) is False


class Workers:
    """`headrace worker` processes over one project, and what they print."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(repo=folder, data_dir=folder / "data")
        self.store = open_store(self.settings)
        save_catalog(self.store, self.settings, catalog(project="leased"))
        self.running: list[subprocess.Popen[str]] = []
        self.logs: list[Path] = []
        self.pushed = 0

    def start(self) -> subprocess.Popen[str]:
        log = self.settings.repo / f"worker{len(self.running)}.log"
        command = [sys.executable, "-P", "-m", "headrace", "worker", "--repo", str(self.settings.repo)]
        command += ["--data-dir", str(self.settings.data_dir)]
        environment = {**os.environ, "HEADRACE_LEASE": "1"}
        with log.open("w") as out:
            process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL, text=True
            )
        self.running.append(process)
        self.logs.append(log)
        return process

    def holds(self, process: subprocess.Popen[str]) -> bool:
        found = holder(self.store, "leased", "worker")
        return found is not None and found.process == process.pid

    def push(self) -> None:
        rows = [
            {**row, "id": f"{self.pushed}-{i}"} for i, row in enumerate(random_rows(random.Random(1), 5, SECOND_US))
        ]
        EventStream(self.store, "leased").append(PARTS.name, "ndjson", ndjson(rows), 5)
        self.pushed += 5

    def is_applied(self) -> bool:
        mark = Markers(self.store, "leased").applied("source", [(PARTS.name, 0)])[PARTS.name, 0]
        return mark is not None and mark.total == self.pushed

    def says(self, n: int, text: str) -> bool:
        return text in self.logs[n].read_text()

    def stop(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        self.store.close()
        detach(self.settings.data_dir)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    made = Workers(tmp_path)
    yield made
    made.stop()


def test_a_standby_takes_over_from_one_killed_frozen_or_stopped_cleanly(workers: Workers) -> None:
    waiting = [workers.start() for _ in range(3)]

    def next_one() -> subprocess.Popen[str]:
        """The one that takes over, once it has applied what is pushed now."""
        workers.push()
        wait_for(workers.is_applied)
        found = next(process for process in waiting if workers.holds(process))
        waiting.remove(found)
        return found

    first = next_one()
    wait_for(lambda: all(workers.says(workers.running.index(process), "standing by") for process in waiting))
    assert not workers.says(workers.running.index(first), "standing by")
    first.kill()
    first.wait()
    second = next_one()
    second.send_signal(signal.SIGSTOP)
    third = next_one()
    second.send_signal(signal.SIGCONT)
    wait_for(lambda: workers.says(workers.running.index(second), f"process {third.pid}"))
    waiting.append(second)
    third.send_signal(signal.SIGTERM)
    assert third.wait(30) == 0
    assert next_one() is second
