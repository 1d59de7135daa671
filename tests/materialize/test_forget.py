"""What was forgotten is nowhere, does not come back, and what comes after it is a new beginning."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from click.testing import CliRunner
from naive import NaiveEvent, without_repeats
from scenario import (
    BY_BOTH,
    BY_WHO,
    NEWEST,
    PARTS,
    SECOND_US,
    WORDS,
    assert_equals_oracle,
    catalog,
    moment,
    naive_event,
    ndjson,
    plain_value,
    random_rows,
    with_key,
)
from strategies import DTYPES

from headrace.catalog.definitions import (
    Aggregation,
    BatchSource,
    Catalog,
    Column,
    DType,
    FeatureView,
    Transform,
)
from headrace.cli.forget import forget_command
from headrace.errors import RequestError, UnavailableError, UnknownNameError
from headrace.read.dead_letters import list_letters, replay_letters
from headrace.read.forgetting import forget_keys, parse_keys
from headrace.read.history import History, view_values
from headrace.read.online.values import step_values
from headrace.settings import Settings
from headrace.stores.catalogs import load_catalog, save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.import_files import find_files
from headrace.stores.keys import entity_key, entity_prefix, layout_field
from headrace.stores.offline import OfflineStore
from headrace.stores.online import OnlineStore
from headrace.stores.orders import give_order, waiting_orders
from headrace.stores.stream import EventStream
from headrace.stores.tombstones import (
    Tombstone,
    Tombstones,
    add_tombstones,
    load_tombstones,
    project_salt,
    tombstone_version,
)
from materialize import forgotten_again
from materialize.archiver import Archiver, run_archiver
from materialize.batch import materialize_view
from materialize.lease import Lease
from materialize.rebuild import rebuild_views
from materialize.run_worker import run_worker
from materialize.worker import Worker

START_US = 1_000_000 * SECOND_US
SITES = [-1, 0, 7]


class World:
    """A store, a worker and an archiver that the test steps, and what the oracle knows."""

    def __init__(self, settings: Settings, store: redis.Redis, definitions: Catalog) -> None:
        self.settings, self.store, self.catalog = settings, store, definitions
        save_catalog(store, settings, definitions)
        self.stream, self.offline = EventStream(store, "test"), OfflineStore(settings.data_dir)
        self.history: list[NaiveEvent] = []
        self.arrival = 0
        self.restart()

    def restart(self) -> None:
        self.worker = Worker(self.store, self.offline, self.catalog)
        self.worker.start()
        self.archiver = Archiver(self.settings, self.store)

    def push(self, rows: list[dict[str, Any]]) -> int:
        rows = [dict.fromkeys([*DTYPES, "site", "who"]) | row for row in rows]
        offset = self.stream.append("parts", "ndjson", ndjson(rows), len(rows)).offset
        for i, row in enumerate(rows):
            event = naive_event(row, (0, offset, i), 0)
            self.arrival = max(self.arrival, event.time_us)
            self.history.append(dataclasses.replace(event, arrival_us=self.arrival))
        return offset

    def work(self) -> None:
        while self.worker.step(block_ms=1):
            pass

    def archive(self) -> None:
        while self.archiver.step():
            pass
        self.archiver.flush()
        self.archiver._publish()
        self.archiver._take_letters()

    def ingest(self, name: str, rows: list[dict[str, Any]]) -> None:
        path = self.settings.data_dir / f"{name}.ndjson"
        path.write_bytes(ndjson(rows))
        files = [file.as_plain() for file in find_files(str(path), [column.name for column in PARTS.columns])]
        give_order(self.store, "test", "import", "parts", {"files": files, "renamed": {}, "absent": []})
        self.archiver._next_s.clear()
        self.archiver.step()
        while self.archiver._imports.busy:
            self.archiver.step()
        self.archiver._imports.publish()
        while self.worker.take_imports() or self.worker.take_imports():
            pass

    def forget(self, *words: str) -> dict[str, Any]:
        """The whole protocol, worker and archiver stepped as they would step themselves."""
        entities, keys = parse_keys(self.catalog, words)
        done: dict[str, Any] = {}

        def ask() -> None:
            done.update(forget_keys(self.store, self.catalog, entities, keys, 600, 20))

        asker = threading.Thread(target=ask)
        asker.start()
        while asker.is_alive():
            self.worker.step(block_ms=1)
            self.worker.obey()
            self.archiver._obey_orders()
            asker.join(0.01)
        return done

    def online(self, view: Any, key: tuple[Any, ...]) -> bytes | None:
        names = sorted(zip(view.entities, key, strict=True))
        redis_key = entity_key(entity_prefix("test", view.entities), [value for _, value in names])
        return OnlineStore(self.store).read([redis_key], layout_field(view))[0]

    def shown(self, view: Any, key: tuple[Any, ...], t_us: int) -> dict[str, Any]:
        columns = step_values(view, [self.online(view, key)], np.array([t_us])).columns
        return {name: plain_value(column[0].as_py()) for name, column in columns.items()}

    def trained(self, view: Any, key: tuple[Any, ...], t_us: int) -> dict[str, Any]:
        types = {"who": pa.string(), "site": pa.int64()}
        names = sorted(zip(view.entities, key, strict=True))
        keys = [pa.array([value], types[name]) for name, value in names]
        features = [feature.name for feature in view.features]
        history = History(OfflineStore(self.settings.data_dir), self.settings.repo)
        found = view_values(self.catalog, view, features, keys, np.array([t_us]), history)
        return {name: plain_value(found[name][0].as_py()) for name in features}

    def assert_online_equals_archive_equals_oracle(self, gone: Any) -> None:
        """`gone` says of a naive event whether it was forgotten; views of the forgotten entity alone."""
        t_us = max(event.time_us for event in self.history) + 1
        kept = [e for e in without_repeats(self.history, PARTS.dedup_horizon_us) if not gone(e)]
        for view, parts, keys in (
            (BY_WHO, (0,), [(word,) for word in WORDS]),
            (BY_BOTH, (0, 1), [(word, site) for word in WORDS for site in SITES]),
        ):
            events = with_key(kept, parts)
            for key in keys:
                assert_equals_oracle(view, self.shown(view, key, t_us), events, key, t_us)
                assert_equals_oracle(view, self.trained(view, key, t_us), events, key, t_us)

    def everything(self) -> bytes:
        """Every byte of the tables' files that are not logs."""
        files = (path for path in self.offline.root.rglob("*.parquet") if "_delta_log" not in path.parts)
        return b"".join(path.read_bytes() for path in files)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    made = Settings(repo=tmp_path / "repo", data_dir=tmp_path / "data")
    yield made
    detach(made.data_dir)


