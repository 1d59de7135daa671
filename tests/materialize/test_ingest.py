from __future__ import annotations

import contextlib
import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import redis
from deltalake import write_deltalake
from naive import NaiveEvent, without_repeats
from scenario import (
    PARTS,
    SECOND_US,
    assert_equals_oracle,
    catalog,
    micros,
    moment,
    naive_event,
    ndjson,
    plain_value,
    random_rows,
    with_key,
)

from headrace.catalog.definitions import Catalog, Expectation
from headrace.read.dataset import build_dataset, read_positions
from headrace.read.explain import explain
from headrace.read.history import History
from headrace.read.online.values import step_values
from headrace.settings import Settings
from headrace.stores import import_rows
from headrace.stores.arrow import arrow_schema
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import attach
from headrace.stores.import_files import find_files
from headrace.stores.import_log import ImportLog
from headrace.stores.keys import entity_key, entity_prefix, layout_field, markers_key
from headrace.stores.markers import IMPORTS, Applied, Markers
from headrace.stores.offline import OfflineStore
from headrace.stores.online import OnlineStore
from headrace.stores.orders import give_order, last_receipt, receipts_after, waiting_orders
from headrace.stores.stream import EventStream
from headrace.stores.stream_reports import ReportQuery
from materialize import archiver as archiver_module
from materialize.archiver import Archiver
from materialize.worker import Worker

START_US = 1_000_000 * SECOND_US
DAY_US = 86_400 * SECOND_US


