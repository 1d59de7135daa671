"""A view is rebuilt while keys are forgotten and history is imported: the new layout holds what the archive holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scenario import SECOND_US, naive_event, ndjson, random_rows
from world import SHORT, START_US, World

import materialize.rebuild
from headrace.read.forgetting import forget_keys
from headrace.settings import Settings
from headrace.stores.catalogs import load_catalog
from headrace.stores.embedded import detach
from headrace.stores.import_files import find_files
from headrace.stores.keys import entity_key, entity_prefix, layout_field
from headrace.stores.offline import INDEX, OFFSET, PARTITION
from headrace.stores.online import OnlineStore
from headrace.stores.orders import give_order
from materialize.rebuild import Build, rebuild_views

GONE = "a"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(materialize.rebuild, "SETTLE_S", 0.05)
    made = World(Settings(repo=tmp_path, data_dir=tmp_path / "data", lease=0.5), "beside")
    yield made
    detach(made.settings.data_dir)


def step(world: World) -> None:
    """Everything that worker and archiver do, once."""
    definitions = load_catalog(world.store, world.catalog.project)
    if definitions.version > world.worker.catalog.version and not world.worker.follow(definitions):
        world.catalog = definitions
        world.new_worker()
    world.apply()
    world.worker.obey()
    world.archiver._next_s.clear()
    world.archiver.step()
    world.archiver.flush()
    world.archiver._publish()
    while world.worker.take_imports():
        pass


def forget(world: World) -> None:
    """Forgets a key, and drops from the history what came before."""
    definitions = load_catalog(world.store, world.catalog.project)
    done: dict[str, Any] = {}
    keys: list[list[int | str]] = [[GONE]]
    given = (world.store, definitions, ["who"], keys, 0.0)
    asker = threading.Thread(target=lambda: done.update(forget_keys(*given)))
    asker.start()
    while asker.is_alive():
        step(world)
        asker.join(0.01)
    line = int(done["positions"][f"{SHORT.name}|0"])
    world.history = [event for event in world.history if event.key[0] != GONE or event.position[1] > line]


def ingest(world: World) -> None:
    """Imports rows of the past, some of them of the key that may be forgotten, two hours before all others."""
    number = len(world.history)
    rows = random_rows(world.rng, 25, START_US - 7_200 * SECOND_US)
    rows += [{**row, "who": GONE, "id": f"{number}-{i}"} for i, row in enumerate(rows[:3])]
    path = world.settings.data_dir / f"past{number}.ndjson"
    path.write_bytes(ndjson(rows))
    files = [file.as_plain() for file in find_files(str(path), [column.name for column in SHORT.columns])]
    body = {"files": files, "renamed": {}, "absent": []}
    give_order(world.store, world.catalog.project, "import", SHORT.name, body)
    step(world)
    while world.archiver._imports.busy:
        step(world)
    sent = {row["id"]: row for row in rows}
    found = world.offline.read_events(SHORT, ["id"], up_to={-1: 2**62}).to_pylist()
    new = [(sent[row["id"]], row) for row in found if row["id"] in sent]
    events = [naive_event(row, (at[PARTITION], at[OFFSET], at[INDEX]), 0) for row, at in new]
    world.history = sorted([*events, *world.history], key=lambda event: event.position)


def before(monkeypatch: pytest.MonkeyPatch, name: str, action: Callable[[], None]) -> None:
    """`action` happens before a build does something for the first time."""
    then, done = getattr(Build, name), []

    def act(self: Build, *args: Any) -> Any:
        if not done:
            done.append(1)
            action()
        return then(self, *args)

    monkeypatch.setattr(Build, name, act)


def assert_new_layout_is_right(world: World) -> None:
    for _ in range(3):
        step(world)
    world.catalog = load_catalog(world.store, world.catalog.project)
    assert world.catalog.view("by_who").generation > 1 and world.catalog.arriving == ()
    world.assert_right()
    if not any(event.key[0] == GONE for event in world.history):
        key = entity_key(entity_prefix("beside", ["who"]), [GONE])
        for view in (*world.catalog.views[:1], *(layout.view for layout in world.catalog.retiring[:1])):
            assert OnlineStore(world.store).read([key], layout_field(view)) == [None]


MOMENTS = ["_replay", "_catch_up", "_complete", "_follow"]


@pytest.mark.parametrize("moment_of", MOMENTS)
@pytest.mark.parametrize("actions", [(ingest, forget), (forget, ingest)])
def test_what_happens_meanwhile_is_in_the_new_layout(
    world: World, monkeypatch: pytest.MonkeyPatch, moment_of: str, actions: tuple[Callable[[World], None], ...]
) -> None:
    world.push(40)
    world.archive()
    world.push(20)
    world.apply()

    def act() -> None:
        for action in actions:
            action(world)
        world.push(10)

    before(monkeypatch, moment_of, act)
    done = rebuild_views(world.settings, ["by_who", "newest", "by_both"])
    assert done.views == ("by_who", "by_both", "newest")
    assert_new_layout_is_right(world)


def test_a_rebuild_after_an_import_holds_it_once(world: World) -> None:
    world.push(40)
    world.apply()
    ingest(world)
    step(world)
    rebuild_views(world.settings, ["by_who"])
    assert_new_layout_is_right(world)
    ingest(world)
    world.push(10)
    assert_new_layout_is_right(world)