@pytest.fixture
def world(settings: Settings) -> Iterator[World]:
    with open_store(settings) as store:
        yield World(settings, store, catalog())


def rows_at(rng: random.Random, step: int, n: int = 30, ids: int = 10**9) -> list[dict[str, Any]]:
    return random_rows(rng, n, START_US + step * 60 * SECOND_US, ids=ids)


@pytest.mark.parametrize("seed", range(2))
def test_a_forgotten_key_is_gone_everywhere_and_later_events_begin_anew(world: World, seed: int) -> None:
    rng = random.Random(seed)
    for step in range(4):
        world.push(rows_at(rng, step, ids=60))
        world.work()
    world.archive()
    last = world.push(rows_at(rng, 4, ids=60))
    receipt = world.forget("who", "a", "50%,")
    assert receipt["archive"]["state"] == "done" and receipt["positions"]["parts|0"] == str(last)
    forgotten = {"a", "50%,"}

    def gone(event: NaiveEvent) -> bool:
        return event.key[0] in forgotten and event.position[1] <= last

    rows = set(world.offline.read_events(PARTS, ["who"])["who"].to_pylist())
    assert not rows & forgotten and rows & set(WORDS)
    for word in forgotten:
        assert world.online(BY_WHO, (word,)) is None
        assert all(world.online(BY_BOTH, (word, site)) is None for site in SITES)
    world.archive()
    world.assert_online_equals_archive_equals_oracle(gone)
    world.push(rows_at(rng, 5, ids=60))
    if seed:
        world.restart()
    world.push(rows_at(rng, 6, ids=60))
    world.work()
    world.archive()
    world.assert_online_equals_archive_equals_oracle(gone)


