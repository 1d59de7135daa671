"""Letters replayed on a cluster: each once, wherever the command dies, and none that was forgotten."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import redis
from scenario import ndjson
from shop import PAYMENTS, now, shop

import headrace.read.replay_once as replay_once
from headrace.catalog.definitions import Catalog, Expectation
from headrace.errors import UnavailableError
from headrace.read.dead_letters import list_letters, replay_letters
from headrace.read.forgetting import forget_keys
from headrace.read.replay_once import ReplayOnce
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.keys import lease_key, replay_key, replay_role
from headrace.stores.letters import pending_letters
from headrace.stores.offline import OfflineStore
from headrace.stores.stream import EventStream, flags_on
from materialize.archiver import Archiver
from materialize.worker import Worker

N = 12


def definitions(most: int) -> Catalog:
    rule = Expectation("amount", "between", (0, most), f"between(0, {most})")
    source = replace(PAYMENTS, partitions=3, expectations=(rule,))
    return replace(shop(version=most), sources=(source,))


class World:
    """Letters of three partitions in the archive, and definitions that would take them now."""

    def __init__(self, settings: Settings) -> None:
        self.store: Any = open_store(settings)
        self.offline, self.catalog = OfflineStore(settings.data_dir), definitions(1)
        save_catalog(self.store, settings, self.catalog)
        self.stream = EventStream(self.store, "shop")
        for partition in range(3):
            rows = [self.row(number) for number in range(partition, N, 3)]
            self.stream.append("payments", "ndjson", ndjson(rows), len(rows), partition)
        self.archiver = Archiver(settings, self.store)
        self.archive()
        assert len(self.listed()) == N and not self.events()
        self.catalog = definitions(100)
        save_catalog(self.store, settings, self.catalog)

    def row(self, number: int) -> dict[str, Any]:
        return {"id": f"e{number}", "card_id": f"c{number}", "shop_id": 1, "amount": 50.0, "ts": now(-5)}

    def archive(self) -> None:
        self.archiver._next_s.clear()
        self.archiver.step()
        self.archiver.flush()
        self.archiver._take_letters()

    def listed(self) -> list[Any]:
        return list_letters(self.store, self.offline, self.catalog)

    def events(self) -> list[str]:
        """Ids in the archive, sorted."""
        found = self.offline.read_events(self.catalog.source("payments"), ["id"], repeats=True)
        return sorted(found["id"].to_pylist())

    def replay(self) -> int:
        return replay_letters(self.store, self.offline, self.catalog, "payments").replayed


@pytest.mark.parametrize("dies_at", ["append_flagged", "_mark", "_let_go", None])
def test_each_letter_is_an_event_once_wherever_the_replay_dies(
    clustered: Settings, monkeypatch: pytest.MonkeyPatch, dies_at: str | None
) -> None:
    world = World(clustered)
    if dies_at is not None:
        with monkeypatch.context() as patch, pytest.raises(redis.ConnectionError):
            patch.setattr(replay_once if dies_at == "append_flagged" else ReplayOnce, dies_at, killed)
            world.replay()
    done = world.replay() + world.replay()
    world.archive()
    assert world.events() == sorted(f"e{n}" for n in range(N))
    assert done == N
    assert world.listed() == []
    world.archive()
    assert world.listed() == [] and pending_letters(world.store, "shop")[0].num_rows == 0
    assert not world.store.exists(replay_key("shop", "payments"))
    assert not any(flags_on(world.store, "shop", "payments", partition) for partition in range(3))


def killed(*given: Any) -> None:
    raise redis.ConnectionError("killed")


def test_a_replay_that_slept_past_its_lease_appends_nothing(clustered: Settings) -> None:
    world = World(clustered)
    lease, letters = lease_key("shop", replay_role("payments")), world.listed()
    world.store.set(lease, b"mine")
    asleep = ReplayOnce(world.store, world.catalog, world.catalog.source("payments"), lease, b"mine")
    asleep.renew()
    asleep._until_us = {partition: us - 60_000_000 for partition, us in asleep._until_us.items()}
    world.store.delete(lease)
    assert world.replay() == N
    with pytest.raises(UnavailableError, match="took too long"):
        asleep.append(letters)
    with pytest.raises(UnavailableError, match="took too long"):
        asleep.renew()
    assert world.replay() == 0
    world.archive()
    assert world.events() == sorted(f"e{n}" for n in range(N))


def test_a_replay_and_a_forgetting_wait_for_each_other(clustered: Settings) -> None:
    world = World(clustered)
    worker = Worker(world.store, world.offline, world.catalog)
    worker.start()
    asker = threading.Thread(target=forget_keys, args=(world.store, world.catalog, ["card"], [["c5"]], 600, 20))
    world.store.set(lease_key("shop", replay_role("payments")), b"somebody")
    asker.start()
    time.sleep(0.2)
    worker.obey()
    assert world.store.hlen("headrace.forgotten:shop") == 0
    world.store.delete(lease_key("shop", replay_role("payments")))
    with pytest.raises(UnavailableError, match="being forgotten"):
        world.replay()
    while asker.is_alive():
        worker.step(1)
        worker.obey()
        world.archive()
        asker.join(0.01)
    assert world.replay() == N - 1
    world.archive()
    assert "e5" not in world.events() and len(world.events()) == N - 1
