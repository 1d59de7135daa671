"""Few rows are read one by one, many as arrays, and replies are written from either: all give the same, bit by bit."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
from plain_replies import plain_reply
from scenario import NEWEST, PARTS, SECOND_US, WORDS, catalog, moment, ndjson, random_rows

from headrace.catalog.definitions import Catalog, Column, DType, OnDemandView, Service, ViewReference
from headrace.errors import AsOfError, UnavailableError
from headrace.read.lookup import LookupPlan, LookupResult, lookup, parse_request, plan_features, plan_service
from headrace.read.online.few import FEW_ROWS
from headrace.read.online.vectors import NOT_FOUND, NULL_VALUE, OUTSIDE_MAX_AGE, PRESENT
from headrace.settings import Settings
from headrace.stores.codec.header import BUILD, build_of
from headrace.stores.connection import open_store, open_store_async
from headrace.stores.keys import entity_key, entity_prefix, layout_field
from headrace.stores.multiplexed import SharedConnection
from headrace.stores.offline import OfflineStore
from headrace.stores.stream import EventStream
from materialize.worker import Worker
from serving.json_replies import ReplyWriter

START_US = 1_000_000 * SECOND_US
FOREVER = replace(NEWEST, name="forever", fingerprint="f4", ttl_us=0)
OLD = replace(NEWEST, name="old", fingerprint="f5", ttl_us=SECOND_US)
TWICE = OnDemandView(
    "twice",
    (Column("double", DType.FLOAT64), Column("word2", DType.STRING)),
    (ViewReference("forever", "forever", ("real", "word")),),
    (),
    "python",
    'def twice(i):\n    return {"double": [None if x is None else 2 * x for x in i["real"]], "word2": i["word"]}\n',
    "twice",
    "f6",
)
FEATURES = tuple(column.name for column in NEWEST.features)


def definitions(project: str, clock: str) -> Catalog:
    """All of the scenario; views of every type, that expire and that do not, one under two names; pieces of views."""
    made = catalog(clock, project)
    whole = tuple(reference(view.name, [c.name for c in view.features]) for view in made.views)
    pieces = (
        reference("by_who", [made.views[0].features[i].name for i in (3, 0, 17)]),
        reference("forever", FEATURES[:2]),
        reference("old", FEATURES),
        ViewReference("forever", "elsewhere", FEATURES[::-1], (("site", "other_site"),)),
        reference("forever", FEATURES[2:]),
        reference("twice", ["word2", "double"]),
    )
    services = (Service("whole", whole), Service("pieces", pieces), Service("one", (reference("old", ["moment"]),)))
    views = (*made.views, FOREVER, OLD)
    return replace(made, views=views, on_demand_views=(TWICE,), services=services)


def reference(view: str, features: Sequence[str]) -> ViewReference:
    return ViewReference(view, view, tuple(features))


def rows_of(plan: LookupPlan, rng: random.Random, n: int) -> dict[str, list[Any]]:
    choices: dict[str, Any] = {
        "who": lambda: rng.choice([*WORDS, "unseen", None]),
        "site": lambda: rng.choice([-1, 0, 7, 9, None]),
        "other_site": lambda: rng.choice([-1, 0, 7, 9, None]),
    }
    return {column.name: [choices[column.name]() for _ in range(n)] for column in plan.join_keys}


def chunks(rows: dict[str, list[Any]], sizes: Iterator[int]) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    at, n = 0, len(next(iter(rows.values())))
    while at < n:
        size = next(sizes)
        yield at, {name: values[at : at + size] for name, values in rows.items()}
        at += size


@pytest.mark.parametrize("seed", range(2))
def test_rows_are_the_same_alone_in_few_and_in_many(settings: Settings, seed: int) -> None:
    rng = random.Random(seed)
    made = definitions(f"alike{seed}", "event" if seed % 2 else "wall")
    store = open_store(settings)
    worker = Worker(store, OfflineStore(settings.data_dir), made)
    worker.start()
    for n in range(4):
        rows = random_rows(rng, 60, START_US + 50 * n * SECOND_US)
        EventStream(store, made.project).append(PARTS.name, "ndjson", ndjson(rows), len(rows))
    while worker.step(block_ms=1):
        pass
    asyncio.run(compare(settings, made, rng))


async def compare(settings: Settings, made: Catalog, rng: random.Random) -> None:
    store = open_store_async(settings)
    shared = SharedConnection(store)
    statuses, hidden = set(), 0
    for name, later_s in (("whole", 100), ("pieces", 10_000), ("one", 260)):
        plan, now_us = plan_service(made, name, full_feature_names=True), START_US + later_s * SECOND_US
        rows = rows_of(plan, rng, 40)
        many = await lookup(store, plan, parse_request(plan, rows), None, now_us)
        assert_written(plan, many)
        for size in (1, 3, FEW_ROWS, FEW_ROWS + 1):
            beyond: Counter[tuple[str, str]] = Counter()
            for at, some in chunks(rows, iter(lambda size=size: size, None)):
                found = await lookup(shared, plan, parse_request(plan, some), None, now_us)
                assert_part_of(found, many, at)
                if at % 4 == 0:
                    assert_written(plan, found)
                beyond.update(found.out_of_range)
            assert beyond == many.out_of_range
        statuses |= {code for codes in many.statuses for code in codes.tolist()}
        hidden += len(many.out_of_range)
    assert statuses == {PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE} and hidden
    await shared.aclose()
    await store.aclose()


def assert_part_of(few: LookupResult, many: LookupResult, at: int) -> None:
    n = few.request.rows
    assert few.names == many.names and few.t_us.tolist() == many.t_us[at : at + n].tolist()
    for name, column, whole in zip(few.names, few.columns, many.columns, strict=True):
        assert column.type == whole.type and column.equals(whole.slice(at, n)), name
    for mine, whole in ((few.statuses, many.statuses), (few.timestamps_us, many.timestamps_us)):
        assert [part.tolist() for part in mine] == [part[at : at + n].tolist() for part in whole]


def assert_written(plan: LookupPlan, result: LookupResult) -> None:
    for times in ("seconds", "rfc3339"):
        for full in (False, True):
            written = ReplyWriter(plan, times).write(result, full)
            assert orjson.loads(written) == orjson.loads(orjson.dumps(plain_reply(result, full, times)))


def ask(settings: Settings, plan: LookupPlan, columns: dict[str, list[Any]], as_of_us: int | None, now_us: int) -> Any:
    async def once() -> LookupResult:
        store = open_store_async(settings)
        try:
            return await lookup(store, plan, parse_request(plan, columns), as_of_us, now_us)
        finally:
            await store.aclose()

    return asyncio.run(once())


@pytest.fixture(scope="module")
def stored(settings: Settings) -> Catalog:
    """Sites 0 to 39 with a row each, and who 0 to 39 with an event each, at START_US."""
    made = definitions("few", "wall")
    worker = Worker(open_store(settings), OfflineStore(settings.data_dir), made)
    worker.start()
    rows = random_rows(random.Random(1), 40, START_US)
    for n, row in enumerate(rows):
        row |= {"who": str(n), "site": n, "word": "same", "ts": moment(START_US), "id": str(n)}
    EventStream(open_store(settings), "few").append(PARTS.name, "ndjson", ndjson(rows), len(rows))
    while worker.step(block_ms=1):
        pass
    return made


@pytest.mark.parametrize("n", [1, FEW_ROWS + 1])
def test_an_event_at_t_moves_t_for_a_window_and_not_for_a_plain_view(
    settings: Settings, stored: Catalog, n: int
) -> None:
    windowed = plan_features(stored, [f"by_who:{stored.views[0].features[0].name}"])
    plain = plan_features(stored, ["forever:word"])
    who, site = {"who": list(map(str, range(n)))}, {"site": list(range(n))}
    assert ask(settings, windowed, who, None, START_US).t_us.tolist() == [START_US + 1] * n
    assert ask(settings, plain, site, START_US, START_US).t_us.tolist() == [START_US] * n
    assert ask(settings, windowed, who, START_US + 1, START_US).columns[1].to_pylist() == [1] * n
    for plan, columns, as_of_us in ((windowed, who, START_US), (plain, site, START_US - 1)):
        with pytest.raises(AsOfError, match="row 0 holds an event"):
            ask(settings, plan, columns, as_of_us, START_US)


@pytest.mark.parametrize("view", ["forever", "by_who"])
def test_a_value_of_an_older_build_is_none_and_one_of_a_newer_build_is_refused(
    settings: Settings, stored: Catalog, view: str
) -> None:
    store, held = open_store(settings), stored.view(view)
    key, field = (
        entity_key(entity_prefix("few", held.entities), [39 if view == "forever" else "39"]),
        layout_field(held),
    )
    blob: Any = store.hget(key, field)
    feature = "word" if view == "forever" else held.features[0].name
    plan = plan_features(stored, [f"{view}:{feature}"])
    name, make = ("site", int) if view == "forever" else ("who", str)
    there, gone = ("same", None) if view == "forever" else (1, 0)
    try:
        for n in (1, FEW_ROWS + 1):
            columns = {name: [make(i) for i in range(40 - n, 40)]}
            for later, seen in ((-1, False), (0, True)):
                build = (build_of(blob) + later).to_bytes(8, "little")
                store.hset(key, field, blob[: BUILD.start] + build + blob[BUILD.stop :])
                found = ask(settings, plan, columns, None, START_US).columns[1].to_pylist()
                assert found == [there] * (n - 1) + [there if seen else gone]
            newer = (build_of(blob) + 1).to_bytes(8, "little")
            store.hset(key, field, blob[: BUILD.start] + newer + blob[BUILD.stop :])
            with pytest.raises(UnavailableError, match="builds it anew"):
                ask(settings, plan, columns, None, START_US)
    finally:
        store.hset(key, field, blob)
