"""Runs of batch materialization: what they count, where they go on, what stops them, and what goes on beside them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

import materialize.batch
from headrace.catalog.definitions import BatchSource, Catalog, Column, DType, Entity, FeatureView, Source
from headrace.errors import DataError, StoreLostError, UnavailableError
from headrace.read.online.values import step_values
from headrace.settings import Settings
from headrace.stores.batch_files import BatchScan, read_batch_rows
from headrace.stores.catalogs import load_catalog, save_catalog
from headrace.stores.codec.rows import STREAM
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.keys import entity_key, entity_prefix, layout_field, markers_key
from headrace.stores.markers import Markers
from headrace.stores.materialized import MaterializedMarks
from headrace.stores.offline import OfflineStore
from headrace.stores.online import OnlineStore
from headrace.stores.stream import EventStream
from headrace.stores.tombstones import Tombstone, Tombstones, add_tombstones, project_salt
from headrace.stores.view_writes import Arrived, write_rows
from materialize import newest_writer
from materialize.batch import materialize_incremental
from materialize.rebuild import rebuild_views
from materialize.worker import Worker

SECOND_US = 1_000_000
COLUMNS = (Column("who", DType.INT64), Column("limit", DType.FLOAT64), Column("note", DType.STRING))
TIMES = (Column("seen", DType.TIMESTAMP),)
BATCH = BatchSource("limits", "limits.parquet", "seen", (*COLUMNS, *TIMES))
VIEW = FeatureView("limits", "plain", ("who",), COLUMNS[1:], "f", source="told", batch=BATCH)
TOLD = Source("told", (*COLUMNS, *TIMES), "seen")


def catalog_of(view: FeatureView = VIEW, clock: Any = "event", version: int = 1) -> Catalog:
    return Catalog("runs", version, clock, (Entity("who", "who", DType.INT64),), (TOLD,), (view,))


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    made = Settings(repo=tmp_path / "repo", data_dir=tmp_path / "data")
    made.repo.mkdir()
    with open_store(made) as store:
        save_catalog(store, made, catalog_of())
    yield made
    detach(made.data_dir)


Row = tuple[int | None, float, int | None]


def write(settings: Settings, *rows: Row, groups: int = 1_000_000) -> Path:
    """(who, limit, second); the note says the limit again."""
    who, limit, second = (list(column) for column in zip(*rows, strict=True))
    seen = [None if at is None else at * SECOND_US for at in second]
    table = pa.table(
        {
            "who": pa.array(who, pa.int64()),
            "limit": pa.array(limit, pa.float64()),
            "note": [str(one) for one in limit],
            "seen": pa.array(seen, pa.timestamp("us", "UTC")),
        }
    )
    path = settings.repo / "limits.parquet"
    pq.write_table(table, path, row_group_size=groups)
    return path


def shown(settings: Settings, *who: int) -> list[float | None]:
    """The limits that the store holds, each whole."""
    with open_store(settings) as store:
        view = load_catalog(store, "runs").view("limits")
        keys = [entity_key(entity_prefix("runs", view.entities), [one]) for one in who]
        held = OnlineStore(store).read(keys, layout_field(view))
    columns = step_values(view, held, np.full(len(who), 2**60)).columns
    limits, notes = columns["limit"].to_pylist(), columns["note"].to_pylist()
    assert notes == [None if limit is None else str(limit) for limit in limits]
    return limits


def run(settings: Settings, *period: int | None, **more: Any) -> Any:
    return materialize.batch.materialize(settings, "limits", *period, progress=False, **more)


def test_a_run_says_what_became_of_every_row(settings: Settings) -> None:
    write(settings, (1, 1.0, 5), (2, 2.0, 5), (3, 3.0, 5))
    run(settings)
    write(
        settings,
        (1, 1.5, 6),
        (1, 1.4, 4),
        (2, 2.5, 4),
        (3, 3.5, 5),
        (None, 0.0, 9),
        (4, float("inf"), 9),
        (4, 4.5, None),
    )
    done = run(settings)
    assert (done.keys, done.written, done.kept, done.forgotten) == (3, 2, 1, 0)
    assert (done.null_keys, done.refused, done.newest_us) == (1, 2, 9 * SECOND_US)
    assert shown(settings, 1, 2, 3, 4) == [1.5, 2.0, 3.5, None]


def test_an_incremental_run_goes_on_at_the_newest_row_that_was_read(settings: Settings) -> None:
    def incremental(end_us: int | None = None) -> tuple[int, int | None]:
        done = materialize_incremental(settings, "limits", end_us, progress=False)
        return done.keys, done.start_us

    rows: list[Row] = [(1, 1.0, 10), (2, 2.0, 20), (3, 3.0, 30)]
    write(settings, *rows)
    assert incremental(20 * SECOND_US) == (2, None)
    assert incremental() == (2, 20 * SECOND_US), "rows of the last time come again, for there may be more of them"
    assert incremental() == (1, 30 * SECOND_US)
    write(settings, *rows, (4, 4.0, 30), (5, 5.0, 31), (6, 6.0, 5))
    assert incremental() == (3, 30 * SECOND_US)
    assert shown(settings, 1, 2, 3, 4, 5, 6) == [1.0, 2.0, 3.0, 4.0, 5.0, None]
    assert incremental(7 * SECOND_US) == (0, 31 * SECOND_US)
    assert run(settings, None, 6 * SECOND_US).newest_us == 5 * SECOND_US
    assert incremental() == (1, 31 * SECOND_US), "never lowered"


def test_only_what_was_read_without_a_hole_counts_as_read(settings: Settings) -> None:
    write(settings, (1, 1.0, 10), (2, 2.0, 20), (3, 3.0, 30))
    run(settings, 15 * SECOND_US, 20 * SECOND_US)
    assert _start(settings) is None
    run(settings, None, 15 * SECOND_US)
    assert _start(settings) == 10 * SECOND_US
    run(settings, 11 * SECOND_US, 35 * SECOND_US)
    assert _start(settings) == 10 * SECOND_US
    run(settings, 10 * SECOND_US, 35 * SECOND_US)
    assert _start(settings) == 30 * SECOND_US


def _start(settings: Settings) -> int | None:
    with open_store(settings) as store:
        view = load_catalog(store, "runs").view("limits")
        return MaterializedMarks(store, "runs").upto_us(view, Markers(store, "runs").begin_build(view))


def test_rows_of_the_future_do_not_hide_those_that_come_before(settings: Settings) -> None:
    with open_store(settings) as store:
        save_catalog(store, settings, catalog_of(clock="wall"))
    now_s = int(time.time())
    write(settings, (1, 1.0, now_s - 50), (2, 2.0, now_s + 100_000))
    assert materialize_incremental(settings, "limits", progress=False).keys == 1
    assert run(settings).keys == 2
    assert (_start(settings) or 0) < (now_s + 100) * SECOND_US


def test_what_was_built_anew_or_lost_is_given_all_again(settings: Settings) -> None:
    with open_store(settings) as store:
        worker = Worker(store, OfflineStore(settings.data_dir), catalog_of())
        worker.start()
        write(settings, (1, 1.0, 10), (2, 2.0, 20))
        assert materialize_incremental(settings, "limits", progress=False).keys == 2
        rebuild_views(settings, ["limits"])
        assert shown(settings, 1, 2) == [1.0, 2.0]
        assert materialize_incremental(settings, "limits", progress=False).start_us is None
        assert materialize_incremental(settings, "limits", progress=False).start_us == 20 * SECOND_US
        held = store.hgetall(markers_key("runs"))
        store.flushall()
        save_catalog(store, settings, load_or(store, catalog_of()))
        marks = {name: value for name, value in held.items() if name.startswith(b"materialized|")}  # type: ignore[union-attr]
        store.hset(markers_key("runs"), mapping=marks)  # type: ignore[arg-type]
        done = materialize_incremental(settings, "limits", progress=False)
        assert (done.start_us, done.keys) == (None, 2), "a mark of another build is none"


def load_or(store: Any, catalog: Catalog) -> Catalog:
    """The catalog as the rebuild left it, with the layout's second generation."""
    return replace(catalog, views=(replace(VIEW, generation=2),), version=3)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Asia/Tokyo"])
