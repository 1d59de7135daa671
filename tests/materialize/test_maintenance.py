"""The upkeep of the archive's tables, by the archiver that owns them."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
import redis
from click.testing import CliRunner
from deltalake import DeltaTable
from scenario import NEWEST, PARTS, SECOND_US, catalog, moment, ndjson, random_rows

from headrace.catalog.definitions import Source
from headrace.cli.maintenance import compact_command
from headrace.errors import DataError
from headrace.read.history import History, view_values
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.markers import Markers
from headrace.stores.offline import INDEX, OFFSET, OfflineStore, event_rows
from headrace.stores.stream import EventStream
from headrace.stores.table_care import compact_day, crowded_days, sweep
from materialize.archiver import Archiver, run_archiver
from materialize.upkeep import Upkeep
from materialize.worker import Worker

DAY_US = 86_400 * SECOND_US


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    made = Settings(repo=tmp_path / "repo", data_dir=tmp_path / "data", compact_files=4, vacuum_after_h=0)
    yield made
    detach(made.data_dir)


@pytest.fixture
def store(settings: Settings) -> Iterator[redis.Redis]:
    with open_store(settings) as client:
        yield client


def append(offline: OfflineStore, offset: int, times_us: list[int], source: Source = PARTS) -> None:
    """One entry's events, one commit."""
    n, times = len(times_us), np.array(times_us, np.int64)
    columns: dict[str, Any] = {c.name: pa.nulls(n).cast(offline_type(source, c.name)) for c in source.columns}
    columns["id"] = pa.array([f"{offset}.{i}" for i in range(n)])
    columns["ts"] = pa.array(times).cast(pa.timestamp("us", "UTC"))
    rows = event_rows(
        pa.table(columns),
        event_time_us=times,
        arrival_us=times,
        partition=0,
        offset=np.full(n, offset, np.int64),
        index=np.arange(n),
        is_repeat=np.zeros(n, np.bool_),
    )
    offline.append_events(source, rows, partition=0, last_offset=offset)


def offline_type(source: Source, name: str) -> pa.DataType:
    from headrace.dtypes import arrow_type

    return arrow_type(source.column(name).dtype)


def rows_of(data_dir: Path, source: Source = PARTS) -> list[tuple[int, int, str]]:
    found = OfflineStore(data_dir).read_events(source, ["id"], repeats=True)
    return list(zip(*(found[name].to_pylist() for name in (OFFSET, INDEX, "id")), strict=True))


def files_of(path: Path) -> int:
    return len(DeltaTable(str(path)).file_uris())


def test_a_crowded_day_is_merged_by_the_archiver_itself_and_its_old_files_are_swept(settings: Settings) -> None:
    offline = OfflineStore(settings.data_dir)
    for offset in range(1, 8):
        append(offline, offset, [offset, DAY_US + offset] if offset < 4 else [offset])
    before, path = rows_of(settings.data_dir), offline.events_path("parts")
    assert crowded_days(path, 4) == ["1970-01-01"]
    Upkeep(offline, settings).step([PARTS], {})
    assert rows_of(settings.data_dir) == before
    assert files_of(path) == 1 + 3 == len(list(path.glob("*/*.parquet")))
    append(offline, 8, [5])
    assert rows_of(settings.data_dir) == [*before, (8, 0, "8.0")]


COMPACT_FOR_EVER = """
import sys
from pathlib import Path
from headrace.stores.offline import OfflineStore, archiver_ownership
from headrace.stores.table_care import compact_day, crowded_days, sweep
data_dir = Path(sys.argv[1])
with archiver_ownership(data_dir):
    offline = OfflineStore(data_dir)
    path = offline.events_path("parts")
    print("begun", flush=True)
    for day in crowded_days(path, 1):
        compact_day(offline, path, day)
    sweep(offline, path, 0)
    print("done", flush=True)
"""


