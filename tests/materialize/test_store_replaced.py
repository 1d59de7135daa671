"""What was read from one store is never finished in another: a replica that took the master's place, a store that came
back from an older file or with nothing."""

from __future__ import annotations

import contextlib
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
from world import SHORT, World

from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.embedded import detach
from headrace.stores.keys import markers_key, stream_key
from headrace.stores.layout_markers import LayoutMarkers
from headrace.stores.offline import OfflineStore
from headrace.stores.stream import EventStream, unpack_offset
from materialize import archiver as archiver_module
from materialize.recover import accept_losses, diagnose
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


@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("loss", ["everything", "the last entry"])
def test_what_is_committed_after_the_stream_has_lost_it_is_in_the_views_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, loss: str, dies: bool
) -> None:
    world.push()
    world.archive()
    world.apply()
    late = world.push()
    world.archiver._read(0)
    then = world.archiver.offline.append_events

    def sleep_before_the_commit(*args: Any, **kwargs: Any) -> int:
        if loss == "everything":
            world.store.flushdb()
            save_catalog(world.store, world.settings, world.catalog)
        else:  # as a replica that lagged has it
            world.store.xdel(stream_key("replaced", SHORT.name, 0), unpack_offset(late))
        world.new_worker()
        world.push()
        world.apply()
        added = then(*args, **kwargs)
        if dies:
            raise KeyboardInterrupt
        return added

    monkeypatch.setattr(world.archiver.offline, "append_events", sleep_before_the_commit)
    with pytest.raises(KeyboardInterrupt) if dies else contextlib.nullcontext():
        world.archiver.flush()
    monkeypatch.undo()
    if dies:
        world.new_archiver()
    served = world.mark("source")
    world.archiver.step()
    assert not world.worker.follow(world.catalog)
    world.new_worker()
    held = world.mark("source")
    assert held is not None and served is not None and held.offset >= served.offset, "what was shown was taken back"
    world.apply()
    world.archive()
    world.assert_right()
    assert not world.archiver._in_doubt.held


def test_a_commit_that_the_stream_still_has_costs_no_view_its_values(world: World) -> None:
    world.push()
    world.archive()
    world.apply()
    builds = LayoutMarkers(world.store, "replaced").held().builds
    world.store.flushdb()  # after the commit: whoever starts finds it in the archive
    save_catalog(world.store, world.settings, world.catalog)
    world.new_worker()
    built = LayoutMarkers(world.store, "replaced").held().builds
    assert built != builds
    world.new_archiver().step()
    world.push()
    world.apply()
    world.archive()
    assert LayoutMarkers(world.store, "replaced").held().builds == built
    world.assert_right()


def test_a_partition_that_could_not_be_taken_up_again_for_the_store_failed_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.push()
    world.archive()

    def fail(past: object) -> None:
        raise redis.ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(archiver_module, "open_lane", fail)
        with pytest.raises(redis.ConnectionError):
            world.archiver._reopen(world.archiver._lanes[SHORT.name, 0])
    world.push()
    world.archiver._look()
    world.archive()
    world.apply()
    world.assert_right()


@pytest.mark.parametrize("loss", ["everything", "the last entry"])
def test_counts_of_a_stream_that_is_no_more_never_become_those_of_the_next(world: World, loss: str) -> None:
    world.push()
    world.archive()
    last = world.push()
    world.archiver._read(0)
    world.archiver.flush()  # and publishes it later
    if loss == "everything":
        world.new_archiver()
        world.store.flushdb()
        save_catalog(world.store, world.settings, world.catalog)
    else:
        world.store.xdel(stream_key("replaced", SHORT.name, 0), unpack_offset(last))
    world.archiver._publish()
    world.new_worker()
    world.push()
    world.new_worker()
    world.apply()
    world.archive()
    fields: Any = world.store.hkeys(markers_key("replaced"))
    assert not [field for field in fields if field.startswith(b"gap|")]
    world.assert_right()


@pytest.mark.parametrize("in_the_commit", [False, True])
def test_what_was_given_up_while_the_archiver_held_it_is_archived_and_online_or_neither(
    world: World, monkeypatch: pytest.MonkeyPatch, in_the_commit: bool
) -> None:
    world.push()
    world.archive()
    world.apply()
    lost = world.push(5)
    world.push()
    world.apply()
    world.archiver._read(0)  # it has both
    then = world.archiver.offline.append_events

    def give_up(*args: Any, **kwargs: Any) -> int:
        world.stream.trim(SHORT.name, 0, lost)
        accept_losses(world.store, world.catalog, diagnose(world.store, world.offline, world.catalog))
        world.new_worker()
        return then(*args, **kwargs) if args else 0

    if in_the_commit:
        monkeypatch.setattr(world.archiver.offline, "append_events", give_up)
        world.archiver.flush()
        monkeypatch.undo()
    else:
        give_up()
        world.archiver.flush()
        world.lose([lost])
    world.new_worker()
    world.push()
    world.apply()
    world.archive()
    world.assert_right()


def test_what_came_into_the_archive_while_somebody_gave_it_up_is_online_too(world: World) -> None:
    world.push()
    world.archive()
    world.apply()
    lost = world.push(5)
    world.push()
    world.archiver._read(0)
    world.stream.trim(SHORT.name, 0, lost)
    found = diagnose(world.store, world.offline, world.catalog)
    world.archiver.flush()
    accept_losses(world.store, world.catalog, found)
    assert not LayoutMarkers(world.store, "replaced").held().ready  # a worker may have begun behind it already
    world.new_worker()
    world.push()
    world.apply()
    world.archive()
    world.assert_right()


def test_a_gap_is_told_though_the_archiver_died_before_it_raised_its_marker(world: World) -> None:
    world.push()
    world.archive()
    world.push()
    world.archiver._read(0)
    world.archiver.flush()  # and dies
    lost = world.push(7)
    world.apply()
    world.push()
    world.stream.trim(SHORT.name, 0, lost)
    world.new_archiver()
    assert "the 7 events after" in "".join(world.archiver._stops.held.values())
    found = diagnose(world.store, world.offline, world.catalog)
    assert found.broken[0].lost == 7
    accept_losses(world.store, world.catalog, found)
    world.lose([lost])
    world.new_worker()
    world.archiver._look()
    world.apply()
    world.archive()
    world.assert_right()


@pytest.mark.parametrize("fewer", [True, False])
@pytest.mark.parametrize("opened", ["before", "after"])
def test_what_is_trimmed_of_a_stream_that_began_anew_before_anybody_knew_its_count_is_a_gap(
    world: World, opened: str, fewer: bool
) -> None:
    world.push()
    world.archive()
    world.apply()
    world.store.flushdb()
    save_catalog(world.store, world.settings, world.catalog)
    world.new_worker()
    if opened == "before":
        world.new_archiver()
    lost = world.push(7 if fewer else 70)  # than were archived before
    world.apply()
    world.push()
    world.apply()
    world.stream.trim(SHORT.name, 0, lost)
    if opened == "after":
        world.new_archiver()
    world.archive()
    assert "no longer has the events after" in "".join(world.archiver._stops.held.values())
    found = diagnose(world.store, world.offline, world.catalog)
    assert found.broken[0].lost is None
    accept_losses(world.store, world.catalog, found)
    world.lose([lost])
    world.new_worker()
    world.archiver._look()
    world.apply()
    world.archive()
    world.push()
    world.apply()
    world.archive()
    world.assert_right()
