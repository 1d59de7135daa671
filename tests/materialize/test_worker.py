from __future__ import annotations

import random
import threading

import numpy as np
import pytest
from scenario import (
    NEWEST,
    PARTS,
    SECOND_US,
    assert_equals_oracle,
    catalog,
    naive_event,
    ndjson,
    plain_value,
    random_rows,
    with_key,
)

from headrace.errors import StoreLostError
from headrace.read.values import step_values
from headrace.settings import Settings
from headrace.stores.connection import open_store
from headrace.stores.keys import entity_key, entity_prefix, layout_field
from headrace.stores.markers import Applied, Markers
from headrace.stores.offline import OfflineStore
from headrace.stores.online import OnlineStore
from headrace.stores.stream import EventStream
from materialize.worker import Worker

START_US = 1_000_000 * SECOND_US


def test_workers_at_once_count_every_event_once(settings: Settings) -> None:
    rng = random.Random(3)
    definitions = catalog(project="crowd")
    store, offline = open_store(settings), OfflineStore(settings.data_dir)
    stream = EventStream(store, "crowd")
    history = []
    for n in range(40):
        rows = random_rows(rng, 20, START_US + n * SECOND_US)
        offset = stream.append(PARTS.name, "ndjson", ndjson(rows), len(rows)).offset
        history += [naive_event(row, (0, offset, i), 0) for i, row in enumerate(rows)]
    workers = [Worker(open_store(settings), offline, definitions) for _ in range(3)]

    def work(worker: Worker) -> None:
        worker.start()
        while worker.step(block_ms=1):
            pass

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    t_us = max(e.time_us for e in history) + 1
    for view, parts in zip(definitions.views, [(0,), (0, 1), (1,)], strict=True):
        events = with_key(history, parts)
        for key in {event.key for event in events}:
            ordered = [key[parts.index(p)] for p in sorted(parts, key=lambda p: ("who", "site")[p])]
            redis_key = entity_key(entity_prefix("crowd", view.entities), ordered)
            (blob,) = OnlineStore(store).read([redis_key], layout_field(view))
            shown = step_values(view, [blob], np.array([t_us])).columns
            got = {name: plain_value(column[0].as_py()) for name, column in shown.items()}
            assert_equals_oracle(view, got, events, key, t_us)
    assert sum(worker._online.refused for worker in workers) > 0, "no write was ever refused: the test tests nothing"


def test_a_marker_is_never_lowered(settings: Settings) -> None:
    markers = Markers(open_store(settings), "markers")
    big = 1 << 62
    assert markers.raise_applied("source", "s", 0, Applied(big + 1, 3, 10, 5)) is None
    for lower in (Applied(big, 9, 1, 1), Applied(big + 1, 3, 99, 99), Applied(big + 1, 2, 0, 0), Applied(9, 9, 9, 9)):
        assert markers.raise_applied("source", "s", 0, lower) == Applied(big + 1, 3, 10, 5)
    markers.raise_applied("source", "s", 0, Applied(big + 1, 4, 11, 6))
    assert markers.applied("source", [("s", 0)]) == {("s", 0): Applied(big + 1, 4, 11, 6)}


def test_a_store_that_lost_its_markers_is_noticed(settings: Settings) -> None:
    store = open_store(settings)
    definitions = catalog(project="lost")
    worker = Worker(store, OfflineStore(settings.data_dir), definitions)
    worker.start()
    stream = EventStream(store, "lost")
    rows = random_rows(random.Random(1), 3, START_US)
    stream.append(PARTS.name, "ndjson", ndjson(rows), 3)
    assert worker.step() == 3
    store.delete("headrace.markers:lost")
    stream.append(PARTS.name, "ndjson", ndjson(rows), 3)
    with pytest.raises(StoreLostError, match="lost data"):
        worker.step()


def test_a_batch_merged_twice_counts_once(settings: Settings) -> None:
    store, offline = open_store(settings), OfflineStore(settings.data_dir)
    definitions = catalog(project="twice")
    stream = EventStream(store, "twice")
    rows = [{**row, "site": 7} for row in random_rows(random.Random(5), 30, START_US)]
    worker = Worker(store, offline, definitions)
    worker.start()
    stream.append(PARTS.name, "ndjson", ndjson(rows), len(rows))
    worker.step()
    keys = sorted(store.scan_iter("headrace:twice:*"))
    before = [store.hgetall(key) for key in keys]
    store.hdel("headrace.markers:twice", "source|parts|0")
    again = Worker(store, offline, definitions)
    again.start()
    again.step()
    assert [store.hgetall(key) for key in keys] == before and before


def test_of_rows_of_one_time_the_later_position_wins(settings: Settings) -> None:
    store = open_store(settings)
    definitions = catalog(project="ties")
    worker = Worker(store, OfflineStore(settings.data_dir), definitions)
    worker.start()
    row = {"site": 7, "ts": "2023-01-01T00:00:00Z"}
    rows = [{**row, "short": 1}, {**row, "short": 2}, {**row, "short": 9, "ts": "2022-12-31T00:00:00Z"}]
    EventStream(store, "ties").append(PARTS.name, "ndjson", ndjson(rows), 3)
    worker.step()
    key = entity_key(entity_prefix("ties", NEWEST.entities), [7])
    held = OnlineStore(store).read([key], layout_field(NEWEST))
    assert step_values(NEWEST, held, np.array([1_672_531_200_000_000])).columns["short"].to_pylist() == [2]
