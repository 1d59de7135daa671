"""A topic of three partitions through real processes that are killed; then the topic itself is lost and made again."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from crash.ledger import Ledger
from crash.machine import Machine
from kafka_broker import Broker
from kafka_topic import PARTITIONS, Topic, definitions_of
from live_checks import check_dataset, check_online, random_label
from naive import NaiveEvent
from scenario import SECOND_US, random_rows
from shop import Live

from headrace.stores.offline import INDEX, OFFSET, PARTITION

START_US = 1_000_000 * SECOND_US
KILLS = 2


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker() as started:
        yield started


def send(topic: Topic, rng: random.Random, n: int) -> None:
    topic.send(rng, random_rows(rng, n, START_US + len(topic.history) * SECOND_US))


def archived(machine: Machine, topic: Topic) -> list[NaiveEvent]:
    """The archived events as they were sent, where the archive has them; each once."""
    sent = {event.event_id: event for event in topic.history}
    rows = machine.offline.read_events(topic.source, ["id", "arrival_time"], repeats=True).to_pylist()
    places = [tuple(row[name] for name in (PARTITION, OFFSET, INDEX)) for row in rows]
    assert len({row["id"] for row in rows}) == len(set(places)) == len(rows)
    return [replace(sent[row["id"]], position=place) for row, place in zip(rows, places, strict=True)]  # type: ignore[arg-type]


def check(machine: Machine, topic: Topic, expected: set[str], rng: random.Random) -> None:
    """Archive, online values and training rows hold these events."""
    machine.wait_until_ready()
    machine.wait_until_caught_up()
    kept = archived(machine, topic)
    assert {event.event_id for event in kept} == expected
    live = Live(machine.url, machine.settings)
    check_online(live, kept, rng)
    live.http.close()
    check_dataset(machine.settings, kept, [random_label(rng, kept, False) for _ in range(20)])


@pytest.mark.timeout(300)
def test_a_topic_counts_once_whatever_is_killed_and_goes_on_when_it_was_made_again(
    tmp_path: Path, broker: Broker
) -> None:
    rng = random.Random(11)
    topic = Topic(broker, "killed", "json")
    machine = Machine(tmp_path, definitions_of(topic, "crash"), 2, "always", Ledger())
    with machine.running():
        for _ in range(KILLS):
            send(topic, rng, 40)
            time.sleep(rng.uniform(0, 0.7))
            rng.choice([*machine.workers, machine.archiver]).kill()
        send(topic, rng, 40)
        everything = {str(event.event_id) for event in topic.history}
        check(machine, topic, everything, rng)
        topic.cut([0] * PARTITIONS)
        send(topic, rng, 9)
        deadline = time.monotonic() + 60
        while "run headrace recover" not in httpx.get(f"{machine.url}/ready", timeout=10).text:
            assert time.monotonic() < deadline, httpx.get(f"{machine.url}/streams", timeout=10).text
            time.sleep(0.2)
        said = machine.accept_losses()
        assert machine.told, said
        send(topic, rng, 20)
        rng.choice([*machine.workers, machine.archiver]).kill()
        check(machine, topic, {str(event.event_id) for event in topic.history}, rng)