def test_nothing_of_it_comes_back_when_the_views_are_built_anew(world: World) -> None:
    rng = random.Random(8)
    world.push(rows_at(rng, 0))
    world.archive()
    last = world.push(rows_at(rng, 1))
    world.work()
    world.forget("who", "a")
    world.push(rows_at(rng, 2))

    def gone(event: NaiveEvent) -> bool:
        return event.key[0] == "a" and event.position[1] <= last

    for key in world.store.scan_iter("headrace.markers:*"):
        world.store.delete(key)
    for key in world.store.scan_iter("headrace:test:*"):
        world.store.delete(key)
    world.restart()
    world.work()
    world.archive()
    world.assert_online_equals_archive_equals_oracle(gone)


def test_entries_that_were_still_in_the_stream_are_never_archived(world: World) -> None:
    world.push([{"id": str(i), "who": who, "ts": moment(START_US + i)} for i, who in enumerate(["a", "b:c", "a"])])
    world.work()
    world.forget("who", "a")
    world.restart()
    world.archive()
    assert world.offline.read_events(PARTS, ["who"])["who"].to_pylist() == ["b:c"]


def test_imports_before_and_after_bring_nothing_of_it_back(world: World) -> None:
    def row(name: str, who: str, at_us: int) -> dict[str, Any]:
        return {"id": name, "who": who, "site": 7, "ts": moment(at_us)}

    world.ingest("before", [row("1", "a", START_US), row("2", "b:c", START_US)])
    world.push([row("3", "a", START_US + 5)])
    world.work()
    receipt = world.forget("who", "a")
    assert receipt["archive"]["events"]["parts"] == 1 and receipt["positions"]["parts|-1"] == "1"
    world.ingest("after", [row("4", "a", START_US + 5), row("5", "b:c", START_US + 5), row("6", "a", START_US + 6)])
    world.archive()
    found = world.offline.read_events(PARTS, ["id"])["id"].to_pylist()
    assert sorted(found) == ["2", "5", "6"]
    for key in (("a",), ("b:c",)):
        assert world.trained(BY_WHO, key, START_US + 7) == world.shown(BY_WHO, key, START_US + 7)


def test_the_watermark_stays_though_its_event_was_forgotten(world: World) -> None:
    world.push(
        [{"id": "1", "who": "a", "ts": moment(START_US + 50)}, {"id": "2", "who": "b:c", "ts": moment(START_US)}]
    )
    world.work()
    world.archive()
    world.forget("who", "a")
    world.restart()
    world.push([{"id": "3", "who": "b:c", "ts": moment(START_US + 1)}])
    world.archive()
    arrivals = world.offline.read_events(PARTS, ["arrival_time"])["arrival_time"].cast(pa.int64()).to_pylist()
    assert arrivals == [START_US + 50, START_US + 50]


def test_tombstones_outlive_the_store(world: World) -> None:
    world.push([{"id": "1", "who": "a", "ts": moment(START_US)}])
    world.work()
    world.forget("who", "a")
    before = load_tombstones(world.store, world.offline.root, "test")
    world.store.delete("headrace.forgotten:test")
    after = load_tombstones(world.store, world.offline.root, "test")
    assert after.items == before.items and after.salt == before.salt
    world.restart()
    world.archive()
    assert world.offline.read_events(PARTS, ["who"]).num_rows == 0


@pytest.mark.parametrize("restarted", [False, True])
def test_a_retry_of_a_forgotten_event_is_a_repeat(world: World, restarted: bool) -> None:
    row = {"id": "1", "who": "a", "ts": moment(START_US)}
    world.push([row])
    world.work()
    world.archive()
    world.forget("who", "a")
    if restarted:
        world.restart()
    world.push([row])
    world.work()
    world.archive()
    assert world.online(BY_WHO, ("a",)) is None
    assert world.offline.read_events(PARTS, ["who"]).num_rows == 0


