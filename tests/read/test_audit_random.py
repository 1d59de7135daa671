"""Whatever a server answers while the worker works, the archive and the loop say the same at the positions that it
states."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from crash.world import KEYS, SERVICE, SOURCES, catalog, present_us, rows_of
from shop import running

from headrace.read.audit import audit
from headrace.read.history import History
from headrace.settings import Settings
from headrace.stores.offline import OfflineStore
from headrace.stores.served import read_served

ROUNDS, BATCH = 40, 30


@pytest.mark.parametrize("seed, clock", [(1, "wall"), (2, "event")])
def test_what_was_served_is_what_the_archive_says_at_its_positions(tmp_path: Path, seed: int, clock: str) -> None:
    """Random, late, repeated and out-of-order events of three sources and six partitions, looked up all the while."""
    rng = random.Random(seed)
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data", port=0)
    world = catalog(clock)
    world = replace(world, services=tuple(replace(service, log_rate=1.0) for service in world.services))
    served = 0
    with running(settings, world) as live:
        deadline = time.monotonic() + 30
        while live.http.get("/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        stop = threading.Event()

        def push() -> None:
            serial, source_rng = 0, random.Random(f"pusher {seed}")
            while not stop.is_set():
                source = source_rng.choice(SOURCES)
                rows = rows_of(source_rng, BATCH, present_us())
                for row in rows:
                    serial += 1
                    row["id"] = serial if source.name == "visits" else f"e{source_rng.randrange(serial)}"
                live.push(rows, source.name)

        pusher = threading.Thread(target=push)
        pusher.start()
        for _ in range(ROUNDS):
            keys = rng.sample(KEYS, rng.choice([1, 3, 20]))
            entities = {"who": [who for who, _ in keys], "site": [site for _, site in keys]}
            body = {"feature_service": SERVICE, "entities": entities, "full_feature_names": True}
            live.post("/get-online-features", body)
            served += len(keys)
        stop.set()
        pusher.join()
        live.wait_until_applied("archived")
        while read_served(OfflineStore(settings.data_dir).root, SERVICE).num_rows < served:
            assert time.monotonic() < deadline + 60
            time.sleep(0.1)
    report = audit(world, History(OfflineStore(settings.data_dir), settings.repo), SERVICE)
    assert report.rows == served
    assert report.bugs == 0, [finding for finding in report.findings if finding.outcome == "bug"][:3]
    totals = {
        outcome: sum(counts[outcome] for counts in report.outcomes.values()) for outcome in ("equal", "lag", "late")
    }
    assert totals["equal"] and totals["late"]
