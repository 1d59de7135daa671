from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
import redis
from naive import without_repeats
from scenario import PARTS, SECOND_US, catalog, moment, naive_event, ndjson, random_rows

from headrace.catalog.definitions import Catalog, Column, DType, FeatureView, Source
from headrace.errors import SettingsError, UnavailableError
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.markers import Applied, Markers
from headrace.stores.offline import INDEX, OFFSET, OfflineStore
from headrace.stores.orders import order_compaction
from headrace.stores.stream import EventStream
from materialize.archiver import Archiver, run_archiver

START_US = 1_000_000 * SECOND_US


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    made = Settings(repo=tmp_path / "repo", data_dir=tmp_path / "data dir")
    yield made
    detach(made.data_dir)


@pytest.fixture
def store(settings: Settings) -> Iterator[redis.Redis]:
    with open_store(settings) as client:
        yield client


def applied(store: redis.Redis, settings: Settings, clock: str = "event") -> Catalog:
    made = catalog(clock)
    save_catalog(store, settings, made)
    return made


def archived(settings: Settings, source: Source = PARTS) -> list[tuple[int, int, str, bool]]:
    """(offset, index, id, is_repeat) of every archived event, in position order."""
    rows = OfflineStore(settings.data_dir).read_events(source, ["id", "is_repeat"], repeats=True)
    return list(zip(*(rows[name].to_pylist() for name in (OFFSET, INDEX, "id", "is_repeat")), strict=True))


def dead_letters(settings: Settings) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = OfflineStore(settings.data_dir).read_dead_letters("parts").to_pylist()
    return found


