"""What was read from one store is never finished in another: a replica that took the master's place, a store that came
back from an older file or with nothing."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from crash.processes import StoreProcess, free_port
from naive import NaiveEvent
from scenario import PARTS, SECOND_US, catalog, naive_event, ndjson, random_rows
from stored import assert_store_equals_oracle
from world import World

from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.embedded import detach
from headrace.stores.offline import OfflineStore
from headrace.stores.stream import EventStream
from materialize.worker import Worker

START_US = 1_000_000 * SECOND_US


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreProcess]:
    process = StoreProcess(tmp_path / "store", free_port(), "always")
    process.start()
    yield process
    process.kill()


def push(client: redis.Redis, start_us: int) -> list[NaiveEvent]:
    rows = random_rows(random.Random(start_us), 20, start_us)
    offset = EventStream(client, "test").append(PARTS.name, "ndjson", ndjson(rows), len(rows)).offset
    return [naive_event(row, (0, offset, i), 0) for i, row in enumerate(rows)]


def worked(client: redis.Redis, folder: Path) -> Worker:
    worker = Worker(client, OfflineStore(folder), catalog())
    worker.start()
    while worker.step(block_ms=1):
        pass
    return worker


def before(worker: Worker, moment: str, action: Callable[[], None]) -> None:
    """`action` happens just before the worker does something, once."""
    owner, name = {
        "the check": (worker, "_check"),
        "the write": (worker._online, "update"),
        "the marker": (worker._markers, "raise_applied"),
    }[moment]
    then = getattr(owner, name)

    def act(*args: Any, **kwargs: Any) -> Any:
        setattr(owner, name, then)
        action()
        return then(*args, **kwargs)

    setattr(owner, name, act)


@pytest.mark.parametrize("moment", ["the check", "the write", "the marker"])
@pytest.mark.parametrize("has_the_events", [True, False])
@pytest.mark.parametrize("first_batch", [True, False])
def test_the_worker_begins_anew(
    store: StoreProcess, tmp_path: Path, moment: str, has_the_events: bool, first_batch: bool
) -> None:
    older = tmp_path / "older"

    def copy() -> None:
        shutil.copytree(store.folder / "appendonlydir", older)

    def replace() -> None:
        store.kill()
        store.lose_data()
        older.rename(store.folder / "appendonlydir")
        store.start()

    with store.client() as client:
        history = [] if first_batch else push(client, START_US)
        worker = worked(client, tmp_path / "data")
        if has_the_events:
            history += push(client, START_US + SECOND_US)
            copy()
        else:
            copy()
            push(client, START_US + SECOND_US)
        before(worker, moment, replace)
        with pytest.raises(redis.RedisError):
            worker.step()
        history += push(client, START_US + 2 * SECOND_US)
        worked(client, tmp_path / "data")
        assert_store_equals_oracle(client, catalog(), history, max(e.time_us for e in history) + 1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(Settings(repo=tmp_path, data_dir=tmp_path / "data"), "replaced")
    yield made
    detach(made.settings.data_dir)


@pytest.mark.parametrize("before_the_next", [True, False])
def test_the_archive_takes_nothing_that_a_worker_may_have_gone_on_without(world: World, before_the_next: bool) -> None:
    world.push()
    world.archive()
    world.apply()
    lost = world.push()
    world.archiver._read(0)  # and has not appended it yet
    world.store.flushdb()
    save_catalog(world.store, world.settings, world.catalog)
    world.new_worker()
    if before_the_next:
        world.archiver.flush()
    world.push()
    world.apply()
    world.archive()
    world.archive()
    world.lose([lost])
    world.assert_right()