def test_a_composite_key_is_forgotten_alone(world: World) -> None:
    rows = [(who, site) for who in ("a", "b:c") for site in (0, 7)]
    world.push([{"id": f"{w}{s}", "who": w, "site": s, "ts": moment(START_US + i)} for i, (w, s) in enumerate(rows)])
    world.work()
    world.archive()
    receipt = world.forget("site=7", "who=a")
    assert receipt["entities"] == ["site", "who"] and receipt["archive"]["events"]["parts"] == 1
    assert world.online(BY_BOTH, ("a", 7)) is None
    assert world.online(BY_BOTH, ("a", 0)) is not None and world.online(BY_WHO, ("a",)) is not None
    assert receipt["still_in_until_rebuilt"] == ["by_who", "newest"]


def test_rows_written_directly_are_forgotten_too(world: World) -> None:
    row = {"site": 7, "short": 3, "event_timestamp": moment(START_US)}
    world.stream.append("writes/newest", "ndjson", orjson.dumps(row), 1)
    world.work()
    world.archive()
    assert world.online(NEWEST, (7,)) is not None
    receipt = world.forget("site", "7")
    assert world.online(NEWEST, (7,)) is None and receipt["archive"]["events"]["writes/newest"] == 1
    assert receipt["online"]["values_deleted"]["newest"] == 1


def test_dead_letters_about_the_key_are_gone_and_not_replayed(world: World) -> None:
    lines = [
        {"id": "1", "who": "a", "site": "x", "ts": moment(START_US)},
        {"id": "2", "who": "ab", "site": "x", "ts": moment(START_US)},
    ]
    payload = b"\n".join([*(orjson.dumps(line) for line in lines), b'{"who": "a", broken', b"about nobody"])
    world.stream.append("parts", "ndjson", payload, 4)
    world.work()
    world.archive()
    assert len(list_letters(world.store, world.offline, world.catalog)) == 4
    receipt = world.forget("who", "a")
    assert receipt["archive"]["dead_letters"] == 2
    left = [row["payload"] for row in list_letters(world.store, world.offline, world.catalog)]
    assert sorted(left) == sorted([orjson.dumps(lines[1]), b"about nobody"])
    world.restart()
    world.archive()
    assert len(list_letters(world.store, world.offline, world.catalog)) == 2
    assert replay_letters(world.store, world.offline, world.catalog, "parts").replayed == 0


def test_no_plain_value_of_it_stays_on_the_disk_or_in_the_store(world: World) -> None:
    rng = random.Random(2)
    word = "Zacharias-4711"
    for step in range(3):
        world.push([{**row, "who": word if i % 3 else "other"} for i, row in enumerate(rows_at(rng, step))])
        world.work()
        world.archive()
    world.archiver.offline.compact("parts")
    receipt = world.forget("who", word)
    assert receipt["archive"]["files"] > 0
    assert word.encode() not in world.everything()
    assert word not in orjson.dumps(receipt).decode()
    record = (world.offline.root / "forgotten.json").read_bytes()
    assert word.encode() not in record and receipt["tombstones"][0].encode() in record
    held = [key for key in world.store.scan_iter("*") if word.encode() in key]
    assert not held and not waiting_orders(world.store, "test", "worker") and not waiting_orders(world.store, "test")


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_worker_that_slept_through_it_takes_out_what_it_brought_back(world: World, goes_on: bool) -> None:
    def push(number: int) -> None:
        world.push([{"id": str(number), "who": "a", "site": 7, "ts": moment(START_US + number)}])

    sleeper = Worker(world.store, world.offline, world.catalog)
    sleeper.start()
    push(1)
    write, woken = OnlineStore.update, []

    def slow(self: OnlineStore, *updates: Any) -> None:
        asleep = self is sleeper._online and not woken
        if asleep:
            woken.append(1)
            world.work()
            world.forget("who", "a")
        write(self, *updates)
        if asleep:
            assert world.online(BY_WHO, ("a",)) is not None, "it brought nothing back: the test tests nothing"
        if asleep and goes_on:
            push(2)
            world.work()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnlineStore, "update", slow)
        sleeper.step(block_ms=1)
    assert woken and (world.online(BY_WHO, ("a",)) is not None) == goes_on
    push(3)
    world.work()
    world.archive()
    world.assert_online_equals_archive_equals_oracle(lambda event: event.event_id == "1")