def test_a_period_reads_the_same_rows_whatever_can_be_left_unread(tmp_path: Path, unit: Any, zone: str | None) -> None:
    rng = np.random.default_rng(3)
    per_s = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[unit]
    times = rng.integers(-5 * per_s, 5 * per_s, 400)
    if unit == "ns":
        times[:8] = [-1_000, -999, -1, 0, 1, 999, 1_000, 1_001]
    times.sort()
    moments = pa.array(times, pa.int64(), mask=rng.random(400) < 0.05).cast(pa.timestamp(unit, zone))
    limits = np.where(rng.random(400) < 0.1, np.inf, 1.0)
    table = pa.table({"who": np.arange(400), "limit": limits, "note": ["x"] * 400, "seen": moments})
    path = tmp_path / "limits.parquet"
    pq.write_table(table, path, row_group_size=20)
    pq.write_table(table.set_column(3, "seen", moments.cast(pa.string())), tmp_path / "text.parquet")
    as_text = replace(VIEW, batch=replace(BATCH, path="text.parquet"))
    edges = [None, *(int(us) for us in rng.integers(-6 * SECOND_US, 6 * SECOND_US, 4)), 0, -1, 1, 999]
    if zone is None and unit != "ns":  # digits that are cut are cut from text too, below zero the other way
        for start_us in edges:
            for end_us in edges[::3]:
                found = read_batch_rows(VIEW, COLUMNS, tmp_path, start_us, end_us)
                plain = read_batch_rows(as_text, COLUMNS, tmp_path, start_us, end_us)
                assert found.table.equals(plain.table) and found.refused == plain.refused
    everything = read_batch_rows(VIEW, COLUMNS, tmp_path)
    assert everything.refused == int((np.isinf(limits) | np.asarray(moments.is_null())).sum())
    for start_us, end_us in [(0, None), (None, 0), (-1, 1), (1, 1)]:
        inside = read_batch_rows(VIEW, COLUMNS, tmp_path, start_us, end_us)
        first, last = (-(2**62) if start_us is None else start_us), (2**62 if end_us is None else end_us)
        keep = (everything.event_time_us >= first) & (everything.event_time_us <= last)
        assert inside.table.equals(everything.table.filter(pa.array(keep)))


