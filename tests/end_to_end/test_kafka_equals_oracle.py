"""Random events in a topic of several partitions, through real worker, archiver and server, stopped and started again:
what is read online and as a training set equals the loop."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka_broker import Broker
from kafka_topic import PARTITIONS, Topic, definitions_of
from live_checks import check_dataset, check_online, random_label
from naive import NaiveEvent, without_repeats
from scenario import BY_WHO, SECOND_US, random_rows
from shop import running
from strategies import aggregation

from headrace.catalog.definitions import Catalog, Column, DType, Entity
from headrace.read.online.values import step_values
from headrace.settings import Settings
from headrace.stores import kafka_log
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.keys import entity_key, entity_prefix, layout_field
from headrace.stores.markers import Markers
from headrace.stores.offline import INDEX, OFFSET, PARTITION, OfflineStore
from headrace.stores.online import OnlineStore
from materialize import log
from materialize.archiver import Archiver
from materialize.worker import Worker

LIFETIME_COUNT = aggregation("count", "*", None)


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as started:
        yield started


@pytest.mark.parametrize("payload", ["json", "arrow"])
def test_a_topic_equals_the_loop_through_restarts_and_an_outage(tmp_path: Path, broker: Broker, payload: str) -> None:
    rng = random.Random(payload)
    topic = Topic(broker, f"parts.{payload}", payload)
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data", port=0)
    start_us = 1_000_000 * SECOND_US
    for round in range(3):
        topic.send(rng, random_rows(rng, 40, start_us, ids=120))  # while nobody reads
        with running(settings, definitions_of(topic, f"kafka-{payload}")) as live:
            for _ in range(2):
                topic.send(rng, random_rows(rng, rng.randrange(1, 30), start_us, ids=120))
                live.wait_until_applied()
                start_us += rng.randrange(300) * SECOND_US
            check_online(live, topic.kept(), rng)
            if round == 1 and payload == "json":
                broker.cut()
                unreachable = live.http.get("/streams").json()["parts"]
                broker.mend()
                assert unreachable["lag"] is None
                topic.send(rng, random_rows(rng, 30, start_us, ids=120))
                live.wait_until_applied()
            if round == 2:
                live.wait_until_applied("archived")
    kept = topic.kept()
    assert len(kept) < len(topic.history)
    for tied in (False, True):
        check_dataset(settings, kept, [random_label(rng, kept, tied) for _ in range(50)])


def test_a_push_to_a_topic_is_refused(tmp_path: Path, broker: Broker) -> None:
    topic = Topic(broker, "refused", "json")
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data", port=0)
    with running(settings, definitions_of(topic, "kafka-push")) as live:
        body = {"push_source_name": "parts", "df": {"id": ["1"], "ts": ["2023-01-01"]}, "to": "online"}
        assert "produce to the topic" in str(live.post("/push", body, status=422))
        ndjson = {"content-type": "application/x-ndjson"}
        reply = live.http.post("/push", params={"source": "parts"}, content=b"{}", headers=ndjson)
        assert reply.status_code == 422 and "'refused'" in reply.text


def test_repeats_go_by_the_broker_s_clock_wherever_a_reader_starts(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_log, "MOST_MESSAGES", 5)  # many batches
    monkeypatch.setattr(log, "_CHUNK_MESSAGES", 7)
    rng, project = random.Random(4), "kafka-wall"
    topic = Topic(broker, "wall", "json")
    source = replace(topic.source, dedup_horizon_us=20 * SECOND_US)
    view = replace(BY_WHO, aggregations=(LIFETIME_COUNT,), features=(Column(LIFETIME_COUNT.feature, DType.INT64),))
    definitions = Catalog(project, 1, "wall", (Entity("who", "who", DType.STRING),), (source,), (view,))
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data")
    store = open_store(settings)
    save_catalog(store, settings, definitions)
    history, stamp_us, arrivals = [], 1_700_000_000 * SECOND_US, [0] * PARTITIONS
    for _round in range(4):
        for _ in range(60):
            stamp_us += rng.randrange(-8, 10) * SECOND_US  # a producer's clock
            row = {"id": str(rng.randrange(25)), "who": "a", "ts": "2023-11-14T22:00:00Z"}
            partition = rng.randrange(PARTITIONS)
            offset = topic.send_at(partition, row, stamp_us)
            arrivals[partition] = max(arrivals[partition], stamp_us)
            history.append(NaiveEvent("a", 0, (partition, offset, 0), {}, row["id"], arrivals[partition]))
        ends = topic.ends()
        with closing(Worker(store, OfflineStore(settings.data_dir), definitions, settings)) as worker:
            worker.start()
            steps_until(worker.step, Markers(store, project), "source", ends)
        if rng.random() < 0.6:  # else the next worker finds the archive behind it
            with closing(Archiver(settings, store)) as archiver:
                steps_until(archiver.step, Markers(store, project), "archived", ends)
    with closing(Archiver(settings, store)) as archiver:
        steps_until(archiver.step, Markers(store, project), "archived", ends)
    kept = without_repeats(history, source.dedup_horizon_us)
    assert len(history) / 4 < len(kept) < len(history)
    rows = OfflineStore(settings.data_dir).read_events(source, ["arrival_time"])
    held = {tuple(row[name] for name in (PARTITION, OFFSET, INDEX)) for row in rows.to_pylist()}
    assert held == {event.position for event in kept}
    (blob,) = OnlineStore(store).read([entity_key(entity_prefix(project, ["who"]), ["a"])], layout_field(view))
    values = step_values(view, [blob], np.array([2**60])).columns
    assert values[LIFETIME_COUNT.feature].to_pylist() == [len(kept)]
    detach(settings.data_dir)


def steps_until(step: Callable[[int], int], markers: Markers, kind: Any, ends: dict[tuple[str, int], int]) -> None:
    deadline_s = time.monotonic() + 20
    while any(mark is None or mark.offset < ends[place] for place, mark in markers.applied(kind, ends).items()):
        assert time.monotonic() < deadline_s
        step(50)