def site_row(number: int, at_s: int) -> dict[str, Any]:
    return {"id": str(number), "site": 7, "short": number, "ts": moment(START_US + at_s * SECOND_US)}


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_forgotten_row_beats_none_that_came_after_it(world: World, comes_back: bool) -> None:
    world.push([site_row(1, at_s=50)])
    world.work()
    held = world.online(NEWEST, (7,))
    world.forget("site", "7")
    (key,) = [entity_key(entity_prefix("test", NEWEST.entities), [7])]
    if comes_back:  # by a writer that slept, while this one knows of the forgetting
        world.push([{**site_row(0, at_s=0), "site": 0}])
        world.work()
        world.store.hset(key, layout_field(NEWEST), held)  # type: ignore[arg-type]
        world.worker._online.forget_known()
    world.push([site_row(2, at_s=20)])
    world.work()
    world.archive()
    t_us = START_US + 51 * SECOND_US
    assert world.shown(NEWEST, (7,), t_us)["short"] == 2
    assert world.trained(NEWEST, (7,), t_us)["short"] == 2


def test_what_a_writer_brought_back_that_died_then_is_gone_when_a_worker_begins(world: World) -> None:
    world.push([{"id": "1", "who": "a", "site": 7, "ts": moment(START_US)}])
    world.push([{"id": "2", "who": "b:c", "site": 7, "ts": moment(START_US)}])
    world.work()
    values = {(view, key): world.online(view, key) for view, key in [(BY_WHO, ("a",)), (BY_BOTH, ("a", 7))]}
    world.forget("who", "a")
    world.push([{"id": "3", "who": "a", "site": 0, "ts": moment(START_US)}])
    world.work()
    for (view, key), value in values.items():
        names = [text for _, text in sorted(zip(view.entities, key, strict=True))]
        where = entity_key(entity_prefix("test", view.entities), names)
        assert value is not None and world.store.hset(where, layout_field(view), value) in (0, 1)  # type: ignore[arg-type]
    world.restart()
    world.archive()
    assert world.online(BY_BOTH, ("a", 7)) is None and world.online(BY_WHO, ("b:c",)) is not None
    world.push([{"id": "4", "who": "a", "site": 7, "ts": moment(START_US)}])
    world.work()
    world.archive()
    assert world.shown(BY_BOTH, ("a", 7), START_US + 1) == world.trained(BY_BOTH, ("a", 7), START_US + 1)


def test_a_worker_that_begins_as_a_standby_looks_after_what_it_wrote_before_it_died(world: World) -> None:
    world.push([{"id": "1", "who": "a", "site": 7, "ts": moment(START_US)}])
    world.work()
    held = world.online(BY_BOTH, ("a", 7))
    world.forget("who", "a")
    where = entity_key(entity_prefix("test", BY_BOTH.entities), [7, "a"])
    assert held is not None and world.online(BY_BOTH, ("a", 7)) is None
    world.store.hset(where, layout_field(BY_BOTH), held)  # type: ignore[arg-type]
    assert world.online(BY_BOTH, ("a", 7)) is not None
    assert Lease(world.store, "test", "worker", 60).take()
    stop = threading.Event()
    stop.set()
    run_worker(world.settings, stop)  # another is at work: this one only stands by, and is stopped
    assert world.online(BY_BOTH, ("a", 7)) is None


