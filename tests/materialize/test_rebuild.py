"""A view rebuilt while a worker writes and a reader reads: every value is one that a definition gives."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from naive import NaiveEvent, window_value
from scenario import micros, moment, ndjson
from shop import Live, running

import materialize.rebuild
from headrace.catalog.definitions import (
    Aggregation,
    Catalog,
    Column,
    Entity,
    FeatureView,
    Service,
    Source,
    ViewReference,
)
from headrace.catalog.layouts import continued, settled
from headrace.cli import group
from headrace.cli.checks import run_checks
from headrace.dtypes import DType
from headrace.errors import StaleCatalogError, StoreLostError, UnavailableError
from headrace.read.lookup import LookupResult, lookup, parse_request, plan_service
from headrace.read.online.values import step_values
from headrace.settings import Settings
from headrace.stores.catalogs import load_catalog, replace_catalog, save_catalog
from headrace.stores.codec.header import build_of
from headrace.stores.connection import open_store, open_store_async
from headrace.stores.embedded import detach
from headrace.stores.keys import entity_key, entity_prefix, layout_field, markers_key
from headrace.stores.layout_markers import LayoutMarkers, store_time_us
from headrace.stores.markers import Markers, ready_field
from headrace.stores.offline import OfflineStore
from headrace.stores.stream import EventStream
from materialize.changing import changing_definitions
from materialize.rebuild import Build, rebuild_to, rebuild_views
from materialize.sweep import GRACE_US, sweep
from materialize.worker import Worker

SECOND_US = 1_000_000
START_US = 1_000_000 * SECOND_US
CARDS = ["a", "b%,:", "c"]

PAYMENTS = Source(
    "payments",
    (Column("id", DType.STRING), Column("card", DType.STRING), Column("n", DType.INT64), Column("ts", DType.TIMESTAMP)),
    timestamp="ts",
    event_id="id",
)


def aggregation(name: str, function: str, column: str, window_us: int | None, hop_us: int) -> Aggregation:
    return Aggregation(name, function, column, window_us, hop_us, DType.INT64, DType.INT64)


def spend(fingerprint: str, *aggregations: Aggregation) -> FeatureView:
    features = tuple(Column(item.feature, item.dtype) for item in aggregations)
    return FeatureView(
        "spend", "windowed", ("card",), features, fingerprint, source="payments", aggregations=aggregations
    )


OLD = spend(
    "old", aggregation("all", "count", "*", None, 0), aggregation("late", "sum", "n", 60 * SECOND_US, 5_000_000)
)
NEW = spend("new", aggregation("all", "sum", "n", None, 0), aggregation("late", "max", "n", 40 * SECOND_US, 1_000_000))
LAST = FeatureView("last", "plain", ("card",), (Column("n", DType.INT64),), "l", source="payments")


def catalog(*views: FeatureView) -> Catalog:
    references = tuple(ViewReference(v.name, v.name, tuple(c.name for c in v.features)) for v in views)
    service = Service("card_v1", references)
    return Catalog("shop", 1, "event", (Entity("card", "card", DType.STRING),), (PAYMENTS,), views, (), (service,))


def target(previous: Catalog, *views: FeatureView) -> Catalog:
    """The catalog of these views as apply compiles it after `previous`."""
    return continued(replace(catalog(*views), version=previous.version + 1), previous)


@dataclass
class World:
    """What was pushed, in order, and where each entry ends."""

    rng: random.Random = field(default_factory=lambda: random.Random(7))
    events: list[NaiveEvent] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)
    """(offset, events up to it)."""

    def rows(self, n: int) -> list[dict[str, Any]]:
        made = []
        for _ in range(n):
            i = len(self.events)
            late_us = self.rng.choice([0, 0, self.rng.randrange(50 * SECOND_US)])
            time_us = START_US + i * 30_000 - late_us
            row = {"id": str(i), "card": self.rng.choice(CARDS), "n": self.rng.randrange(1_000_000, 2_000_000)}
            made.append({**row, "ts": moment(time_us)})
            self.events.append(NaiveEvent(row["card"], time_us, (0, 0, i), {"n": row["n"]}))
        return made

    def push(self, stream: EventStream, n: int) -> None:
        rows = self.rows(n)
        position = stream.append("payments", "ndjson", ndjson(rows), n)
        self.ends.append((position.offset, len(self.events)))

    def upto(self, offset: int) -> int:
        """How many events stand at or below an offset."""
        return max((count for end, count in self.ends if end <= offset), default=0)


class Poller(threading.Thread):
    """Asks the server for every card and for its readiness, over and over; `seen` is every answer."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self._live, self._stop_asking = live, threading.Event()

    def run(self) -> None:
        body = {"feature_service": "card_v1", "entities": {"card": CARDS}}
        while not self._stop_asking.wait(0.005):
            ready = self._live.http.get("/ready")
            reply = self._live.http.post("/get-online-features", json=body, params={"metadata": "full"})
            if reply.status_code != 200 or ready.status_code != 200:
                self.wrong.append(f"{reply.text} {ready.text}")
            else:
                self.seen.append(reply.json())

    @property
    def version(self) -> int:
        """The catalog that the last answer came from."""
        found: int = self.seen[-1]["metadata"]["catalog_version"]
        return found

    def stop_after_one_more(self) -> None:
        """Stops when an answer has come to a question that was asked from now on."""
        asked = len(self.seen)
        wait_until(lambda: len(self.seen) >= asked + 2 or bool(self.wrong))
        self._stop_asking.set()
        self.join()