class World:
    """A project of its own: its store, archiver and worker, driven step by step, and what the oracle knows of it."""

    def __init__(self, session: Settings, folder: Path, project: str, definitions: Catalog | None = None) -> None:
        url = f"unix://{attach(session.data_dir)}"
        self.settings = Settings(repo=folder, data_dir=folder / "data", redis_url=url)
        self.catalog = definitions or catalog(project=project)
        self.store: redis.Redis = open_store(self.settings)
        save_catalog(self.store, self.settings, self.catalog)
        self.stream = EventStream(self.store, project)
        self.markers = Markers(self.store, project)
        self.offline = OfflineStore(self.settings.data_dir)
        self.archiver = Archiver(self.settings, self.store)
        self.worker = self.new_worker()
        self.streamed: list[NaiveEvent] = []
        self.imported: list[tuple[Path, list[dict[str, Any]]]] = []

    def new_worker(self) -> Worker:
        worker = Worker(self.store, self.offline, self.catalog)
        worker.start()
        return worker

    def push(self, rows: list[dict[str, Any]]) -> None:
        offset = self.stream.append("parts", "ndjson", ndjson(rows), len(rows)).offset
        for i, row in enumerate(rows):
            arrival_us = max([micros(row["ts"]), *(event.arrival_us for event in self.streamed[-1:])])
            self.streamed.append(naive_event(row, (0, offset, i), arrival_us))

    def order(self, path: Path, **renamed: str) -> str:
        names = [renamed.get(column.name, column.name) for column in self.catalog.source("parts").columns]
        files = [file.as_plain() for file in find_files(str(path), names)]
        return give_order(
            self.store, self.catalog.project, "import", "parts", {"files": files, "renamed": renamed, "absent": []}
        )

    def ingest(self, path: Path, **renamed: str) -> dict[str, Any]:
        """Import with the archiver's steps alone; what the last receipt says."""
        after = last_receipt(self.store, self.catalog.project)
        order = self.order(path, **renamed)
        self.step_archiver()
        receipts = [row for _, row in receipts_after(self.store, self.catalog.project, after, 1) if row["id"] == order]
        assert receipts[0]["state"] == "started"
        if receipts[-1]["state"] == "failed":
            raise AssertionError(receipts[-1]["detail"])
        assert receipts[-1]["state"] == "done", receipts
        told: dict[str, Any] = orjson.loads(receipts[-1]["detail"])
        return told

    def step_archiver(self) -> None:
        self.archiver._next_s.clear()
        self.archiver.step()
        while self.archiver._imports.busy:
            self.archiver.step()
        self.archiver.flush()
        self.archiver._publish()

    def step_worker(self) -> None:
        while self.worker.step(0):
            pass
        while self.worker.take_imports() or self.worker.take_imports():
            pass

    def history(self) -> list[NaiveEvent]:
        """All events, repeats left out, by the archive's order of imports."""
        kept = without_repeats(self.streamed, PARTS.dedup_horizon_us)
        seen: list[NaiveEvent] = []
        for number, (_, rows) in enumerate(self.imported):
            for i, row in enumerate(rows):
                event = naive_event(row, (IMPORTS, number, i), micros(row["ts"]))
                near = (
                    other.event_id == event.event_id and abs(other.time_us - event.time_us) <= PARTS.dedup_horizon_us
                    for other in seen
                )
                kept += [] if event.event_id is not None and any(near) else [event]
                seen.append(event)
        return kept

    def assert_online(self) -> None:
        """Every value of the store is the loop's over all events."""
        history = self.history()
        present = max(event.time_us for event in history) + 1
        for view in self.catalog.views:
            part = {("who",): (0,), ("site",): (1,), ("who", "site"): (0, 1)}[view.entities]
            events = with_key(history, part)
            for key in {event.key for event in events}:
                prefix = entity_prefix(self.catalog.project, view.entities)
                order = sorted(range(len(key)), key=lambda i: view.entities[i])
                (blob,) = OnlineStore(self.store).read(
                    [entity_key(prefix, [key[i] for i in order])], layout_field(view)
                )
                shown = step_values(view, [blob], np.array([present]))
                got = {name: plain_value(column[0].as_py()) for name, column in shown.columns.items()}
                assert_equals_oracle(view, got, events, key, present)

    def assert_dataset(self, rng: random.Random) -> None:
        """Training rows at random moments are the loop's over all events."""
        history = self.history()
        moments = [rng.choice(history).time_us + rng.choice([0, 1, 30 * SECOND_US]) for _ in range(15)]
        labels = pa.table(
            {
                "who": [rng.choice(history).key[0] for _ in moments],
                "site": pa.array([rng.choice(history).key[1] for _ in moments], pa.int64()),
                "event_timestamp": pa.array(moments).cast(pa.timestamp("us", "UTC")),
            }
        )
        found = build_dataset(
            self.catalog, "everything", labels, History(self.offline, self.settings.repo), full_feature_names=True
        ).to_pylist()
        for view in self.catalog.views:
            part = {("who",): (0,), ("site",): (1,), ("who", "site"): (0, 1)}[view.entities]
            events = with_key(history, part)
            for row, t_us in zip(found, moments, strict=True):
                key = tuple((row["who"], row["site"])[i] for i in part)
                got = {f.name: plain_value(row[f"{view.name}__{f.name}"]) for f in view.features}
                if None not in key:
                    assert_equals_oracle(view, got, events, key, t_us)

    def lose_store(self) -> None:
        """The store forgets the project, but for its catalog."""
        kept = self.store.get(f"headrace.catalog:{self.catalog.project}")
        self.store.delete(*self.store.keys(f"headrace*:{self.catalog.project}*"))
        self.store.set(f"headrace.catalog:{self.catalog.project}", kept)