def test_a_store_that_lost_its_tombstones_never_comes_to_a_version_that_somebody_knew(world: World) -> None:
    known = []
    for digest in ("first", "second"):
        item = Tombstone(digest, ("who",), 5, {"parts|0": (5, None)})
        add_tombstones(world.store, "test", Tombstones(b"salt"), [item])
        known.append(tombstone_version(world.store, "test"))
        world.store.flushdb()
    assert 0 < known[0] < known[1]


def test_who_looks_again_brings_back_nothing_that_is_forgotten_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def push(number: int) -> None:
        world.push([{"id": str(number), "who": "a", "site": 7, "ts": moment(START_US + number)}])
        world.work()

    def chunks(*given: Any) -> Iterator[list[bytes]]:
        if len(world.history) == 1:
            push(2)
            world.forget("who", "a")
            push(3)
        yield from then(*given)

    push(1)
    world.forget("who", "a")
    then = forgotten_again._chunks
    monkeypatch.setattr(forgotten_again, "_chunks", chunks)
    forgotten_again.take_out_again(world.stream, world.offline, world.catalog)
    world.archive()
    world.assert_online_equals_archive_equals_oracle(lambda event: event.event_id in ("1", "2"))


def test_tombstones_put_at_once_are_merged(world: World) -> None:
    salt = project_salt(world.store, world.offline.root, "test")
    early, late = (Tombstone("d", ("who",), at, {"parts|0": (at, None)}) for at in (5, 9))
    for item in (late, early):  # both know of nobody's
        add_tombstones(world.store, "test", Tombstones(salt), [item])
    assert load_tombstones(world.store, world.offline.root, "test").items["d"].offset("parts", 0) == 9


def test_an_order_waits_until_what_was_there_is_applied(world: World) -> None:
    world.push([{"id": "1", "who": "a", "ts": moment(START_US)}])
    entities, keys = parse_keys(world.catalog, ["who", "a"])
    with pytest.raises(UnavailableError, match="needs the worker"):
        forget_keys(world.store, world.catalog, entities, keys, 600, 0.05)
    world.worker.obey()
    assert len(waiting_orders(world.store, "test", "worker")) == 1
    world.work()
    world.worker.obey()
    assert not waiting_orders(world.store, "test", "worker") and world.online(BY_WHO, ("a",)) is None


def test_rows_of_a_batch_file_stay_away_until_newer_ones_come(settings: Settings) -> None:
    columns = (Column("site", DType.INT64), Column("short", DType.INT32), Column("seen", DType.TIMESTAMP))
    batch = BatchSource("sites", str(settings.repo.parent / "sites.parquet"), "seen", columns)
    view = FeatureView("profile", "batch", ("site",), columns[1:2], "f", batch=batch)
    definitions = dataclasses.replace(catalog("wall"), views=(view,))

    def write(*days: int) -> None:
        times = pa.array([day * 86_400 * SECOND_US for day in days]).cast(pa.timestamp("us", "UTC"))
        rows = {"site": [7] * len(days), "short": pa.array(days, pa.int32()), "seen": times}
        pq.write_table(pa.table(rows), batch.path)

    far = 200_000  # days since 1970
    with open_store(settings) as store:
        world = World(settings, store, definitions)
        write(1, 2)
        materialize_view(settings, "profile", progress=False)
        assert world.shown(view, (7,), 10**15) == {"short": 2} == world.trained(view, (7,), 10**15)
        world.forget("site", "7")
        assert world.online(view, (7,)) is None
        materialize_view(settings, "profile", progress=False)
        assert world.online(view, (7,)) is None
        assert world.trained(view, (7,), 10**15) == {"short": None}
        write(1, far)
        materialize_view(settings, "profile", progress=False)
        later_us = far * 86_400 * SECOND_US + 1
        assert world.shown(view, (7,), later_us) == {"short": far} == world.trained(view, (7,), later_us)


LOWER = """
def lower(df):
    return df.assign(who=df["raw"].str.lower())
"""


