"""The archiver as a process of its own: killed at any moment, and on a full disk, it neither loses nor doubles."""

from __future__ import annotations

import dataclasses
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from scenario import PARTS, SECOND_US, catalog, ndjson, random_rows

from headrace.catalog.definitions import Column, DType, Source
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.markers import Markers
from headrace.stores.offline import INDEX, OFFSET, OfflineStore
from headrace.stores.stream import EventStream

START_US = 1_000_000 * SECOND_US
OTHER = Source("other", (Column("id", DType.STRING), Column("ts", DType.TIMESTAMP)), "ts", event_id="id")

RUN = """
import os, signal, sys, threading
from pathlib import Path
from headrace.settings import Settings
from headrace.stores.offline import OfflineStore
from materialize import lanes
from materialize.archiver import run_archiver
from materialize.upkeep import Upkeep
lanes.FLUSH_AFTER_S = 0.05
if sys.argv[3] == "between":
    def die(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)
    OfflineStore.append_events = die
settings = Settings(data_dir=Path(sys.argv[1]), repo=Path(sys.argv[2]), compact_files=3, vacuum_after_h=0)
run_archiver(settings, threading.Event())
"""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    made = Settings(repo=tmp_path / "repo", data_dir=tmp_path / "data")
    yield made
    detach(made.data_dir)


@pytest.fixture
def store(settings: Settings) -> Iterator[redis.Redis]:
    with open_store(settings) as client:
        save_catalog(client, settings, dataclasses.replace(catalog(), sources=(PARTS, OTHER)))
        yield client


def start(settings: Settings, dies: str = "", stderr: int | None = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", RUN, str(settings.data_dir), str(settings.repo), dies]
    return subprocess.Popen(command, stdout=stderr, stderr=stderr)


def archived(settings: Settings, source: Source = PARTS) -> list[tuple[int, int, str]]:
    rows = OfflineStore(settings.data_dir).read_events(source, ["id"], repeats=True)
    return list(zip(*(rows[name].to_pylist() for name in (OFFSET, INDEX, "id")), strict=True))


def letters(settings: Settings) -> list[tuple[int, int]]:
    rows = OfflineStore(settings.data_dir).read_dead_letters()
    return list(zip(rows["offset"].to_pylist(), rows["index"].to_pylist(), strict=True))


def wait_for(what: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


class Pushed:
    """What was pushed to `parts`: the events that parse, and those that do not."""

    def __init__(self, store: redis.Redis, rng: random.Random) -> None:
        self._stream, self._rng, self._step = EventStream(store, "test"), rng, 0
        self.events: list[tuple[int, int, str]] = []
        self.dead: list[tuple[int, int]] = []

    def push(self) -> None:
        rows = random_rows(self._rng, self._rng.randrange(1, 30), START_US + self._step * SECOND_US, ids=500)
        broken = [b"{"] * self._rng.randrange(3)
        offset = self._stream.append(
            "parts", "ndjson", b"\n".join([ndjson(rows), *broken]), len(rows) + len(broken)
        ).offset
        self.events += [(offset, i, row["id"]) for i, row in enumerate(rows)]
        self.dead += [(offset, len(rows) + i) for i in range(len(broken))]
        self._step += 1

    def is_archived(self, settings: Settings, store: redis.Redis) -> bool:
        mark = Markers(store, "test").applied("archived", [("parts", 0)])["parts", 0]
        return mark is not None and mark.offset == self.events[-1][0]


def test_killed_at_any_moment_it_neither_loses_nor_doubles(settings: Settings, store: redis.Redis) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    pushed = Pushed(store, rng)
    for dies in ("", "between", ""):
        for _ in range(5):
            pushed.push()
        process, before = start(settings, dies), len(archived(settings))
        if dies:
            assert process.wait(30) == -9
            assert letters(settings) == pushed.dead, "it died before the dead letters were there"
            continue
        wait_for(lambda count=before: len(archived(settings)) > count)  # type: ignore[misc]
        for _ in range(rng.randrange(20)):
            pushed.push()
            time.sleep(rng.random() * 0.03)
        process.kill()
        process.wait()
        held = archived(settings)
        assert held == pushed.events[: len(held)], "what is archived is no beginning of what was pushed"
    process = start(settings)
    try:
        wait_for(lambda: pushed.is_archived(settings, store))
    finally:
        process.terminate()
        process.wait()
    assert archived(settings) == pushed.events
    assert letters(settings) == pushed.dead


def test_on_a_full_disk_it_says_so_and_the_other_sources_go_on(settings: Settings, store: redis.Redis) -> None:
    rng, stream = random.Random(3), EventStream(store, "test")
    pushed = Pushed(store, rng)
    log = settings.data_dir / "archiver.log"
    with log.open("wb") as output:
        process = start(settings, stderr=output.fileno())
        try:
            pushed.push()
            wait_for(lambda: pushed.is_archived(settings, store))
            before = len(archived(settings))
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (8_000, resource.RLIM_INFINITY))
            for _ in range(60):
                pushed.push()
            wait_for(lambda: b"append failed" in log.read_bytes())
            stream.append("other", "ndjson", b'{"id": "small", "ts": "2024-01-01T00:00:00Z"}', 1)
            wait_for(lambda: len(archived(settings, OTHER)) == 1)
            assert len(archived(settings)) == before and not pushed.is_archived(settings, store)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            wait_for(lambda: pushed.is_archived(settings, store))
        finally:
            process.kill()
            process.wait()
    assert archived(settings) == pushed.events
    assert letters(settings) == pushed.dead
    assert b"File too large" in log.read_bytes() and b"source=parts" in log.read_bytes()
