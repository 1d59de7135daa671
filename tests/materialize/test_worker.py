from __future__ import annotations

import random
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scenario import (
    BY_WHO,
    NEWEST,
    PARTS,
    SECOND_US,
    catalog,
    naive_event,
    ndjson,
    random_rows,
)
from stored import assert_store_equals_oracle

from headrace.catalog.definitions import Catalog
from headrace.compute.events import parse_entries
from headrace.errors import StaleCatalogError, StoreLostError
from headrace.read.online.values import step_values
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.codec.header import ROWS
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.keys import entity_key, entity_prefix, layout_field
from headrace.stores.markers import Applied, Markers
from headrace.stores.offline import OfflineStore
from headrace.stores.online import OnlineStore
from headrace.stores.stream import Entry, EventStream, unpack_offset
from materialize.archiver import Archiver
from materialize.worker import Worker

START_US = 1_000_000 * SECOND_US
EVER = BY_WHO.features[1].name


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
    together = threading.Barrier(len(workers))

    def work(worker: Worker) -> None:
        worker.start()
        for _ in range(25):
            together.wait(30)
            worker._entries = 2
            worker.step(block_ms=1)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_store_equals_oracle(store, definitions, history, max(e.time_us for e in history) + 1)
    assert sum(worker._online.refused for worker in workers) > 0, "no write was ever refused: the test tests nothing"


@pytest.mark.parametrize("stopped", [0, 1])
def test_what_was_read_ahead_of_others_outlives_a_partition_that_stops(settings: Settings, stopped: int) -> None:
    store, project = open_store(settings), f"ahead{stopped}"
    definitions = replace(catalog(project=project), sources=(replace(PARTS, partitions=2),))
    worker, stream = Worker(store, OfflineStore(settings.data_dir), definitions), EventStream(store, project)
    keys = [entity_key(entity_prefix(project, ["who"]), [str(partition)]) for partition in range(2)]
    worker.start()

    def push(batch: str) -> None:
        for partition in range(2):
            row = {"id": batch, "who": str(partition), "ts": "2023-01-01T00:00:00Z"}
            stream.append(PARTS.name, "ndjson", ndjson([row]), 1, partition)

    def spoil() -> None:
        (blob,) = OnlineStore(store).read([keys[stopped]], layout_field(BY_WHO))
        assert blob is not None
        store.hset(keys[stopped], layout_field(BY_WHO), blob[:1] + bytes([ROWS]) + blob[2:])  # type: ignore[arg-type]

    def meanwhile() -> None:
        if not worker._ahead.found and worker._ahead.behind is not None:
            push("ahead")
        worker._look_ahead()

    push("first")
    assert worker.step() == 2
    worker._online.meanwhile = meanwhile
    push("second")
    if stopped == 1:  # the last of its round, when its refused write is read again
        spoil()
    worker.step()
    if stopped == 0:  # one before others of its round
        spoil()
    worker.step()
    assert set(worker._stops.held) == {(PARTS.name, stopped)}
    held = OnlineStore(store).read([keys[1 - stopped]], layout_field(BY_WHO))
    assert step_values(BY_WHO, held, np.array([2**60])).columns[EVER].to_pylist() == [3]


