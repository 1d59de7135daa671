"""Gaps: who stops, what is said, what goes on; and how recovery mends what can be mended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from scenario import PARTS
from world import SHORT, World

from headrace.catalog.definitions import FeatureView
from headrace.cli import group
from headrace.errors import StoreLostError, StreamGapError
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.embedded import detach
from headrace.stores.gaps import gap_field, losses
from headrace.stores.keys import markers_key, stream_key
from headrace.stores.markers import Applied, Markers, build_field, ready_field
from headrace.stores.stream import unpack_offset
from materialize.archiver import run_archiver
from materialize.log import SourceLog
from materialize.recover import accept_losses, diagnose
from materialize.run_worker import run_worker

PLACE = (SHORT.name, 0)
STREAM = stream_key("gaps", *PLACE)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(Settings(repo=tmp_path, data_dir=tmp_path / "data"), "gaps")
    yield made
    detach(made.settings.data_dir)


def stopped(world: World, role: Any) -> str | None:
    found = world.store.hget(markers_key("gaps"), gap_field(role, *PLACE))
    return None if found is None else found.decode()  # type: ignore[union-attr]


def recover(world: World, *options: str) -> Result:
    where = ["--repo", str(world.settings.repo), "--data-dir", str(world.settings.data_dir)]
    return CliRunner().invoke(group, ["recover", *options, *where])


def settle(world: World) -> None:
    """What the processes do by themselves within a second or two."""
    world.archiver._look()
    try:
        again = world.worker.look()
    except StoreLostError:
        again = True
    if again:
        world.new_worker()
    world.archive()
    try:
        world.apply()
    except StoreLostError:
        world.new_worker()
        world.apply()


def test_an_archiver_whose_next_events_were_trimmed_stops_says_how_many_and_goes_on_once_they_are_given_up(
    world: World,
) -> None:
    world.push()
    world.archive()
    lost = [world.push(7), world.push(5)]
    world.apply()
    world.push()
    world.stream.trim(*PLACE, lost[-1])
    world.archive()
    said = stopped(world, "archiver")
    assert said is not None and "no longer has the 12 events after" in said and "run headrace recover" in said
    assert stopped(world, "worker") is None
    assert set(world.archived()) == {world.history[0].position[1]}
    found = diagnose(world.store, world.offline, world.catalog)
    (broken,) = found.broken
    assert broken.lost == 12 and broken.roles == ("archiver",) and broken.beyond
    assert {view.name for view in found.doubtful} == {"by_who", "by_both", "newest"}
    accept_losses(world.store, world.catalog, found)
    world.lose(lost)
    settle(world)
    assert stopped(world, "archiver") is None
    world.push()
    world.archive()
    world.apply()
    world.assert_right()
    (loss,) = losses(world.store, "gaps", *PLACE)
    assert (loss.events, loss.total) == (12, 32)


def test_a_worker_whose_next_events_were_trimmed_takes_them_from_the_archive_without_being_told(world: World) -> None:
    world.push()
    world.apply()
    world.push()
    later = world.push()
    world.archive()
    world.push()
    world.stream.trim(*PLACE, later)
    with pytest.raises(StoreLostError, match="does not go on at"):
        world.worker.step(1)
    world.new_worker()
    world.apply()
    world.archive()
    assert stopped(world, "worker") is None
    world.assert_right()


def test_a_stream_that_was_deleted_stops_both_and_other_sources_go_on(world: World) -> None:
    other = replace(PARTS, name="others")
    view = FeatureView("of_others", "plain", ("site",), world.catalog.views[2].features, "f", source="others")
    more = replace(world.catalog, version=2, sources=(SHORT, other), views=(*world.catalog.views, view))
    save_catalog(world.store, world.settings, more)
    world.catalog = more
    world.archiver._next_s.clear()
    world.archiver.step()
    world.new_worker()
    kept = [world.push() for _ in range(2)]
    world.apply()
    world.archive()
    world.store.delete(STREAM)
    with pytest.raises(StoreLostError, match="ends before"):
        world.worker.look()
    world.new_worker()
    world.archiver._look()
    for role in ("worker", "archiver"):
        said = stopped(world, role)
        assert said is not None and "is empty; this consumer stands at" in said
    world.stream.append("others", "ndjson", b'{"id": "1", "site": 7, "ts": "2023-01-01T00:00:00Z"}', 1)
    world.apply()
    world.archive()
    assert Markers(world.store, "gaps").applied("source", [("others", 0)])["others", 0].total == 1  # type: ignore[union-attr]
    assert world.offline.read_events(other, ["id"]).num_rows == 1
    assert not world.worker.look()  # nothing was mended: no restart
    world.push()
    settle(world)
    assert set(world.archived()) == set(kept) and stopped(world, "worker") is not None
    accept_losses(world.store, world.catalog, diagnose(world.store, world.offline, world.catalog))
    settle(world)
    assert stopped(world, "worker") is None and stopped(world, "archiver") is None
    world.catalog = replace(more, views=more.views[:3])
    world.assert_right()


def test_a_shortened_stream_is_a_gap_even_when_new_events_hide_it(world: World) -> None:
    world.push()
    world.archive()
    lost = world.push(9)
    world.apply()
    world.store.xdel(STREAM, unpack_offset(lost))
    world.push()
    world.archive()
    with pytest.raises(StoreLostError):
        world.worker.step(1)
    world.new_worker()
    said = stopped(world, "worker")
    assert said is not None and "this consumer stands at" in said
    found = diagnose(world.store, world.offline, world.catalog)
    assert "at least 9 events" in str(found.broken[0])
    accept_losses(world.store, world.catalog, found)
    settle(world)
    assert stopped(world, "worker") is None
    world.push()
    settle(world)
    world.lose([lost])
    world.assert_right()


def test_what_a_stream_lost_at_its_end_and_views_still_hold_leaves_them_once_it_is_given_up(world: World) -> None:
    world.push()
    world.archive()
    lost = world.push(9)
    world.apply()
    world.store.xdel(STREAM, unpack_offset(lost))
    world.new_worker()
    assert stopped(world, "worker") is not None and stopped(world, "archiver") is None
    found = diagnose(world.store, world.offline, world.catalog)
    assert found.broken[0].roles == ("worker",) and found.doubtful
    accept_losses(world.store, world.catalog, found)
    settle(world)
    world.lose([lost])
    world.assert_right()
    world.push()
    settle(world)
    world.assert_right()


def test_a_hole_below_a_view_that_is_not_ready_stops_its_build_and_no_other_view(world: World) -> None:
    world.push()
    world.archive()
    world.apply()
    lost = world.push()
    world.apply()
    world.stream.append(SHORT.name, "ndjson", b"dead", 1)
    world.stream.trim(*PLACE, lost)
    view = world.catalog.views[0]
    world.store.hdel(markers_key("gaps"), ready_field(view), build_field(view))
    world.new_worker()
    assert stopped(world, "worker") is not None
    assert Markers(world.store, "gaps").ready(view) is None
    assert Markers(world.store, "gaps").ready(world.catalog.views[1]) is not None
    assert not world.worker.look()


def test_a_replay_refuses_a_gap_and_passes_an_accepted_one(world: World) -> None:
    world.push()
    lost = [world.push(), world.push()]
    world.push()
    world.store.xdel(STREAM, *map(unpack_offset, lost))
    world.new_worker()
    past = SourceLog(world.stream, world.offline, SHORT, 0, "event")
    with pytest.raises(StreamGapError, match="40 events"):
        list(past.replay(Applied(), None))
    found = diagnose(world.store, world.offline, world.catalog)
    assert found.healthy  # neither consumer has come to it yet
    world.archive()
    accept_losses(world.store, world.catalog, diagnose(world.store, world.offline, world.catalog))
    seen = [offset for batch in past.replay(Applied(), None) for offset in batch.offset.tolist()]
    world.lose(lost)
    assert seen == [event.position[1] for event in world.history]


def test_a_marker_of_the_old_count_never_lands_in_a_store_that_counts_anew(world: World) -> None:
    old, new = Applied(1 << 62, 3, 99, 5), Applied(1 << 40, 0, 1, 5)
    raised = world.markers.raise_applied
    assert raised("archived", *PLACE, old, at_least=7) is None and world.mark("archived") is None
    raised("archived", *PLACE, new)
    assert raised("archived", *PLACE, old, at_least=new.offset + 1) == new == world.mark("archived")
    raised("archived", *PLACE, old, at_least=new.offset)
    assert world.mark("archived") == old


def test_a_store_that_came_back_empty_is_recovered_by_command(world: World) -> None:
    for _ in range(3):
        world.push()
    world.archive()
    world.apply()
    assert recover(world).exit_code == 0
    world.store.flushdb()
    told = recover(world)
    assert told.exit_code == 1 and "Nothing was changed" in told.output
    for line in ("holds no catalog", "Not ready: by_who, by_both, newest", "503", "180 archived events"):
        assert line in told.output
    done = recover(world, "--yes")
    assert done.exit_code == 0, done.output
    assert "3 views built" in done.output and "s per million entities" in done.output
    world.assert_right()
    world.new_archiver()
    world.new_worker()
    world.push()
    world.apply()
    world.archive()
    world.assert_right()
    assert "Nothing to recover" in recover(world).output


def test_a_loss_is_told_and_accepted_by_two_options(world: World) -> None:
    world.push()
    world.archive()
    lost = world.push(9)
    world.apply()
    world.push()
    world.stream.trim(*PLACE, lost)
    told = recover(world, "--yes")
    assert told.exit_code == 1 and "parts, partition 0: 9 events after" in told.output
    assert "--accept-loss" in told.output and losses(world.store, "gaps", *PLACE) == []
    done = recover(world, "--yes", "--accept-loss")
    assert done.exit_code == 0, done.output
    world.lose([lost])
    settle(world)
    world.assert_right()


def wait_for(what: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_running_processes_survive_a_flush_and_an_accepted_loss_without_a_restart(world: World) -> None:
    stop = threading.Event()
    threads = [threading.Thread(target=run, args=(world.settings, stop)) for run in (run_worker, run_archiver)]
    for thread in threads:
        thread.start()
    try:
        world.push()
        wait_for(lambda: len(world.archived()) == 20 and world.mark("source") == world.mark("archived"))
        world.store.flushdb()
        wait_for(lambda: all(Markers(world.store, "gaps").ready(view) for view in world.catalog.views))
        world.push()
        wait_for(lambda: len(world.archived()) == 40 and world.mark("source") == world.mark("archived"))
        world.assert_right()
        world.store.delete(STREAM)
        wait_for(lambda: stopped(world, "worker") and stopped(world, "archiver"))
        done = recover(world, "--yes", "--accept-loss")
        assert done.exit_code == 0, done.output
        wait_for(lambda: not stopped(world, "worker") and not stopped(world, "archiver"))
        world.push()
        wait_for(lambda: len(world.archived()) == 60 and world.mark("source") == world.mark("archived"))
        world.assert_right()
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