def test_rows_are_the_same_wherever_a_compaction_is_killed(settings: Settings) -> None:
    offline, rng, killed = OfflineStore(settings.data_dir), random.Random(5), 0
    path, offset = offline.events_path("parts"), 0
    for pause_s in [0.005, 0.03, 0.06]:
        for _ in range(20):
            offset += 1
            append(offline, offset, [day * DAY_US + rng.randrange(DAY_US) for day in range(4)])
        before = rows_of(settings.data_dir)
        process = subprocess.Popen(
            [sys.executable, "-c", COMPACT_FOR_EVER, str(settings.data_dir)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        time.sleep(pause_s)
        process.kill()
        killed += process.stdout.read() == b""
        process.wait()
        process.stdout.close()
        assert rows_of(settings.data_dir) == before
        assert offline.archived_offset("parts", 0) == offset
        offline = OfflineStore(settings.data_dir)
    assert killed, "every compaction was done before it was killed: the test tests nothing"
    for day in crowded_days(path, 1):
        compact_day(offline, path, day)
    sweep(offline, path, 0)
    assert rows_of(settings.data_dir) == before
    assert files_of(path) == len(list(path.glob("*/*.parquet"))), "a killed compaction left files behind"


def test_a_reader_whose_files_are_swept_away_reads_again(settings: Settings) -> None:
    offline, stop = OfflineStore(settings.data_dir), threading.Event()
    for offset in range(1, 20):
        append(offline, offset, [offset])
    before, path, failures = rows_of(settings.data_dir), offline.events_path("parts"), []

    def read() -> None:
        while not stop.is_set():
            found = rows_of(settings.data_dir)[: len(before)]
            if found != before:
                failures.append(found)

    reader = threading.Thread(target=read)
    reader.start()
    for offset in range(20, 60):
        append(offline, offset, [offset])
        compact_day(offline, path, "1970-01-01")
        sweep(offline, path, 0)
    stop.set()
    reader.join()
    assert not failures


def test_retention_deletes_whole_dates_and_says_from_when_on_events_are_kept(settings: Settings) -> None:
    offline = OfflineStore(settings.data_dir)
    source = dataclasses.replace(PARTS, retention_us=3 * DAY_US)
    for offset in range(1, 6):
        append(offline, offset, [day * DAY_US + offset for day in range(5)])
    Upkeep(offline, settings).step([source], {})
    assert len(rows_of(settings.data_dir)) == 25 and offline.kept_from_us("parts") is None
    Upkeep(offline, settings).step([source], {"parts": 4 * DAY_US + 9})
    assert {index for _, index, _ in rows_of(settings.data_dir)} == {1, 2, 3, 4}
    assert OfflineStore(settings.data_dir).kept_from_us("parts") == DAY_US
    assert offline.archived_offset("parts", 0) == 5


def test_a_dataset_that_needs_deleted_events_is_refused_with_the_reason(settings: Settings) -> None:
    definitions = catalog()
    source = dataclasses.replace(PARTS, retention_us=2 * DAY_US)
    offline = OfflineStore(settings.data_dir)
    append(offline, 1, [0, 5 * DAY_US])
    Upkeep(offline, settings).step([source], {"parts": 5 * DAY_US})
    history = History(offline, settings.repo)
    keys = [pa.array([7], pa.int64())]

    def ask(t_us: int) -> Any:
        return view_values(definitions, NEWEST, ["flag"], keys, np.array([t_us]), history)

    assert ask(3 * DAY_US + NEWEST.ttl_us)["flag"].to_pylist() == [None]
    with pytest.raises(DataError, match=r"'parts' from 1970-01-04T00:00:00Z on, view 'newest' needs .*leave out"):
        ask(3 * DAY_US + NEWEST.ttl_us - 1)


def test_a_view_built_after_retention_is_complete_from_what_is_kept(settings: Settings, store: redis.Redis) -> None:
    source = dataclasses.replace(PARTS, retention_us=2 * DAY_US)
    definitions = dataclasses.replace(catalog(), sources=(source,))
    save_catalog(store, settings, definitions)
    stream, offline = EventStream(store, "test"), OfflineStore(settings.data_dir)
    for day in range(4):
        stream.append("parts", "ndjson", orjson.dumps({"id": str(day), "ts": moment(day * DAY_US + 5)}), 1)
    archiver = Archiver(settings, store)
    archiver.step()
    archiver.flush()
    archiver._keep_up()
    archiver._upkeep._next_s.clear()
    archiver._keep_up()
    worker = Worker(store, offline, definitions)
    worker.start()
    ready = Markers(store, "test").ready(definitions.view("by_who"))
    assert offline.kept_from_us("parts") == DAY_US
    assert ready is not None and ready.complete_from_us == DAY_US + 5


def test_dead_letters_go_with_the_events_of_their_time(settings: Settings, store: redis.Redis) -> None:
    source = dataclasses.replace(PARTS, retention_us=2 * DAY_US)
    save_catalog(store, settings, dataclasses.replace(catalog(), sources=(source,)))
    stream, offline = EventStream(store, "test"), OfflineStore(settings.data_dir)
    for day in (0, 1, 4):
        lines = orjson.dumps({"id": str(day), "ts": moment(day * DAY_US)}) + b"\n{"
        stream.append("parts", "ndjson", lines, 2)
    archiver = Archiver(settings, store)
    archiver.step()
    archiver.flush()
    archiver._upkeep._next_s.clear()
    archiver._keep_up()
    assert [key for _, _, key in rows_of(settings.data_dir)] == ["4"]
    arrivals = offline.read_dead_letters("parts")["arrival_time"].cast(pa.int64()).to_pylist()
    assert arrivals and min(arrivals) >= 2 * DAY_US


def test_compaction_by_order_of_the_command(settings: Settings, store: redis.Redis) -> None:
    save_catalog(store, settings, catalog())
    stream, stop, rng = EventStream(store, "test"), threading.Event(), random.Random(1)
    stream.append("parts", "ndjson", ndjson(random_rows(rng, 5, 0)), 5)
    thread = threading.Thread(target=run_archiver, args=(settings, stop))
    thread.start()
    try:
        where = ["--data-dir", str(settings.data_dir), "--repo", str(settings.repo)]
        done = CliRunner().invoke(compact_command, ["--all", *where], catch_exceptions=False)
    finally:
        stop.set()
        thread.join()
    assert done.exit_code == 0
    assert "parts: " in done.output and done.output.endswith("\nwrites/newest: nothing archived yet\n")
    done = CliRunner().invoke(compact_command, where)
    assert "names of sources or --all" in str(done.exception)
