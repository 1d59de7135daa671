"""Trimming: what leaves the stream, what never does, and everybody who reads the past afterwards."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from world import SHORT, World

from headrace.settings import Settings
from headrace.stores.embedded import detach
from headrace.stores.keys import markers_key, stream_key
from headrace.stores.markers import Applied, build_field, ready_field
from headrace.stores.stream import EventStream, unpack_offset
from materialize.log import SourceLog
from materialize.trim import Trimmer

PLACE = (SHORT.name, 0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data")
    yield World(settings, "trimmed")
    detach(settings.data_dir)


def length(world: World) -> int:
    return int(world.store.xlen(stream_key("trimmed", *PLACE)))  # type: ignore[arg-type]


def test_only_what_both_consumers_had_for_long_enough_leaves_the_stream(world: World) -> None:
    offsets = [world.push() for _ in range(6)]
    world.archiver._trim()
    assert length(world) == 6
    world.apply()
    world.archiver._trim()
    assert length(world) == 6  # applied, not archived
    world.archive()
    keep = Trimmer(world.stream, world.markers, 60.0)
    assert keep.step({PLACE: (SHORT, world.archiver._lanes[PLACE].archived or Applied())}) == 0
    world.archiver._trim()
    assert length(world) == 1 and world.stream.oldest(*PLACE) == world.stream.head(*PLACE)
    trimmed, head = world.mark("trimmed"), world.stream.head(*PLACE)
    assert trimmed is not None and head is not None
    assert (trimmed.offset, trimmed.total) == (offsets[-2], head.before)


def test_what_both_have_leaves_with_time_though_nothing_comes_after_it(world: World) -> None:
    for _ in range(4):
        world.push()
    world.apply()
    world.archive()
    trimmer = Trimmer(world.stream, world.markers, 1.0)
    both = {PLACE: (SHORT, world.archiver._lanes[PLACE].archived or Applied())}
    assert trimmer.step(both) == 0
    time.sleep(1.1)
    assert trimmer.step(both) == 3


def test_what_the_worker_has_not_applied_stays(world: World) -> None:
    for _ in range(3):
        world.push()
    world.apply()
    later = [world.push() for _ in range(3)]
    world.archive()
    world.archiver._trim()
    oldest, applied = world.stream.oldest(*PLACE), world.mark("source")
    assert oldest is not None and applied is not None and oldest.offset == applied.offset < later[0]
    world.apply()
    world.assert_right()


def test_a_stream_that_lost_its_end_keeps_its_newest_entry(world: World) -> None:
    offsets = [world.push() for _ in range(3)]
    world.apply()
    world.archive()
    world.store.xdel(stream_key("trimmed", *PLACE), *map(unpack_offset, offsets[1:]))
    world.archiver._trim()
    assert length(world) == 1


def test_a_stream_that_lost_its_end_lets_go_of_all_before_its_newest_entry(world: World) -> None:
    """Else a budget that is used up would never be free again."""
    offsets = [world.push() for _ in range(3)]
    world.apply()
    world.archive()
    world.store.xdel(stream_key("trimmed", *PLACE), unpack_offset(offsets[2]))
    world.archiver._trim()
    assert length(world) == 1


def test_a_full_stream_that_lost_its_end_and_its_markers_is_trimmed_too(world: World) -> None:
    """All that it has is archived, nothing more can come while its budget is used up, and nobody knows the count of the
    archive's end."""
    offsets = [world.push() for _ in range(3)]
    world.apply()
    world.archive()
    key = markers_key("trimmed")
    before = world.store.hgetall(key)
    offsets += [world.push() for _ in range(3)]
    world.apply()
    world.archive()
    world.store.xdel(stream_key("trimmed", *PLACE), *map(unpack_offset, offsets[5:]))
    world.store.hset(key, mapping=before)  # type: ignore[arg-type]
    for archiver in (world.archiver, world.new_archiver()):
        archiver._look()
        archiver._publish()
        world.new_worker()
        world.apply()
        archiver._trim()
        assert length(world) == 1
        archived = world.mark("archived")
        assert archived is not None and archived.offset == offsets[4]
    world.push()
    world.apply()
    world.archive()
    assert world.archived() == [event.position[1] for event in world.history]


def test_the_place_is_written_down_before_anything_goes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = [world.push() for _ in range(3)]
    world.apply()
    world.archive()

    def die(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(EventStream, "trim", die)
        with pytest.raises(ZeroDivisionError):
            world.archiver._trim()
    trimmed = world.mark("trimmed")
    assert trimmed is not None and trimmed.offset == offsets[1] and length(world) == 3
    world.archiver._trim()
    assert length(world) == 1


def test_consumers_that_start_after_a_trim_go_on_and_new_views_are_built_from_the_archive(world: World) -> None:
    for _ in range(4):
        world.push()
    world.apply()
    world.archive()
    world.archiver._trim()
    assert length(world) == 1
    head = world.stream.head(*PLACE)
    world.stream.append(SHORT.name, "ndjson", b"not json", 1)
    world.new_archiver()
    lane = world.archiver._lanes[PLACE]
    assert head is not None and lane.archived is not None and lane.archived.total == head.total
    for view in world.catalog.views[:2]:
        world.store.hdel(markers_key("trimmed"), ready_field(view), build_field(view))
    world.new_worker()
    world.push()
    world.apply()
    world.archive()
    world.assert_right()


def test_a_long_replay_takes_from_the_archive_what_was_trimmed_before_it_came_to_it(world: World) -> None:
    for _ in range(2):
        world.push()
    world.apply()
    world.archive()
    past = SourceLog(world.stream, world.offline, SHORT, 0, "event")
    replay = past.replay(Applied(), None)
    seen = next(replay).offset.tolist()
    for _ in range(4):
        world.push()
    world.apply()
    world.archive()
    world.archiver._trim()
    for batch in replay:
        seen += batch.offset.tolist()
    assert length(world) == 1
    assert seen == [event.position[1] for event in world.history]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_in_whichever_order_nothing_is_missed_or_doubled(world: World, seed: int) -> None:
    rng, trims = random.Random(seed), 0
    for _ in range(40):
        what = rng.choice(["push", "push", "apply", "archive", "trim", "trim", "worker", "archiver", "view"])
        if what == "push":
            world.push(rng.randrange(1, 9))
        elif what in ("apply", "archive"):
            getattr(world, what)()
        elif what == "trim":
            before = length(world)
            world.archiver._trim()
            trims += length(world) < before
        elif what == "view":
            view = rng.choice(world.catalog.views)
            world.store.hdel(markers_key("trimmed"), ready_field(view), build_field(view))
            world.new_worker()
        else:
            getattr(world, f"new_{what}")()
    assert trims > 0
    world.apply()
    world.archive()
    world.assert_right()