def test_columns_that_statistics_vouch_for_are_read_once(settings: Settings) -> None:
    path = write(settings, (1, 1.0, 1), (2, 2.0, 1))
    assert [column.name for column in BatchScan(VIEW, COLUMNS, settings.repo).doubtful()] == []
    for limits, statistics, doubtful in [
        ([float("nan"), 1.0], True, []),
        ([2.0, 1.0], False, ["limit"]),
        ([float("-inf"), 1.0], True, ["limit"]),
    ]:
        table = pq.read_table(path).set_column(1, "limit", pa.array(limits))
        pq.write_table(table.set_column(2, "note", pa.array(["-", "1.0"])), path, write_statistics=statistics)
        assert [column.name for column in BatchScan(VIEW, COLUMNS, settings.repo).doubtful()] == doubtful
    assert (run(settings).refused, shown(settings, 1, 2)) == (1, [None, 1.0])


def test_a_large_csv_is_read_in_blocks_that_need_not_look_alike(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.stores.table_scans.CSV_BLOCK_BYTES", 64)
    lines = ["who,limit,note,seen,spare"]
    lines += [
        f"{k},{k if k < 40 else k + 0.5},,{'2024-05-01' if k < 30 else '2024-05-01T00:00:01'}," for k in range(80)
    ]
    (settings.repo / "limits.csv").write_text("\n".join([*lines, '80,1.5,"x, ""y""",2024-05-01T00:00:00.123456789Z,z']))
    view = replace(VIEW, batch=replace(BATCH, path="limits.csv", file_format="csv"))
    rows = read_batch_rows(view, COLUMNS, settings.repo)
    found = {row["who"]: (row["limit"], row["note"]) for row in rows.table.to_pylist()}
    assert found == {**{k: (k if k < 40 else k + 0.5, None) for k in range(80)}, 80: (1.5, 'x, "y"')}
    assert (rows.event_time_us % SECOND_US).tolist() == [0] * 30 + [123_456] + [0] * 50
    pacsv.write_csv(rows.table, str(settings.repo / "limits.csv"))
    with pytest.raises(DataError, match="has no column 'seen'"):
        read_batch_rows(view, COLUMNS, settings.repo)


def test_a_file_that_is_damaged_or_changed_stops_the_run_before_anything_is_written(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(settings, *((k, float(k), k) for k in range(2_000)), groups=500)
    good = path.read_bytes()
    at = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    path.write_bytes(good[: at + 5] + os.urandom(400) + good[at + 405 :])
    with pytest.raises(DataError, match=r"limits\.parquet cannot be read as parquet"):
        run(settings)
    assert shown(settings, 1, 1_999) == [None, None]
    path.write_bytes(good)
    find = materialize.batch.find_newest

    def find_and_touch(*args: Any) -> Any:
        found = find(*args)
        write(settings, *((k, -1.0, k) for k in range(2_000)))
        return found

    monkeypatch.setattr(materialize.batch, "find_newest", find_and_touch)
    with pytest.raises(DataError, match="was changed while it was read; run it again"):
        run(settings)
    monkeypatch.undo()
    assert _start(settings) is None and run(settings).written == 2_000


def test_a_run_that_is_killed_midway_is_given_again(settings: Settings) -> None:
    n = 70_000
    write(settings, *((k, float(k), 5) for k in range(n)))
    command = [sys.executable, "-P", "-m", "headrace", "materialize", "limits"]
    environment = {**os.environ, "HEADRACE_REPO": str(settings.repo), "HEADRACE_DATA_DIR": str(settings.data_dir)}
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    with open_store(settings) as store:
        while store.dbsize() < 5_000:
            assert child.poll() is None, child.communicate()
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert store.dbsize() < n and _start(settings) is None
        done = run(settings)
        assert (done.keys, done.written, done.kept) == (n, n, 0)
        assert shown(settings, 0, 33_333, n - 1) == [0.0, 33_333.0, float(n - 1)]


def test_a_store_that_fails_or_is_emptied_meanwhile_is_said(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(settings, *((k, float(k), 5) for k in range(100)))
    monkeypatch.setattr(newest_writer, "CHUNK_ROWS", 10)
    with open_store(settings) as store:
        monkeypatch.setattr(
            newest_writer.RowWriter, "write", _then(3, lambda: store.client_kill_filter(_type="normal"))
        )
        with pytest.raises(UnavailableError, match="a part of its rows may be written, run it again"):
            run(settings)
        monkeypatch.undo()
        monkeypatch.setattr(newest_writer, "CHUNK_ROWS", 10)
        monkeypatch.setattr(newest_writer.RowWriter, "write", _then(3, store.flushall))
        with pytest.raises(StoreLostError, match="run it again"):
            run(settings)


def _then(calls: int, act: Any) -> Any:
    """`RowWriter.write` that acts before the given call."""
    left, real = [calls], newest_writer.RowWriter.write

    def write(self: Any, commands: Any) -> int:
        left[0] -= 1
        if not left[0]:
            act()
        return real(self, commands)

    return write


def test_a_key_that_is_forgotten_meanwhile_does_not_come_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(settings, *((k, float(k), 5) for k in range(100)))
    monkeypatch.setattr(newest_writer, "CHUNK_ROWS", 10)
    with open_store(settings) as store:
        salt = project_salt(store, OfflineStore(settings.data_dir).root, "runs")
        digests = [Tombstones(salt).digest(entity_key(entity_prefix("runs", ["who"]), [who])) for who in (25, 95)]

        def forget() -> None:
            items = [Tombstone(digest, ("who",), 10 * SECOND_US, {"told|0": (7, None)}) for digest in digests]
            add_tombstones(store, "runs", Tombstones(salt), items)

        monkeypatch.setattr(newest_writer.RowWriter, "write", _then(3, forget))
        done = run(settings)
    assert shown(settings, 24, 25, 95, 96) == [24.0, None, None, 96.0]
    assert (done.forgotten, done.written, done.kept) == (2, 98, 0)


def test_a_row_that_is_gone_and_was_brought_back_does_not_win(settings: Settings) -> None:
    """A writer that slept brings back an event that was forgotten; then a row comes that happened since."""
    prefix = entity_prefix("runs", ["who"])
    with open_store(settings) as store:
        salt, build = (
            project_salt(store, OfflineStore(settings.data_dir).root, "runs"),
            Markers(store, "runs").begin_build(VIEW),
        )
        digest = Tombstones(salt).digest(entity_key(prefix, [1]))
        item = Tombstone(digest, ("who",), 10 * SECOND_US, {"told|0": (7, None)})
        add_tombstones(store, "runs", Tombstones(salt), [item])
        columns = {"who": pa.array([1, 2]), "limit": pa.array([9.0, 9.0]), "note": pa.array(["9.0", "9.0"])}
        brought = Arrived(columns, np.full(2, 50 * SECOND_US), np.full(2, 7), np.arange(2))
        write_rows(OnlineStore(store), catalog_of(), VIEW, brought, STREAM, build)
        write(settings, (1, 1.0, 20), (2, 2.0, 20), (3, 3.0, 20))
        done = run(settings)
    assert (done.written, done.kept, done.forgotten) == (2, 1, 0)
    assert shown(settings, 1, 2, 3) == [1.0, 9.0, 3.0]


@pytest.mark.parametrize("seed", range(2))
def test_beside_the_stream_the_newest_row_of_all_stands(settings: Settings, seed: int) -> None:
    """A worker takes events while files are materialized again and again, with a rebuild in between."""
    rng = random.Random(seed)
    best: dict[int, tuple[int, int, int, float]] = {}
    lock, stop, failed = threading.Lock(), threading.Event(), []

    def note(who: int, second: int, rank: int, order: int, limit: float) -> None:
        with lock:
            best[who] = max(best.get(who, (-1, -1, -1, 0.0)), (second, rank, order, limit))

    def work() -> None:
        with open_store(settings) as store:
            worker = Worker(store, OfflineStore(settings.data_dir), catalog_of())
            worker.start()
            try:
                while not stop.is_set() or worker.step(1):
                    worker.step(1)
            except BaseException as error:
                failed.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    with open_store(settings) as store:
        stream = EventStream(store, "runs")
        for turn in range(12):
            rows = [(rng.randrange(40), rng.randrange(10**6) / 4, rng.randrange(12)) for _ in range(30)]
            lines = [f'{{"who":{w},"limit":{x},"note":"{x}","seen":"1970-01-01T00:00:{s:02}Z"}}' for w, x, s in rows]
            stream.append("told", "ndjson", "\n".join(lines).encode(), len(rows))
            for index, (who, limit, second) in enumerate(rows):
                note(who, second, 1, turn * 1_000 + index, limit)
            file = [(who, rng.randrange(10**6) / 4, rng.randrange(12)) for who in rng.sample(range(40), 25)]
            write(settings, *file)
            for who, limit, second in file:
                note(who, second, 0, turn, limit)
            assert run(settings).keys == 25
        stop.set()
        worker.join()
    assert not failed
    assert shown(settings, *sorted(best)) == [best[who][3] for who in sorted(best)]
