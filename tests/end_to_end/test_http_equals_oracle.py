"""Random events through real HTTP and a real store, read back online and as a training set: both equal the loop."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from live_checks import PARTS_OF, check_dataset, check_online, random_label
from naive import NaiveEvent, without_repeats
from scenario import PARTS, SECOND_US, catalog, micros, naive_event, random_rows
from shop import Live, running

from headrace.catalog.definitions import FeatureView
from headrace.settings import Settings


@pytest.mark.parametrize("seed", [1, 2])
def test_online_and_offline_equal_the_loop(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data", port=0, fast_lane=seed == 1)
    history: list[NaiveEvent] = []
    with running(settings, catalog(project=f"http{seed}")) as live:
        start_us = 1_000_000 * SECOND_US
        for _ in range(6):
            for _ in range(rng.randrange(1, 3)):
                rows = random_rows(rng, rng.randrange(1, 50), start_us, ids=300)
                history += with_arrivals(rows, push(live, rng, rows), history)
            live.wait_until_applied()
            check_online(live, without_repeats(history, PARTS.dedup_horizon_us), rng)
            start_us += rng.randrange(300) * SECOND_US
        live.wait_until_applied("archived")
    kept = without_repeats(history, PARTS.dedup_horizon_us)
    for tied in (False, True):
        check_dataset(settings, kept, [random_label(rng, kept, tied) for _ in range(150)])


def push(live: Live, rng: random.Random, rows: list[dict[str, Any]]) -> int:
    """The offset of the pushed entry, in one format or the other."""
    if rng.random() < 0.5:
        answer = live.push(rows, PARTS.name)
    else:
        df = {name: [row[name] for row in rows] for name in rows[0]}
        answer = live.post("/push", {"push_source_name": PARTS.name, "df": df, "to": "online"})
    assert answer["accepted"] == len(rows)
    offset, _, index = answer["position"]["0"].partition("-")
    assert int(index) == len(rows) - 1
    return int(offset)


def with_arrivals(rows: list[dict[str, Any]], offset: int, history: list[NaiveEvent]) -> list[NaiveEvent]:
    """The oracle's events; under the event clock one arrives at the running maximum of event time."""
    arrival, events = max((e.arrival_us for e in history), default=0), []
    for i, row in enumerate(rows):
        arrival = max(arrival, micros(row["ts"]))
        events.append(naive_event(row, (0, offset, i), arrival))
    return events


def test_every_view_is_checked() -> None:
    views: tuple[FeatureView, ...] = catalog().views
    assert {view.name for view in views} == set(PARTS_OF)