@pytest.fixture
def world(settings: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> World:
    return World(settings, tmp_path, f"imports{abs(hash(request.node.name))}")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as a file of the kind that its suffix says, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".ndjson":
        path.write_bytes(ndjson(rows))
        return path
    times = ("ts", "moment")
    plain = [{n: (micros(v) if n in times and v is not None else v) for n, v in row.items()} for row in rows]
    columns = {c.name: pa.array([row[c.name] for row in plain], _plain_type(c.name)) for c in PARTS.columns}
    table = pa.table(columns).cast(arrow_schema(PARTS.columns))
    if path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    elif path.suffix == ".parquet":
        pa.parquet.write_table(table, path, row_group_size=7)
    else:
        write_deltalake(str(path), table, mode="append")
    return path


def _plain_type(name: str) -> Any:
    kind = arrow_schema(PARTS.columns).field(name).type
    return pa.int64() if pa.types.is_timestamp(kind) else kind


def a_file(rng: random.Random, n: int, start_us: int) -> list[dict[str, Any]]:
    rows = random_rows(rng, n, start_us, ids=60)
    rng.shuffle(rows)
    return rows


@pytest.mark.parametrize("seed", range(2))
def test_online_and_datasets_equal_the_oracle_however_events_are_split(
    world: World, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_rows, "CHUNK_ROWS", 10)
    monkeypatch.setattr(import_rows, "BLOCK_BYTES", 2_000)
    rng = random.Random(seed)
    kinds = [".ndjson", ".parquet", ".csv", ""]
    for n in range(6):
        rows = a_file(rng, rng.randrange(5, 25), START_US + rng.randrange(-600, 600) * SECOND_US)
        if n == 0 or rng.random() < 0.5:
            path = write(tmp_path / f"past{n}{kinds[n % 4]}", rows)
            told = world.ingest(path)
            assert (told["imported"], told["dead"], told["files"]) == (len(rows), 0, 1)
            world.imported.append((path, rows))
        else:
            world.push(rows)
            world.step_archiver()
        if rng.random() < 0.5:
            world.step_worker()
        if rng.random() < 0.3:
            world.worker = world.new_worker()
    world.step_worker()
    assert any(world.streamed) and len(world.imported) > 1
    assert len(world.history()) < len(world.streamed) + sum(len(rows) for _, rows in world.imported)
    world.assert_online()
    world.assert_dataset(rng)
    world.lose_store()
    world.worker = world.new_worker()
    world.assert_online()


def test_a_folder_that_has_grown_adds_only_what_is_new(world: World, tmp_path: Path) -> None:
    rng = random.Random(1)
    folder = tmp_path / "past"
    first = write(folder / "a" / "b.csv", a_file(rng, 20, START_US))
    write(folder / "c.parquet", a_file(rng, 30, START_US))
    (folder / "_SUCCESS").touch()
    assert world.ingest(folder)["imported"] == 50
    write(folder / "a" / "a.ndjson", a_file(rng, 10, START_US))
    (folder / "copy.csv").write_bytes(first.read_bytes())
    told = world.ingest(folder)
    assert (told["files"], told["known"], told["imported"]) == (4, 3, 10)
    assert world.ingest(folder)["imported"] == 0
    assert len(archived(world)) == 60
    assert ImportLog(world.offline, "parts").end().total == 60


class Killed(Exception):
    pass


@pytest.mark.parametrize("where", ["append_dead_letters", "append_events", "raise_applied"])
def test_an_import_killed_anywhere_brings_every_row_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(import_rows, "CHUNK_ROWS", 10)
    monkeypatch.setattr(import_rows, "BLOCK_BYTES", 500)
    rows = a_file(random.Random(2), 60, START_US)
    lines = ndjson(rows).split(b"\n")
    for at in (3, 17, 40):
        lines.insert(at, b'{"id": 7, "ts": "2020-01-01T00:00:00Z"}')
    path = tmp_path / "past.ndjson"
    path.write_bytes(b"\n".join(lines))
    world.order(path)
    for after in range(4):
        target: Any = Markers if where == "raise_applied" else OfflineStore
        real, calls = getattr(target, where), iter(range(100))

        def die_late(
            self: Any, *args: Any, real: Any = real, calls: Any = calls, after: int = after, **named: Any
        ) -> Any:
            done = real(self, *args, **named) if where != "append_events" else None
            if next(calls) == after // 2:
                raise KeyboardInterrupt  # nothing catches it, as nothing catches a kill
            return done if where != "append_events" else real(self, *args, **named)

        with monkeypatch.context() as patch:
            patch.setattr(target, where, die_late)
            with contextlib.suppress(KeyboardInterrupt):
                world.step_archiver()
        world.archiver = Archiver(world.settings, world.store)
    world.step_archiver()
    world.imported.append((path, rows))
    assert sorted(row["id"] for row in archived(world)) == sorted(row["id"] for row in rows)
    letters = world.offline.read_dead_letters("parts")
    assert sorted(letters["index"].to_pylist()) == [3, 17, 40] and set(letters["partition"].to_pylist()) == {IMPORTS}
    assert waiting_orders(world.store, world.catalog.project) == []
    world.step_worker()
    world.assert_online()


def test_dead_letters_of_another_file_are_kept_after_a_kill_between_the_tables(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / name for name in ("first.ndjson", "second.ndjson")]
    for path in files:
        path.write_bytes(b'{"ts": "2020-01-01T00:00:00Z"}\n{broken ' + path.name.encode())

    def die(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(OfflineStore, "append_events", die)
        with pytest.raises(AssertionError, match=r"No space left on device\. Nothing was imported"):
            world.ingest(files[0])
    assert world.ingest(files[1])["imported"] == world.ingest(files[0])["imported"] == 1
    payloads = world.offline.read_dead_letters("parts")["payload"].to_pylist()
    assert sorted(payloads) == [b"{broken first.ndjson", b"{broken second.ndjson"]


def archived(world: World) -> list[dict[str, Any]]:
    return world.offline.read_events(PARTS, ["id", "event_time", "arrival_time"], repeats=True).to_pylist()


def test_positions_reports_and_explanations_know_the_imports(world: World, tmp_path: Path) -> None:
    world.push([{**row, "who": "a", "site": 7} for row in random_rows(random.Random(4), 5, START_US)])
    world.step_archiver()
    world.step_worker()
    rows = [{**row, "who": "a", "site": 7} for row in random_rows(random.Random(3), 12, START_US - 20 * SECOND_US)]
    path = write(tmp_path / "past.ndjson", rows)
    path.write_bytes(path.read_bytes() + b"\n{broken")
    world.ingest(path)
    query = ReportQuery(world.catalog)

    def report() -> dict[str, Any]:
        marks = world.store.hmget(markers_key(world.catalog.project), query.fields)
        row: dict[str, Any] = query.report(marks, world.stream.heads(query.places))["parts"]
        return row

    history = History(world.offline, world.settings.repo)
    explained = explain(world.store, history, world.catalog, "by_who", ["a"], None, 0)
    assert explained.behind == ["worker 13 events behind in parts"]
    before = report()
    assert before["lag"] == 13 and before["head"]["-1"] == "1-12" and "-1" not in before["applied"]
    assert world.offline.positions(PARTS)[IMPORTS] == 1
    world.step_worker()
    after = report()
    assert after["lag"] == 0 and after["head"] == after["applied"] == after["archived"]
    assert after["events"] == {"pushed": 18, "applied": 18, "archived": 18}
    found = explain(world.store, history, world.catalog, "by_who", ["a"], None, 0)
    assert found.agree and found.behind == [] and set(found.events["row.from"].to_pylist()) == {"event", "import"}


def test_a_dataset_of_a_position_before_the_import_stays_what_it_was(world: World, tmp_path: Path) -> None:
    world.ingest(write(tmp_path / "a.csv", a_file(random.Random(5), 20, START_US)))
    positions = read_positions(world.catalog, "everything", world.offline)
    assert positions["parts"] == {IMPORTS: 1}
    labels = pa.table({"who": ["a"], "site": [7], "event_timestamp": [moment(START_US + DAY_US)]})
    history = History(world.offline, world.settings.repo, positions)
    before = build_dataset(world.catalog, "everything", labels, history, full_feature_names=True)
    world.ingest(write(tmp_path / "b.csv", a_file(random.Random(6), 20, START_US)))
    assert build_dataset(world.catalog, "everything", labels, history, full_feature_names=True) == before
    free = History(world.offline, world.settings.repo)
    assert build_dataset(world.catalog, "everything", labels, free, full_feature_names=True) != before


def test_an_import_moves_where_views_are_complete_from(world: World, tmp_path: Path) -> None:
    world.push(random_rows(random.Random(1), 5, START_US))
    world.step_worker()
    view = world.catalog.views[0]
    ready = world.markers.ready(view)
    assert ready is not None and ready.complete_from_us == world.streamed[0].time_us
    rows = a_file(random.Random(2), 20, START_US - DAY_US)
    world.ingest(write(tmp_path / "past.parquet", rows))
    world.step_worker()
    ready = world.markers.ready(view)
    assert ready is not None and ready.complete_from_us == min(micros(row["ts"]) for row in rows)


def test_no_import_is_late_and_its_repeats_lie_within_the_horizon_on_either_side(
    settings: Settings, tmp_path: Path
) -> None:
    late = Expectation("ts", "max_lateness", (SECOND_US,), "max_lateness(1s)")
    source = dataclasses.replace(PARTS, expectations=(late,))
    definitions = catalog(project="late")
    views = (dataclasses.replace(definitions.views[0], expectations=(late,)),)
    world = World(
        settings, tmp_path, "late", dataclasses.replace(definitions, sources=(source,), views=views, services=())
    )
    row = random_rows(random.Random(1), 1, START_US)[0] | {"who": "a", "site": 7}
    minute = 60 * SECOND_US
    times = [("x", 0), ("x", -9 * minute), ("x", 12 * minute), ("x", 11 * minute), ("y", -DAY_US), (None, 0), (None, 0)]
    rows = [{**row, "id": i, "ts": moment(START_US + after_us)} for i, after_us in times]
    told = world.ingest(write(tmp_path / "past.ndjson", rows))
    assert (told["imported"], told["repeated"], told["dead"]) == (7, 2, 0)
    world.step_worker()
    assert world.offline.read_dead_letters("late").num_rows == 0
    (blob,) = OnlineStore(world.store).read([b"headrace:late:who:a"], layout_field(views[0]))
    shown = step_values(views[0], [blob], np.array([START_US + DAY_US]))
    lifetime = next(agg.feature for agg in views[0].aggregations if agg.window_us is None and agg.column == "*")
    assert shown.columns[lifetime].to_pylist() == [5]
    counts = {k: int(v) for k, v in world.store.hgetall("headrace.counters:late").items() if b"late" in k}
    assert set(counts.values()) <= {0}


def test_rows_that_do_not_fit_are_dead_letters_with_their_reason_and_raw_row(world: World, tmp_path: Path) -> None:
    row = dict.fromkeys(random_rows(random.Random(1), 1, START_US)[0])
    good = {**row, "id": "1", "who": "a", "site": 7, "ts": moment(START_US)}
    lines = [good, {**good, "ts": None}, {**good, "whole": "x"}, {**good, "ts": "+12024-01-01T00:00:00Z"}]
    path = tmp_path / "past.ndjson"
    path.write_bytes(ndjson(lines) + b"\n[1]\n\n{broken")
    told = world.ingest(path)
    assert (told["imported"], told["dead"], told["rows"]) == (1, 5, 6)
    letters = world.offline.read_dead_letters("parts").to_pylist()
    assert [row["index"] for row in letters] == [1, 2, 3, 4, 5]
    assert "no event time" in letters[0]["reason"] and "whole must be int64" in letters[1]["reason"]
    assert orjson.loads(letters[1]["payload"]) == lines[2] and letters[4]["payload"] == b"{broken"
    assert ImportLog(world.offline, "parts").end() == Applied(1, 5, 6, START_US)


def test_an_import_that_does_not_fit_is_refused_before_anything_is_written(world: World, tmp_path: Path) -> None:
    good = write(tmp_path / "past" / "a.csv", a_file(random.Random(1), 5, START_US))
    (tmp_path / "past" / "b.csv").write_text(good.read_text().replace('"ts"', '"when"'))
    with pytest.raises(AssertionError, match=r"no 'ts' among .*--map ts=COLUMN.*Nothing was imported"):
        world.ingest(tmp_path / "past")
    assert archived(world) == [] and world.offline.positions(PARTS) == {}
    assert world.ingest(tmp_path / "past" / "b.csv", ts="when")["imported"] == 5


def test_without_an_event_id_a_file_that_has_changed_is_refused(settings: Settings, tmp_path: Path) -> None:
    definitions = catalog(project="noid")
    definitions = dataclasses.replace(definitions, sources=(dataclasses.replace(PARTS, event_id=None),))
    world = World(settings, tmp_path, "noid", definitions)
    rows = a_file(random.Random(1), 10, START_US)
    path = write(tmp_path / "past.csv", rows[:5])
    assert world.ingest(path)["imported"] == 5
    write(path, rows)
    with pytest.raises(AssertionError, match="was imported with other content before"):
        world.ingest(path)
    assert len(archived(world)) == 5


def test_the_archiver_archives_the_stream_between_two_slices(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_rows, "CHUNK_ROWS", 5)
    monkeypatch.setattr(import_rows, "BLOCK_BYTES", 500)
    monkeypatch.setattr(archiver_module, "ORDERS_EVERY_S", 0.0)
    world.order(write(tmp_path / "past.ndjson", a_file(random.Random(1), 40, START_US)))
    world.archiver._next_s.clear()
    for n in range(4):
        world.archiver.step()
        world.push(random_rows(random.Random(n), 2, START_US))
    assert world.archiver._imports.busy and 0 < len(archived(world)) < 40
    world.archiver.step()
    world.archiver.flush()
    assert world.archiver._imports.busy and world.offline.positions(PARTS).keys() == {IMPORTS, 0}
