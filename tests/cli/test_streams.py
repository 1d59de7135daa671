"""headrace streams: how far each source is, and what became of its events."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from shop import now, shop

from headrace.cli import group
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.offline import OfflineStore
from headrace.stores.stream import EventStream
from materialize.archiver import Archiver
from materialize.worker import Worker


class Stage:
    """A store with the shop's catalog, in which nobody works until the test says so."""

    def __init__(self, settings: Settings, store: redis.Redis) -> None:
        self.settings, self.store = settings, store
        save_catalog(store, settings, shop())

    def push(self, *rows: dict[str, Any]) -> None:
        text = b"\n".join(json.dumps(row).encode() for row in rows)
        EventStream(self.store, "shop").append("payments", "ndjson", text, len(rows))

    def catch_up(self) -> None:
        worker = Worker(self.store, OfflineStore(self.settings.data_dir), shop())
        worker.start()
        while worker.step(block_ms=1):
            pass
        archiver = Archiver(self.settings, self.store)
        while archiver._read(0):
            pass
        archiver.flush()
        archiver._publish()

    def streams(self, *options: str) -> str:
        where = ["--repo", str(self.settings.repo), "--data-dir", str(self.settings.data_dir)]
        done = CliRunner().invoke(group, ["streams", *where, *options])
        assert done.exit_code == 0, done.output
        return done.output

    def payments(self, *options: str) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(self.streams("--json", *options))["payments"]
        return row


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data")
    with open_store(settings) as store:
        yield Stage(settings, store)
    detach(settings.data_dir)


def payment(number: int, at_s: float = -5, **more: Any) -> dict[str, Any]:
    return {"id": str(number), "card_id": "a", "amount": 1, "ts": now(at_s)} | more


def test_lag_is_in_events_and_in_seconds_until_all_is_applied(stage: Stage) -> None:
    stage.push(*[payment(number) for number in range(7)])
    time.sleep(0.05)
    row = stage.payments("--over", "0")
    assert row["events"] == {"pushed": 7, "applied": 0, "archived": 0} and row["lag"] == 7
    assert 0.05 <= row["lag_seconds"] < 60 and row["watermark"] is None
    stage.catch_up()
    row = stage.payments("--over", "0")
    assert row["events"] == {"pushed": 7, "applied": 7, "archived": 7}
    assert row["head"] == row["applied"] == row["archived"] and row["lag"] == row["lag_seconds"] == 0


def test_outcomes_and_the_watermark_are_those_of_the_events(stage: Stage) -> None:
    newest = payment(1, -1)
    stage.push(newest, payment(2, -3_000), payment(3, -1_000), payment(1), payment(4, amount="much"))
    stage.catch_up()
    row = stage.payments("--over", "0")
    assert row["counts"] == {"events": 4, "late": 3, "repeated": 1, "dead": 1}
    assert row["dead_letters"] == 1 and row["watermark"][:23] == newest["ts"][:23]
    header, first, *_ = stage.streams("--over", "0").splitlines()
    shown = dict(zip(header.split(), first.replace("0.0 s", "0.0s").split(), strict=True))
    assert {name: shown[name] for name in ("source", "events", "lag", "behind", "late", "repeated", "dead")} == {
        "source": "payments", "events": "5", "lag": "0", "behind": "0.0s", "late": "3", "repeated": "1", "dead": "1",
    }  # fmt: skip


def test_rates_are_events_a_second_over_the_time_asked_for(stage: Stage) -> None:
    stop, pushed = threading.Event(), []

    def produce() -> None:
        while not stop.wait(0.02):
            stage.push(payment(len(pushed)))
            pushed.append(1)

    producer = threading.Thread(target=produce)
    producer.start()
    row = stage.payments("--over", "1")
    stop.set()
    producer.join()
    assert 0 < row["rates"]["pushed"] <= len(pushed) and row["rates"]["applied"] == 0