def test_events_that_a_transform_gives_the_key_are_forgotten(settings: Settings) -> None:
    source = dataclasses.replace(PARTS, columns=(*PARTS.columns, Column("raw", DType.STRING)))
    given = (Column("who", DType.STRING), Column("ts", DType.TIMESTAMP))
    count = Aggregation("n", "count", "*", None, 0, DType.INT64, DType.INT64)
    view = FeatureView(
        "lowered", "windowed", ("who",), (Column("n", DType.INT64),), "f", source="parts", aggregations=(count,)
    )
    view = dataclasses.replace(view, transform=Transform("pandas", LOWER, "lower", given))
    definitions = dataclasses.replace(catalog(), sources=(source,), views=(view,))
    with open_store(settings) as store:
        world = World(settings, store, definitions)
        for i, raw in enumerate(["Ann", "ANN", "Bob"]):
            row = {"id": str(i), "raw": raw, "ts": moment(START_US + i)}
            world.stream.append("parts", "ndjson", orjson.dumps(row), 1)
        world.work()
        world.archive()
        world.stream.append("parts", "ndjson", orjson.dumps({"id": "9", "raw": "ann", "ts": moment(START_US)}), 1)
        receipt = world.forget("who", "ann")
        assert receipt["archive"]["events"]["parts"] == 2
        world.archive()
        assert world.offline.read_events(source, ["raw"])["raw"].to_pylist() == ["Bob"]
        assert world.online(view, ("ann",)) is None and world.shown(view, ("bob",), 2 * START_US) == {"n": 1}


def test_views_of_other_entities_agree_with_the_archive_once_they_are_built_anew(world: World) -> None:
    rng = random.Random(6)
    world.push([{**row, "site": 7} for row in rows_at(rng, 0)])
    world.work()
    world.archive()
    assert world.forget("who", *(word for word in WORDS if word))["still_in_until_rebuilt"] == ["newest"]
    t_us = max(event.time_us for event in world.history) + 1
    left = [e for e in without_repeats(world.history, PARTS.dedup_horizon_us) if e.key[0] in ("", None)]
    assert_equals_oracle(NEWEST, world.trained(NEWEST, (7,), t_us), with_key(left, (1,)), (7,), t_us)
    world.archiver._publish()
    rebuild_views(world.settings, ["newest"])
    rebuilt = load_catalog(world.store, "test").view("newest")
    assert_equals_oracle(rebuilt, world.shown(rebuilt, (7,), t_us), with_key(left, (1,)), (7,), t_us)


def test_words_that_name_no_key_are_refused() -> None:
    definitions = catalog()
    assert parse_keys(definitions, ["who", "a", "b", "a"]) == (["who"], [["a"], ["b"]])
    assert parse_keys(definitions, ["who=x=y", "site=7"]) == (["site", "who"], [[7, "x=y"]])
    with pytest.raises(UnknownNameError, match="'nobody'"):
        parse_keys(definitions, ["nobody", "a"])
    with pytest.raises(RequestError, match="add the keys"):
        parse_keys(definitions, ["who"])
    with pytest.raises(RequestError, match="join key's type"):
        parse_keys(definitions, ["site", "seven"])


def test_the_command_prints_a_receipt(settings: Settings) -> None:
    stop = threading.Event()
    with open_store(settings) as store:
        save_catalog(store, settings, catalog())
        rows = random_rows(random.Random(4), 40, START_US)
        EventStream(store, "test").append("parts", "ndjson", ndjson(rows), len(rows))
        threads = [threading.Thread(target=run, args=(settings, stop)) for run in (run_worker, run_archiver)]
        for thread in threads:
            thread.start()
        try:
            where = ["--data-dir", str(settings.data_dir), "--repo", str(settings.repo)]
            done = CliRunner().invoke(forget_command, ["who", "a", "--yes", *where], catch_exceptions=False)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert done.exit_code == 0, done.output
    assert "Forgotten of who" in done.output and "tombstone" in done.output
    assert "headrace rebuild newest" in done.output
    assert "a" not in OfflineStore(settings.data_dir).read_events(PARTS, ["who"])["who"].to_pylist()
