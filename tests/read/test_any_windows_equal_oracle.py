"""Definitions drawn at random, of every function over windows from a second to years and hops of any length: what is
read online and trained on equals the loop."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from naive import NaiveEvent, without_repeats
from scenario import (
    BY_WHO,
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
from seeds import oracle_seeds
from strategies import ALLOWED, aggregation

import headrace
from headrace.catalog.definitions import Aggregation, Catalog, Column, Service, ViewReference
from headrace.dtypes import DType, arrow_type
from headrace.read.lookup import LookupResult, lookup, parse_request, plan_service
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store, open_store_async
from headrace.stores.embedded import detach
from headrace.stores.offline import OfflineStore
from headrace.stores.stream import EventStream
from materialize.archiver import Archiver
from materialize.worker import Worker

DAY_S = 86_400
WINDOWS_S = (1, 2, 59, 61, 599, 3_600, 25 * 3_600, 7 * DAY_S, 90 * DAY_S, 365 * DAY_S, 1_095 * DAY_S, None)
YEARS_US = 4 * 365 * DAY_S * SECOND_US
STARTS_US = (1_600_000_000 * SECOND_US, 100 * SECOND_US)  # some events lie before 1970
WHO = [*WORDS, "unseen"]


def draw_aggregations(rng: random.Random) -> tuple[Aggregation, ...]:
    drawn = {}
    for _ in range(14):
        column = rng.choice(["*", *ALLOWED])
        function = "count" if column == "*" else rng.choice(ALLOWED[column])
        window_s = rng.choice(WINDOWS_S)
        hop_us = None
        if window_s is not None and rng.random() < 0.4:  # a hop of the user's own
            hop_us = max(window_s * SECOND_US // rng.choice([1, 2, 7, 50]), 1_000)
        drawn[function, column, window_s] = aggregation(function, column, window_s, hop_us)
    return tuple(drawn.values())


def draw_rows(rng: random.Random, now_us: int) -> list[dict[str, Any]]:
    """Events of just now and of years ago, as many of each magnitude."""
    rows = random_rows(rng, rng.randrange(1, 40), now_us, ids=400)
    for row in rows:
        row["ts"] = moment(now_us - int(YEARS_US ** rng.random()))
    return rows


def definitions_of(aggregations: tuple[Aggregation, ...], project: str) -> Catalog:
    features = tuple(Column(agg.feature, agg.dtype) for agg in aggregations)
    view = replace(BY_WHO, features=features, aggregations=aggregations)
    service = Service("everything", (ViewReference("by_who", "by_who", tuple(c.name for c in features)),))
    return replace(catalog(project=project), views=(view,), services=(service,))


def ask(settings: Settings, definitions: Catalog, as_of_us: int | None) -> LookupResult:
    async def once() -> LookupResult:
        store = open_store_async(settings)
        plan = plan_service(definitions, "everything")
        try:
            return await lookup(store, plan, parse_request(plan, {"who": WHO}), as_of_us, 0)
        finally:
            await store.aclose()

    return asyncio.run(once())


def check(
    definitions: Catalog, columns: dict[str, list[Any]], asked: list[tuple[str, int]], kept: list[NaiveEvent]
) -> None:
    (view,) = definitions.views
    events = with_key(kept, (0,))
    for row, (who, t_us) in enumerate(asked):
        got = {feature.name: plain_value(columns[feature.name][row]) for feature in view.features}
        assert_equals_oracle(view, got, events, (who,), t_us)


@pytest.mark.parametrize("seed", oracle_seeds(4))
def test_whatever_is_defined_is_read_and_trained_on_alike(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    definitions = definitions_of(draw_aggregations(rng), f"any{seed}")
    settings = Settings(repo=tmp_path / "repo", data_dir=tmp_path / "data")
    store, offline = open_store(settings), OfflineStore(settings.data_dir)
    save_catalog(store, settings, definitions)
    stream, archiver = EventStream(store, definitions.project), Archiver(settings, store)
    history: list[NaiveEvent] = []
    arrival, now_us = -YEARS_US, STARTS_US[seed % 2]
    worker = Worker(store, offline, definitions)
    worker.start()
    for _ in range(5):
        rows = draw_rows(rng, now_us)
        position = stream.append(PARTS.name, "ndjson", ndjson(rows), len(rows))
        for i, row in enumerate(rows):
            arrival = max(arrival, naive_event(row, (0, 0, 0), 0).time_us)
            history.append(naive_event(row, (0, position.offset, i), arrival))
        if rng.random() < 0.3:
            worker = Worker(store, offline, definitions)
            worker.start()
        while worker.step(block_ms=1):
            pass
        kept = without_repeats(history, PARTS.dedup_horizon_us)
        later_us = max(event.time_us for event in history) + int(YEARS_US ** rng.random())
        for as_of_us in (None, later_us):
            result = ask(settings, definitions, as_of_us)
            columns = {name: c.to_pylist() for name, c in zip(result.names, result.columns, strict=True)}
            check(definitions, columns, list(zip(WHO, map(int, result.t_us), strict=True)), kept)
        now_us += int(YEARS_US ** rng.random())
    while archiver._read(0):
        pass
    archiver.flush()
    asked = [
        (rng.choice(WHO), rng.choice(history).time_us + rng.choice([0, 1, int(YEARS_US ** rng.random())]))
        for _ in range(80)
    ]
    labels = pa.table({
        "who": [who for who, _ in asked],
        "event_timestamp": pa.array([t_us for _, t_us in asked]).cast(arrow_type(DType.TIMESTAMP)),
    })  # fmt: skip
    rows_of = headrace.training_set("everything", labels, settings=settings).to_arrow().to_pydict()
    check(definitions, rows_of, asked, kept)
    detach(settings.data_dir)