class Pusher(threading.Thread):
    """Pushes small entries until it is told to stop."""

    def __init__(self, settings: Settings, world: World) -> None:
        super().__init__()
        self._stream, self._world, self._stop_pushing = (
            EventStream(open_store(settings), "shop"),
            world,
            threading.Event(),
        )

    def run(self) -> None:
        while not self._stop_pushing.wait(0.02):
            self._world.push(self._stream, 10)

    def stop(self) -> None:
        self._stop_pushing.set()
        self.join()


@contextmanager
def served(tmp_path: Path, definitions: Catalog, world: World) -> Iterator[Live]:
    """Server, worker and archiver over a history of which a part is archived."""
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data", port=0, lease=1.0)
    with running(settings, definitions) as live:
        stream = EventStream(open_store(settings), "shop")
        for _ in range(20):
            world.push(stream, 50)
        live.wait_until_applied("archived")
        yield live


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def check_seen(poller: Poller, world: World, old: FeatureView, new: FeatureView, switched: int) -> set[int]:
    """Every answer is what the old or, from version `switched` on, the new definition gives for the events up to some
    position at or after the stated one; that position never goes back. Returns the versions seen."""
    by_card = {card: [event for event in world.events if event.key == card] for card in CARDS}
    before, versions = dict.fromkeys(CARDS, 0), []
    for reply in poller.seen:
        meta = reply["metadata"]
        view = new if meta["catalog_version"] >= switched else old
        versions.append(meta["catalog_version"])
        columns = dict(zip(meta["feature_names"], (result["values"] for result in reply["results"]), strict=True))
        stated = world.upto(int(meta["views"]["spend"]["positions"]["0"].partition("-")[0]))
        for row, card in enumerate(CARDS):
            got = {item.feature: columns[item.feature][row] for item in view.aggregations}
            t_us = micros(meta["t"][row])
            k = prefix(view, by_card[card], got["all"])
            assert k >= max(before[card], sum(event.position[2] < stated for event in by_card[card]))
            for item in view.aggregations:
                assert got[item.feature] == window_value(item, by_card[card][:k], card, t_us), (item, card, k)
            before[card] = k
    assert versions == sorted(versions)
    return set(versions)


def prefix(view: FeatureView, events: list[NaiveEvent], value: int) -> int:
    """How many of a card's events its lifetime value comes from."""
    if view.aggregations[0].function == "count":
        return value
    total, sums = 0, [0]
    for event in events:
        total += event.values["n"]
        sums.append(total)
    return sums.index(value)


