from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
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
    naive_event,
    ndjson,
    plain_value,
    random_rows,
    with_key,
)
from seeds import oracle_seeds

from headrace.catalog.definitions import Catalog, Column, Service, ViewReference
from headrace.errors import AsOfError
from headrace.read.lookup import LookupResult, lookup, parse_request, plan_service
from headrace.settings import Settings
from headrace.stores.connection import open_store, open_store_async
from headrace.stores.offline import OfflineStore
from headrace.stores.stream import EventStream
from materialize.worker import Worker

KEYS = [(who, site) for who in [*WORDS, "unseen", None] for site in (-1, 7, 9, None)]
PARTS_OF = {BY_WHO.name: (0,), BY_BOTH.name: (0, 1), NEWEST.name: (1,)}


def ask(settings: Settings, definitions: Catalog, as_of_us: int | None) -> LookupResult:
    async def once() -> LookupResult:
        store: redis.asyncio.Redis = open_store_async(settings)
        plan = plan_service(definitions, "everything", full_feature_names=True)
        columns = {"who": [who for who, _ in KEYS], "site": [site for _, site in KEYS]}
        try:
            return await lookup(store, plan, parse_request(plan, columns), as_of_us, 0)
        finally:
            await store.aclose()

    return asyncio.run(once())


def assert_result(result: LookupResult, definitions: Catalog, history: list[NaiveEvent]) -> None:
    columns = {name: column.to_pylist() for name, column in zip(result.names, result.columns, strict=True)}
    for view in definitions.views:
        parts = PARTS_OF[view.name]
        events = with_key(history, parts)
        for row, key in enumerate(KEYS):
            got = {f.name: plain_value(columns[f"{view.name}__{f.name}"][row]) for f in view.features}
            assert_equals_oracle(view, got, events, tuple(key[i] for i in parts), int(result.t_us[row]))


@pytest.mark.parametrize("seed", oracle_seeds(6))
def test_the_online_path_equals_the_loop(settings: Settings, seed: int) -> None:
    rng = random.Random(seed)
    definitions = catalog(project=f"online{seed}")
    store, offline = open_store(settings), OfflineStore(settings.data_dir)
    stream = EventStream(store, definitions.project)
    worker = Worker(store, offline, definitions)
    worker.start()
    history: list[NaiveEvent] = []
    start_us, arrival = 1_000_000 * SECOND_US, 0
    for _ in range(8):
        for _ in range(rng.randrange(1, 4)):
            rows = random_rows(rng, rng.randrange(1, 60), start_us, ids=400)
            position = stream.append(PARTS.name, "ndjson", ndjson(rows), len(rows))
            for i, row in enumerate(rows):
                event = naive_event(row, (0, position.offset, i), 0)
                arrival = max(arrival, event.time_us)
                history.append(naive_event(row, (0, position.offset, i), arrival))
        if rng.random() < 0.3:  # a new worker, from the markers
            worker = Worker(store, offline, definitions)
            worker.start()
        while worker.step(block_ms=1):
            pass
        kept = without_repeats(history, PARTS.dedup_horizon_us)
        assert_result(ask(settings, definitions, None), definitions, kept)
        later_us = max(e.time_us for e in history) + rng.randrange(1, 700) * SECOND_US
        assert_result(ask(settings, definitions, later_us), definitions, kept)
        start_us += rng.randrange(200) * SECOND_US
    with pytest.raises(AsOfError, match="as_of must not precede"):
        ask(settings, definitions, start_us - 10_000 * SECOND_US)


def test_a_view_added_later_is_built_from_the_log(settings: Settings, tmp_path: Path) -> None:
    rng = random.Random(7)
    whole = catalog(project="later")
    first = Catalog(**{**vars_of(whole), "views": (BY_WHO,), "services": ()})
    store, offline = open_store(settings), OfflineStore(tmp_path)
    stream = EventStream(store, "later")
    rows = random_rows(rng, 200, 1_000_000 * SECOND_US)
    worker = Worker(store, offline, first)
    worker.start()
    position = stream.append(PARTS.name, "ndjson", ndjson(rows), len(rows))
    while worker.step(block_ms=1):
        pass
    Worker(store, offline, whole).start()
    history = [naive_event(row, (0, position.offset, i), 0) for i, row in enumerate(rows)]
    assert_result(ask(settings, whole, None), whole, history)


def vars_of(definitions: Catalog) -> dict[str, Any]:
    return {name: getattr(definitions, name) for name in definitions.__dataclass_fields__}


def test_a_past_that_keys_may_have_outlived_is_refused_under_the_wall_clock(settings: Settings) -> None:
    windows = tuple(agg for agg in BY_WHO.aggregations if agg.window_us is not None)
    view = replace(BY_WHO, aggregations=windows, features=tuple(Column(a.feature, a.dtype) for a in windows))
    service = Service("everything", (ViewReference("by_who", "by_who", (windows[0].feature,)),))
    fields = vars_of(catalog("wall", "past")) | {"views": (view,), "services": (service,)}
    definitions = Catalog(**fields)
    Worker(open_store(settings), OfflineStore(settings.data_dir), definitions).start()
    now_us = 1_700_000_000 * SECOND_US

    def count(as_of_us: int) -> Any:
        async def once() -> LookupResult:
            store = open_store_async(settings)
            plan = plan_service(definitions, "everything")
            try:
                return await lookup(store, plan, parse_request(plan, {"who": ["unseen"]}), as_of_us, now_us)
            finally:
                await store.aclose()

        return asyncio.run(once()).columns[-1].to_pylist()

    assert count(now_us - 3_600 * SECOND_US) == [0]
    with pytest.raises(AsOfError, match="as_of may lie a day back"):
        count(now_us - 25 * 3_600 * SECOND_US)