def wait_for(what: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Killed(BaseException):
    """The process dies here."""


def die(*_: Any, **__: Any) -> None:
    raise Killed


@pytest.mark.parametrize("seed", range(3))
def test_every_event_is_archived_once_wherever_the_archiver_dies(
    settings: Settings, store: redis.Redis, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    applied(store, settings)
    stream = EventStream(store, "test")
    archiver, history, arrival, bad = Archiver(settings, store), [], 0, 0
    for step in range(10):
        for _ in range(rng.randrange(1, 4)):
            rows = random_rows(rng, rng.randrange(1, 30), START_US + step * 60 * SECOND_US, ids=150)
            broken = [b"{", b'{"ts": null}'][: rng.randrange(3)]
            payload = b"\n".join([ndjson(rows), *broken])
            offset = stream.append("parts", "ndjson", payload, len(rows) + len(broken)).offset
            bad += len(broken)
            for i, row in enumerate(rows):
                event = naive_event(row, (0, offset, i), 0)
                arrival = max(arrival, event.time_us)
                history.append(dataclasses.replace(event, arrival_us=arrival))
        archiver.step()
        if rng.random() < 0.7:
            where = rng.choice(["append_events", "_publish", None])
            with monkeypatch.context() as patch:
                if where is not None:
                    patch.setattr(archiver.offline if where == "append_events" else archiver, where, die)
                with pytest.raises(Killed) if where else nullcontext():
                    archiver.flush()
                    archiver._publish()
            archiver = Archiver(settings, store)
    archiver.step()
    archiver.flush()
    archiver._publish()
    kept = {event.position for event in without_repeats(history, PARTS.dedup_horizon_us)}
    expected = [(e.position[1], e.position[2], e.event_id, e.position not in kept) for e in history]
    assert archived(settings) == expected
    assert any(is_repeat for *_, is_repeat in expected)
    assert len(dead_letters(settings)) == bad
    head = stream.head("parts", 0)
    assert head is not None
    marker = Markers(store, "test").applied("archived", [("parts", 0)])["parts", 0]
    assert marker == Applied(head.offset, head.count - 1, head.total, max(e.time_us for e in history))


def test_arrival_under_the_event_clock_is_the_running_maximum_across_restarts(
    settings: Settings, store: redis.Redis
) -> None:
    applied(store, settings)
    stream = EventStream(store, "test")
    for seconds in (5, 3, 9, 1):
        stream.append("parts", "ndjson", orjson.dumps({"id": str(seconds), "ts": moment(seconds * SECOND_US)}), 1)
        archiver = Archiver(settings, store)
        archiver.step()
        archiver.flush()
    rows = OfflineStore(settings.data_dir).read_events(PARTS, ["arrival_time"])
    assert rows["arrival_time"].cast(pa.int64()).to_pylist() == [s * SECOND_US for s in (5, 5, 9, 9)]


def test_dead_letters_keep_reason_payload_and_place(settings: Settings, store: redis.Redis) -> None:
    applied(store, settings)
    payload = b'{"id": "a", "ts": "2024-01-01T00:00:00Z"}\nnot json'
    offset = EventStream(store, "test").append("parts", "ndjson", payload, 2).offset
    archiver = Archiver(settings, store)
    archiver.step()
    archiver.flush()
    (letter,) = dead_letters(settings)
    assert (letter["source"], letter["partition"], letter["offset"], letter["index"]) == ("parts", 0, offset, 1)
    assert letter["reason"] == "not a JSON object" and letter["payload"] == b"not json"
    assert [event[2] for event in archived(settings)] == ["a"]


def test_entries_of_dead_letters_alone_count_as_archived(settings: Settings, store: redis.Redis) -> None:
    applied(store, settings)
    offset = EventStream(store, "test").append("parts", "ndjson", b"no", 1).offset
    archiver = Archiver(settings, store)
    archiver.step()
    archiver.flush()
    archiver.step()
    assert Markers(store, "test").applied("archived", [("parts", 0)])["parts", 0] == Applied(offset, 0, 1, None)
    assert archived(settings) == []


def test_a_new_source_and_its_direct_writes_are_archived_without_a_restart(
    settings: Settings, store: redis.Redis
) -> None:
    old = applied(store, settings)
    archiver = Archiver(settings, store)
    archiver.step()
    more = Source("more", (Column("id", DType.STRING), Column("ts", DType.TIMESTAMP)), "ts", partitions=2)
    view = FeatureView("profile", "plain", ("who",), (Column("score", DType.FLOAT64),), "f")
    save_catalog(
        store,
        settings,
        dataclasses.replace(old, version=2, sources=(*old.sources, more), views=(*old.views, view)),
    )
    stream, time_text = EventStream(store, "test"), "2024-01-01T00:00:00Z"
    stream.append("more", "ndjson", orjson.dumps({"id": "x", "ts": time_text}), 1, partition=1)
    stream.append("writes/profile", "ndjson", orjson.dumps({"who": "w", "score": 1, "event_timestamp": time_text}), 1)
    archiver._next_s.clear()
    archiver.step()
    archiver.flush()
    assert [event[2] for event in archived(settings, more)] == ["x"]
    assert (OfflineStore(settings.data_dir).events_path("writes/profile") / "_delta_log").is_dir()


def test_a_running_archiver_obeys_orders_survives_failures_and_drains_on_stop(
    settings: Settings, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied(store, settings)
    stream, stop, troubles = EventStream(store, "test"), threading.Event(), {"stream": 2, "disk": 2}
    real_read, real_append = EventStream.read, OfflineStore.append_events

    def read(self: EventStream, *args: Any, **kwargs: Any) -> Any:
        if troubles["stream"]:
            troubles["stream"] -= 1
            raise redis.ConnectionError("gone")
        return real_read(self, *args, **kwargs)

    def append(self: OfflineStore, *args: Any, **kwargs: Any) -> Any:
        if troubles["disk"]:
            troubles["disk"] -= 1
            raise OSError(28, "No space left on device")
        return real_append(self, *args, **kwargs)

    monkeypatch.setattr(EventStream, "read", read)
    monkeypatch.setattr(OfflineStore, "append_events", append)
    thread = threading.Thread(target=run_archiver, args=(settings, stop))
    thread.start()
    rng = random.Random(1)
    for n in range(3):
        stream.append("parts", "ndjson", ndjson(random_rows(rng, 5, START_US + n * SECOND_US)), 5)
    wait_for(lambda: len(archived(settings)) == 15)
    assert troubles == {"stream": 0, "disk": 0}
    with pytest.raises(SettingsError, match="already archives"):
        run_archiver(settings, stop)
    assert "files" in order_compaction(store, "test", "parts", timeout_s=20)
    with pytest.raises(UnavailableError, match="There is no source 'nope'"):
        order_compaction(store, "test", "nope", timeout_s=20)
    stream.append("parts", "ndjson", ndjson(random_rows(rng, 5, START_US)), 5)
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    assert len(archived(settings)) == 20
    head = stream.head("parts", 0)
    marker = Markers(store, "test").applied("archived", [("parts", 0)])["parts", 0]
    assert head is not None and marker is not None and marker.offset == head.offset


def test_without_a_catalog_it_says_to_apply(settings: Settings, store: redis.Redis) -> None:
    settings.repo.mkdir()
    (settings.repo / "feature_store.yaml").write_text("project: test\nprovider: local\nregistry: r.db\n")
    with pytest.raises(UnavailableError, match="headrace apply"):
        run_archiver(settings, threading.Event())