@pytest.mark.parametrize("changed", [False, True])
def test_a_reader_sees_only_what_a_definition_gives_while_a_view_is_rebuilt(
    tmp_path: Path, changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unchanged view is rebuilt by one command that is killed, then by another."""
    monkeypatch.setattr(materialize.rebuild, "SETTLE_S", 1.3)
    world = World()
    with served(tmp_path, catalog(OLD), world) as live:
        store = open_store(live.settings)
        poller, pusher = Poller(live), Pusher(live.settings, world)
        poller.start()
        pusher.start()
        previous = load_catalog(store, "shop")
        if changed:
            with changing_definitions(store, "shop", 1.0):
                done = rebuild_to(live.settings, store, previous, target(previous, NEW))
        else:
            kill_a_rebuild(live.settings, "build")
            done = rebuild_views(live.settings, ["spend"])
        wait_until(lambda: poller.version == done.catalog.version)
        time.sleep(0.3)
        pusher.stop()
        live.wait_until_applied()
        poller.stop_after_one_more()
        assert not poller.wrong
        view, mine = NEW if changed else OLD, events_of("a", world)
        versions = check_seen(poller, world, OLD, view, done.catalog.version)
        assert versions == {previous.version, previous.version + 1, done.catalog.version}
        assert prefix(view, mine, poller.seen[-1]["results"][1]["values"][0]) == len(mine)
        assert done.catalog.view("spend").generation == previous.version + 1 and done.events >= 1_000
        check_both_layouts_hold_all(store, done.catalog, world)


def events_of(card: str, world: World) -> list[NaiveEvent]:
    return [event for event in world.events if event.key == card]


def check_both_layouts_hold_all(store: Any, definitions: Catalog, world: World) -> None:
    """The layout that serves and the one that retires are merged up to the last event of every card."""
    held = LayoutMarkers(store, "shop").held()
    for view in (definitions.view("spend"), definitions.retiring[0].view):
        assert layout_field(view) in held.ready
        for card in CARDS:
            blob = store.hget(entity_key(entity_prefix("shop", ["card"]), [card]), layout_field(view))
            newest = max(event.time_us for event in events_of(card, world))
            assert build_of(blob) == held.builds[layout_field(view)]
            assert int.from_bytes(blob[20:28], "little", signed=True) == newest


KILLED = """
import os, signal, sys
from pathlib import Path
import materialize.rebuild
from headrace.settings import Settings
def die(*given):
    os.kill(os.getpid(), signal.SIGKILL)
materialize.rebuild.SETTLE_S = 0.0
if sys.argv[2] == "switch":
    materialize.rebuild.settled = die
settings = Settings(repo=Path(sys.argv[1]), data_dir=Path(sys.argv[1]) / "data", lease=1.0)
materialize.rebuild.rebuild_views(settings, ["spend"], die if sys.argv[2] == "build" else lambda done, total: None)
"""


def kill_a_rebuild(settings: Settings, where: str) -> None:
    """Runs a rebuild that is killed when it has merged its first batch, or just before it switches."""
    died = subprocess.run([sys.executable, "-c", KILLED, str(settings.repo), where], capture_output=True, timeout=60)
    assert died.returncode == -signal.SIGKILL, died.stderr


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Settings]:
    """Settings of a store that nobody else uses."""
    made = Settings(repo=tmp_path, data_dir=tmp_path / "data", lease=0.5)
    yield made
    detach(made.data_dir)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(materialize.rebuild, "SETTLE_S", 0.0)


def beside(settings: Settings) -> list[tuple[str, str, str]]:
    """The layouts beside those that serve, as `headrace list` has them, with what `doctor` says of each at its end."""
    where = ["--repo", str(settings.repo), "--data-dir", str(settings.data_dir)]
    listed = CliRunner().invoke(group, ["list", *where]).output.splitlines()
    states = [line[:24].rstrip() for line in listed if line[24:].startswith("spend") and " layout" in line[:24]]
    said = [finding for finding in run_checks(settings) if finding.part == "layout of spend"]
    texts = [re.sub(r"^.*(go on with|then swept)", r"\1", it.text).split(" (")[0] for it in said]
    return list(zip(states, [finding.level for finding in said], texts, strict=True))


@pytest.mark.parametrize("where", ["build", "switch"])
def test_a_rebuild_that_was_killed_goes_on_when_it_is_run_again(alone: Settings, hasty: None, where: str) -> None:
    world = World()
    with open_store(alone) as store:
        save_catalog(store, alone, catalog(OLD))
        worker, stream = started(store, alone), EventStream(store, "shop")
        world.push(stream, 50)
        worker.step()
        kill_a_rebuild(alone, where)
        interim = load_catalog(store, "shop")
        arriving = layout_field(interim.arriving[0].view)
        assert (arriving in LayoutMarkers(store, "shop").held().ready) == (where == "switch")
        wait_until(lambda: beside(alone) == [("arriving layout", "warn", "go on with headrace rebuild spend")])
        assert worker.follow(interim)
        world.push(stream, 50)
        worker.step()
        done = rebuild_views(alone, ["spend"])
        assert layout_field(done.catalog.view("spend")) == arriving and done.catalog.arriving == ()
        assert beside(alone) == [("retiring layout", "ok", "then swept by a worker")]
        assert worker.follow(done.catalog)
        world.push(stream, 50)
        worker.step()
        check_both_layouts_hold_all(store, done.catalog, world)
        check_values(alone, done.catalog, world)


def check_values(settings: Settings, definitions: Catalog, world: World) -> None:
    """What a lookup shows of every card is what all events come to."""
    view, plan = definitions.view("spend"), plan_service(definitions, "card_v1")

    async def look() -> LookupResult:
        store = open_store_async(settings)
        try:
            return await lookup(store, plan, parse_request(plan, {"card": CARDS}), None, 0)
        finally:
            await store.aclose()

    result = asyncio.run(look())
    for row, card in enumerate(CARDS):
        for item in view.aggregations:
            got = result.columns[result.names.index(item.feature)][row].as_py()
            assert got == window_value(item, events_of(card, world), card, int(result.t_us[row]))


def test_the_sweep_removes_the_old_layout_and_nothing_else(alone: Settings, hasty: None) -> None:
    world, store = World(), open_store(alone)
    with store:
        save_catalog(store, alone, catalog(OLD, LAST))
        worker = started(store, alone)
        world.push(EventStream(store, "shop"), 200)
        worker.step()
        other = entity_key(entity_prefix("shop", ["card", "site"]), ["a", 1])
        store.hset(other.decode(), "spend@old.1", "another key's")
        done = rebuild_views(alone, ["spend"])
        previous, keys = load_catalog(store, "shop"), [f"headrace:shop:card:{c}" for c in ("a", "b%25%2C%3A", "c")]
        final = settled(previous, target(previous, OLD), store_time_us(store), lambda view: False)
        replace_catalog(store, alone, final, previous)  # `last` is gone too
        fields = {"spend@old.1", "spend@old.2", "last@l.1"}
        assert all({name.decode() for name in store.hkeys(key)} == fields for key in keys)
        over_us = {layout.until_us for layout in done.catalog.retiring}.pop() + GRACE_US
        assert sweep(store, final, over_us - 1) == {}
        assert sweep(store, final, over_us) == {"spend@old.1": 3}
        assert sweep(store, final, over_us) == {}, "what is swept is not swept again"
        assert all({name.decode() for name in store.hkeys(key)} == fields - {"spend@old.1"} for key in keys)
        assert sweep(store, final, final.retiring[-1].until_us + GRACE_US) == {"last@l.1": 3}
        held = LayoutMarkers(store, "shop").held()
        assert held.ready == {"spend@old.2"} and set(held.builds) == {"spend@old.2"}
        assert store.hlen(other.decode()) == 1
        swept = settled(
            final, replace(final, version=9), final.retiring[-1].until_us, LayoutMarkers(store, "shop").is_swept
        )
        assert swept.retiring == ()


def started(store: Any, settings: Settings) -> Worker:
    worker = Worker(store, OfflineStore(settings.data_dir), load_catalog(store, "shop"), settings)
    worker.start()
    return worker


def test_a_worker_that_knows_nothing_of_a_new_layout_cannot_pass_it_by(alone: Settings, hasty: None) -> None:
    world = World()
    with open_store(alone) as store:
        save_catalog(store, alone, catalog(OLD))
        asleep, stream = started(store, alone), EventStream(store, "shop")
        world.push(stream, 50)
        asleep.step()
        rebuild_views(alone, ["spend"])
        world.push(stream, 50)
        before = Markers(store, "shop").applied("source", [("payments", 0)])
        with pytest.raises(StaleCatalogError, match="layout was completed"):
            asleep.step()
        assert Markers(store, "shop").applied("source", [("payments", 0)]) == before
        started(store, alone).step()
        check_both_layouts_hold_all(store, load_catalog(store, "shop"), world)


def test_a_worker_takes_up_a_layout_that_is_completed_between_its_batches(alone: Settings, hasty: None) -> None:
    world = World()
    with open_store(alone) as store:
        save_catalog(store, alone, catalog(OLD))
        worker, stream = started(store, alone), EventStream(store, "shop")
        world.push(stream, 50)
        worker.step()

        def adopt_and_push(final: Catalog) -> None:
            """Before the switch: the layout is complete, the worker has the interim catalog and read on."""
            world.push(stream, 50)
            worker.step()

        previous = load_catalog(store, "shop")
        followed = []

        def follow(done: int, total: int) -> None:
            followed.append(worker.follow(load_catalog(store, "shop")))

        final = rebuild_to(alone, store, previous, target(previous, NEW), follow, adopt_and_push).catalog
        assert followed[0] and worker.follow(final)
        world.push(stream, 50)
        worker.step()
        assert set(worker._kept) == {"spend@old.1", "spend@new.2"}
        check_both_layouts_hold_all(store, final, world)
        check_values(alone, final, world)


def test_rows_of_a_plain_view_pass_through_a_change_of_its_features(alone: Settings, hasty: None) -> None:
    """Rows written by one definition reach the layouts of both; what a definition does not know is null."""
    first = replace(LAST, features=(Column("n", DType.INT64), Column("old", DType.INT64)), source=None, ttl_us=0)
    second = replace(first, features=(Column("n", DType.INT64), Column("new", DType.INT64)), fingerprint="m")

    def write(version: int, **values: Any) -> None:
        row = {"card": "a", "event_timestamp": moment(START_US + version), "created": None, **values}
        EventStream(store, "shop").append("writes/last", "ndjson", ndjson([row]), 1, catalog=version)

    with open_store(alone) as store:
        save_catalog(store, alone, catalog(first))
        worker = started(store, alone)
        write(1, n=1, old=10)
        worker.step()
        previous = load_catalog(store, "shop")
        final = rebuild_to(alone, store, previous, target(previous, second)).catalog
        assert shown(store, final, final.view("last")) == {"n": 1, "new": None}
        worker = started(store, alone)
        write(final.version, n=2, new=20)
        worker.step()
        assert shown(store, final, final.view("last")) == {"n": 2, "new": 20}
        assert shown(store, final, first) == {"n": 2, "old": None}


def shown(store: Any, definitions: Catalog, view: FeatureView) -> dict[str, Any]:
    """What one layout holds of card a."""
    blob = store.hget(entity_key(entity_prefix(definitions.project, ["card"]), ["a"]), layout_field(view))
    values = step_values(view, [blob], np.array([START_US + 1_000])).columns
    return {name: column[0].as_py() for name, column in values.items()}


def test_a_store_that_loses_its_data_meanwhile_ends_the_rebuild(alone: Settings, hasty: None) -> None:
    world = World()
    with open_store(alone) as store:
        save_catalog(store, alone, catalog(OLD))
        world.push(EventStream(store, "shop"), 50)
        started(store, alone).step()

        def lose(done: int, total: int) -> None:
            store.flushdb()

        with pytest.raises((StoreLostError, UnavailableError), match="run it again"):
            rebuild_views(alone, ["spend"], lose)


def test_a_layout_that_is_lost_right_after_it_was_completed_is_not_switched_to(
    alone: Settings, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def complete(build: Build) -> str:
        outcome = then(build)
        if outcome == "complete":
            store.hdel(markers_key("shop"), *[ready_field(kept.view) for kept in build._kept])
        return outcome

    then = Build._complete
    monkeypatch.setattr(Build, "_complete", complete)
    world = World()
    with open_store(alone) as store:
        save_catalog(store, alone, catalog(OLD))
        world.push(EventStream(store, "shop"), 50)
        started(store, alone).step()
        serving = layout_field(load_catalog(store, "shop").view("spend"))
        with pytest.raises(StoreLostError, match="run it again"):
            rebuild_views(alone, ["spend"])
        assert layout_field(load_catalog(store, "shop").view("spend")) == serving


def test_two_commands_do_not_change_the_definitions_at_once(alone: Settings, hasty: None) -> None:
    with open_store(alone) as store:
        save_catalog(store, alone, catalog(OLD))
        with changing_definitions(store, "shop", 0.5), pytest.raises(UnavailableError, match="one command at a time"):
            rebuild_views(alone, ["spend"])
        other = replace(catalog(OLD, LAST), version=5)

        def meanwhile(final: Catalog) -> None:
            save_catalog(store, alone, other)

        previous = load_catalog(store, "shop")
        with pytest.raises(UnavailableError, match="changed them meanwhile"):
            rebuild_to(alone, store, previous, target(previous, NEW), before_switch=meanwhile)
        assert load_catalog(store, "shop") == other


def test_a_view_is_rebuilt_without_a_worker_and_the_next_one_goes_on(alone: Settings, hasty: None) -> None:
    world = World()
    with open_store(alone) as store:
        save_catalog(store, alone, catalog(OLD))
        started(store, alone)
        world.push(EventStream(store, "shop"), 80)
        done = rebuild_views(alone, ["spend"])
        assert done.events == 80
        started(store, alone).step()
        check_both_layouts_hold_all(store, done.catalog, world)