def test_a_batch_is_bounded_when_entries_grow(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("materialize.worker._BATCH_EVENTS", 100)
    store = open_store(settings)
    worker, stream = Worker(store, OfflineStore(settings.data_dir), catalog(project="grow")), EventStream(store, "grow")
    worker.start()
    for count in [1] * 40 + [60] * 6 + [150]:
        rows = [{"id": None, "who": "a", "ts": "2023-01-01T00:00:00Z"}] * count
        stream.append(PARTS.name, "ndjson", ndjson(rows), count)
    done = [worker.step(1) for _ in range(12)]
    assert done[0] <= 100 and max(done) == 150 and sum(done) == 40 + 6 * 60 + 150
    (held,) = (OnlineStore(store).read([entity_key(entity_prefix("grow", ["who"]), ["a"])], layout_field(BY_WHO)),)
    assert step_values(BY_WHO, held, np.array([2**60])).columns[EVER].to_pylist() == [sum(done)]


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


def archive(settings: Settings, project_catalog: Catalog) -> Archiver:
    with open_store(settings) as store:
        save_catalog(store, settings, project_catalog)
    return Archiver(settings, open_store(settings))


@pytest.mark.parametrize("notices_late", [False, True])
def test_a_store_that_comes_back_empty_is_built_from_the_archive(tmp_path: Path, notices_late: bool) -> None:
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data")
    definitions = catalog(project="lost")
    archiver = archive(settings, definitions)
    store = open_store(settings)
    worker = Worker(store, archiver.offline, definitions)
    worker.start()
    stream = EventStream(store, "lost")
    history = []

    def push(n: int, start_us: int) -> None:
        rows = random_rows(random.Random(start_us), n, start_us)
        offset = stream.append(PARTS.name, "ndjson", ndjson(rows), n).offset
        history.extend(naive_event(row, (0, offset, i), 0) for i, row in enumerate(rows))

    push(40, START_US)
    worker.step()
    archiver.step()
    archiver.flush()
    store.flushdb()
    push(5, START_US + 60 * SECOND_US)
    if notices_late:  # a write that slipped in between the loss and its notice
        worker._check = lambda found: None  # type: ignore[method-assign]
    with pytest.raises(StoreLostError):
        worker.step()
    again = Worker(store, archiver.offline, definitions)
    again.start()
    while again.step(block_ms=1):
        pass
    t_us = max(e.time_us for e in history) + 1
    assert_store_equals_oracle(store, definitions, history, t_us)
    detach(settings.data_dir)


def test_events_that_the_stream_lost_come_from_the_archive(tmp_path: Path) -> None:
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data")
    definitions = catalog(project="tail")
    archiver = archive(settings, definitions)
    store = open_store(settings)
    worker = Worker(store, archiver.offline, definitions)
    worker.start()
    stream = EventStream(store, "tail")
    history = []
    for n in range(3):
        rows = random_rows(random.Random(n), 20, START_US + n * SECOND_US)
        offset = stream.append(PARTS.name, "ndjson", ndjson(rows), 20).offset
        history += [naive_event(row, (0, offset, i), 0) for i, row in enumerate(rows)]
        if n == 0:
            worker.step()
        if n == 1:
            archiver.step()
            archiver.flush()
            store.xdel("headrace.stream:tail:parts:0", unpack_offset(offset))
    again = Worker(store, archiver.offline, definitions)
    again.start()
    while again.step(block_ms=1):
        pass
    assert_store_equals_oracle(store, definitions, history, max(e.time_us for e in history) + 1)
    detach(settings.data_dir)


def test_a_column_added_later_is_null_in_what_older_producers_pushed() -> None:
    grown = replace(PARTS, added=(("real", 2),))
    entries = [Entry(n, "ndjson", 1, n, b'{"ts": "2023-01-01", "real": 5}', n) for n in range(4)]
    assert parse_entries(grown, 0, entries, "event", None).table["real"].to_pylist() == [5.0, None, 5.0, 5.0]


def test_an_entry_of_a_newer_catalog_is_left_to_a_newer_worker(settings: Settings) -> None:
    store, definitions = open_store(settings), catalog(project="newer")
    worker = Worker(store, OfflineStore(settings.data_dir), definitions)
    worker.start()
    EventStream(store, "newer").append(PARTS.name, "ndjson", b"{}", 1, catalog=2)
    with pytest.raises(StaleCatalogError, match="catalog version 2"):
        worker.step()


def test_a_write_without_expiry_takes_an_earlier_one_away(settings: Settings) -> None:
    store, definitions = open_store(settings), catalog(project="keep")
    worker = Worker(store, OfflineStore(settings.data_dir), definitions)
    worker.start()
    rows = [{"id": str(n), "who": "a", "site": 7, "ts": f"2023-01-01T00:00:0{n}Z"} for n in range(2)]
    stream, key = EventStream(store, "keep"), entity_key(entity_prefix("keep", ["who"]), ["a"])
    stream.append(PARTS.name, "ndjson", ndjson(rows[:1]), 1)
    worker.step()
    store.pexpire(key, 60_000)  # as a worker of a catalog whose windows all end would have
    worker = Worker(store, OfflineStore(settings.data_dir), definitions)
    worker.start()
    stream.append(PARTS.name, "ndjson", ndjson(rows[1:]), 1)
    worker.step()
    assert store.pttl(key) == -1


def test_a_view_ready_before_its_first_event_is_complete_from_it(settings: Settings) -> None:
    store, definitions = open_store(settings), catalog(project="warm")
    worker = Worker(store, OfflineStore(settings.data_dir), definitions)
    worker.start()
    ready = Markers(store, "warm").ready(definitions.views[0])
    assert ready is not None and ready.complete_from_us is None
    EventStream(store, "warm").append(PARTS.name, "ndjson", ndjson([{"who": "a", "ts": "2023-01-01T00:00:00Z"}]), 1)
    worker.step()
    ready = Markers(store, "warm").ready(definitions.views[0])
    assert ready is not None and ready.complete_from_us == 1_672_531_200_000_000
