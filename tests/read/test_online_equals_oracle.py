from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
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
    moment,
    naive_event,
    ndjson,
    plain_value,
    random_rows,
    with_key,
)
from seeds import oracle_seeds

import headrace
from headrace.catalog.definitions import Catalog, Column, Service, ViewReference
from headrace.errors import AsOfError
from headrace.read.lookup import LookupResult, lookup, parse_request, plan_service
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store, open_store_async
from headrace.stores.embedded import detach
from headrace.stores.offline import OfflineStore
from headrace.stores.stream import EventStream
from materialize.archiver import Archiver
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


@pytest.mark.parametrize("seed", oracle_seeds(2))
def test_rows_as_known_are_what_was_served_at_the_time(tmp_path: Path, seed: int) -> None:
    """Every push begins with an event that raises the watermark, so that what came by then is what had been served."""
    rng = random.Random(seed)
    definitions = catalog(project=f"served{seed}")
    settings = Settings(repo=tmp_path / "repo", data_dir=tmp_path / "data")
    store = open_store(settings)
    save_catalog(store, settings, definitions)
    stream, worker = (
        EventStream(store, definitions.project),
        Worker(store, OfflineStore(settings.data_dir), definitions),
    )
    worker.start()
    history: list[NaiveEvent] = []
    newest_us, served = 1_000_000 * SECOND_US, list[tuple[LookupResult, list[NaiveEvent]]]()
    for _ in range(4):
        first = random_rows(rng, 1, newest_us)[0] | {"ts": moment(newest_us + rng.randrange(1, 90 * SECOND_US))}
        rows = [first, *random_rows(rng, rng.randrange(20, 60), newest_us)]
        position = stream.append(PARTS.name, "ndjson", ndjson(rows), len(rows))
        history += [naive_event(row, (0, position.offset, i), 0) for i, row in enumerate(rows)]
        newest_us = max(event.time_us for event in history)
        while worker.step(block_ms=1):
            pass
        served.append((ask(settings, definitions, None), list(history)))
    archiver = Archiver(settings, store)
    while archiver._read(0):
        pass
    archiver.flush()
    known = training_columns(settings, served, as_known=True)
    late = training_columns(settings, served, as_known=False)
    detach(settings.data_dir)
    for view in definitions.views:
        parts = PARTS_OF[view.name]
        for row, (key, t_us, events) in enumerate(asked_of(served)):
            got = {f.name: plain_value(known[f"{view.name}__{f.name}"][row]) for f in view.features}
            assert_equals_oracle(view, got, with_key(events, parts), tuple(key[i] for i in parts), t_us)
    for column, name in enumerate(served[0][0].names[2:], 2):
        if served[0][0].columns[column].type not in (pa.float32(), pa.float64()):
            assert [value for result, _ in served for value in result.columns[column].to_pylist()] == known[name]
    assert known["by_who__count_*_None"] != late["by_who__count_*_None"]


def asked_of(
    served: list[tuple[LookupResult, list[NaiveEvent]]],
) -> list[tuple[tuple[str | None, int | None], int, list[NaiveEvent]]]:
    """Key, moment and the events until then of every row that was served."""
    return [(key, int(t), events) for result, events in served for key, t in zip(KEYS, result.t_us, strict=True)]


def training_columns(
    settings: Settings, served: list[tuple[LookupResult, list[NaiveEvent]]], as_known: bool
) -> dict[str, list[Any]]:
    asked = asked_of(served)
    given = pa.table({
        "who": pa.array([key[0] for key, _, _ in asked], pa.string()),
        "site": pa.array([key[1] for key, _, _ in asked], pa.int64()),
        "event_timestamp": pa.array([t_us for _, t_us, _ in asked]).cast(pa.timestamp("us", "UTC")),
    })  # fmt: skip
    rows = headrace.training_set("everything", given, settings=settings, full_feature_names=True, as_known=as_known)
    columns: dict[str, list[Any]] = rows.to_arrow().to_pydict()
    return columns
