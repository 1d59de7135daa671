"""A topic that has lost what was read of it, or was made again under its name: who stops, and how it goes on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kafka_broker import Broker
from kafka_topic import PARTITIONS, Topic, definitions_of
from naive import NaiveEvent
from scenario import SECOND_US, random_rows
from stored import assert_store_equals_oracle

from headrace.cli import group
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.gaps import ROLES, gap_field
from headrace.stores.kafka_epochs import Epoch, Epochs
from headrace.stores.keys import markers_key
from headrace.stores.markers import Markers
from headrace.stores.offline import INDEX, OFFSET, PARTITION, OfflineStore
from materialize.archiver import Archiver
from materialize.worker import Worker

START_US = 1_000_000 * SECOND_US


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as started:
        yield started


class World:
    """A topic, a store, and the processes as a test starts them."""

    def __init__(self, folder: Path, broker: Broker, project: str) -> None:
        self.settings = Settings(repo=folder, data_dir=folder / "data")
        self.topic = Topic(broker, project, "json")
        self.catalog = definitions_of(self.topic, project)
        self.store = open_store(self.settings)
        save_catalog(self.store, self.settings, self.catalog)
        self.offline = OfflineStore(self.settings.data_dir)
        self.markers = Markers(self.store, project)
        self.rng = random.Random(project)

    def send(self, n: int, partitions: Sequence[int] = range(PARTITIONS)) -> list[NaiveEvent]:
        before = len(self.topic.history)
        self.topic.send(self.rng, random_rows(self.rng, n, START_US + before * SECOND_US), partitions)
        return self.topic.history[before:]

    def work(self, done: Callable[[], bool]) -> None:
        with closing(Worker(self.store, self.offline, self.catalog, self.settings)) as worker:
            worker.start()
            _until(lambda: worker.step(50), done)

    def archive(self, done: Callable[[], bool]) -> None:
        with closing(Archiver(self.settings, self.store)) as archiver:
            _until(lambda: archiver.step(50), done)

    def is_applied(self) -> bool:
        return self.marks() == list(self.topic.ends().values())

    def is_archived(self) -> bool:
        return self.ends() == list(self.topic.ends().values())

    def ends(self) -> list[int]:
        """Where the archive of each partition ends."""
        return [self.offline.archived_offset(self.topic.source.name, partition) for partition in range(PARTITIONS)]

    def marks(self) -> list[int]:
        found = self.markers.applied("source", self.topic.ends())
        return [mark.offset if mark else 0 for mark in found.values()]

    def archived(self) -> list[NaiveEvent]:
        """The archived events, as they were sent, where the archive has them."""
        sent = {event.event_id: event for event in self.topic.history}
        rows = self.offline.read_events(self.topic.source, ["id", "arrival_time"], repeats=True).to_pylist()
        return [replace(sent[row["id"]], position=tuple(row[n] for n in (PARTITION, OFFSET, INDEX))) for row in rows]  # type: ignore[arg-type]

    def stopped(self, role: str) -> list[str]:
        fields = [gap_field(role, self.topic.source.name, partition) for partition in range(PARTITIONS)]  # type: ignore[arg-type]
        held = self.store.hmget(markers_key(self.catalog.project), fields)
        return [text.decode() for text in held if text is not None]  # type: ignore[union-attr]

    def recover(self, *options: str) -> Result:
        where = ["--repo", str(self.settings.repo), "--data-dir", str(self.settings.data_dir)]
        return CliRunner().invoke(group, ["recover", *options, *where])


def _until(step: Callable[[], int], done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        step()


@pytest.fixture
def world(tmp_path: Path, broker: Broker, request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(tmp_path, broker, f"lost-{request.node.callspec.params['grows']}".lower())
    yield made
    detach(made.settings.data_dir)


@pytest.mark.parametrize("grows", [False, True])
def test_it_is_said_and_mended_and_nothing_is_missed_or_doubled(world: World, grows: bool) -> None:
    """Partition 0 loses a tail that is archived, partition 1 one that is applied alone, partition 2 is made again. All
    get new messages before anybody looks, some more than there were."""
    world.send(60)
    world.work(world.is_applied)
    world.archive(world.is_archived)
    ends, stays = world.ends(), {event.event_id for event in world.archived()}
    applied_alone = {event.event_id for event in world.send(20, [1])}
    world.work(world.is_applied)
    left = [ends[0] // 2, ends[1] + 1, 0]
    world.topic.cut(left)
    stays |= {e.event_id for e in world.topic.history if e.event_id in applied_alone and e.position[1] <= left[1]}
    stays |= {event.event_id for event in [*world.send(80 if grows else 4, [0, 2]), *world.send(1, [1])]}
    with closing(Worker(world.store, world.offline, world.catalog, world.settings)) as worker:
        worker.start()
    Archiver(world.settings, world.store).close()
    assert len(world.stopped("worker")) == 3 and len(world.stopped("archiver")) == 2
    told = world.recover("--yes")
    assert told.exit_code == 1 and all(f"Lost: parts, partition {n}" in told.output for n in range(3)), told.output
    done = world.recover("--yes", "--accept-loss")
    assert done.exit_code == 0, done.output
    stays |= {event.event_id for event in world.send(30)}
    world.archive(lambda: {event.event_id for event in world.archived()} == stays)
    world.work(lambda: world.marks() == world.ends())
    archived = world.archived()
    assert len(archived) == len(stays), "something is archived twice"
    assert not any(world.stopped(role) for role in ROLES)
    assert_store_equals_oracle(world.store, world.catalog, archived, max(e.time_us for e in archived) + 1)
    assert "Nothing to recover" in world.recover().output


@pytest.mark.parametrize(
    ("epochs", "held"),
    [
        (Epochs(), {0: 1, 4: 5}),
        (Epochs((Epoch(), Epoch(11, 6))), {5: 6, 6: 11, 9: 14}),
        (Epochs((Epoch(), Epoch(11, 0))), {0: 11, 3: 14}),
        (Epochs((Epoch(), Epoch(11, 6), Epoch(30, 8))), {5: 6, 6: 11, 7: 12, 8: 30}),
        (Epochs((Epoch(), Epoch(11, 6), Epoch(30, 2))), {1: 2, 2: 30, 9: 37}),
    ],
)
def test_positions_of_a_topic_that_began_anew(epochs: Epochs, held: dict[int, int]) -> None:
    for kafka, position in held.items():
        assert epochs.position(kafka) == position
        assert epochs.kafka_at(position) == epochs.kafka_after(position - 1) == kafka
        assert epochs.end(kafka + 1) in (position, epochs.all[-1].first - 1)
    last = epochs.all[-1]
    assert epochs.end(last.kafka) == last.first - 1
    assert epochs.kafka_after(last.first - 1) == last.kafka
    for lost in set(range(1, last.first)) - {epochs.position(kafka) for kafka in range(last.kafka)}:
        assert epochs.kafka_at(lost) is None and epochs.kafka_after(lost) <= last.kafka
