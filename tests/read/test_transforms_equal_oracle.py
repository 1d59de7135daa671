from __future__ import annotations

import asyncio
import dataclasses
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis.asyncio
from naive import NaiveEvent, plain_row, without_repeats
from scenario import (
    PARTS,
    SECOND_US,
    WORDS,
    assert_equals_oracle,
    moment,
    naive_event,
    ndjson,
    plain_value,
    random_rows,
)

from headrace.catalog.definitions import (
    Aggregation,
    Catalog,
    Column,
    DType,
    Entity,
    FeatureView,
    Service,
    Transform,
    ViewReference,
)
from headrace.catalog.expectations import parse_expectations
from headrace.read.dataset import build_dataset
from headrace.read.explain import explain
from headrace.read.history import History
from headrace.read.lookup import lookup, parse_request, plan_service
from headrace.settings import Settings
from headrace.stores.connection import open_store, open_store_async
from headrace.stores.letters import pending_letters
from headrace.stores.offline import OfflineStore
from headrace.stores.stream import EventStream
from headrace.windows.functions import output_dtype
from headrace.windows.window import default_hop_us
from materialize.archiver import Archiver
from materialize.worker import Worker

PANDAS = """
def spread(df):
    if (df["word"] == "50%,").any():
        raise ValueError("poison")
    df = df[df["site"] != 0]
    df = df.assign(doubled=df["real"] * 2, copies=[list(range(abs(int(s)) % 3)) if s == s else [] for s in df["short"]])
    df = df.explode("copies").dropna(subset=["copies"])
    return df.assign(copy=df["copies"].astype("int64")).sort_values("_row", ascending=False, kind="stable")
"""
POLARS = """
import polars as pl
def spread(df):
    if (df["word"] == "50%,").any():
        raise ValueError("poison")
    copies = pl.int_ranges(pl.col("short").cast(pl.Int64).abs().fill_null(0) % 3)
    df = df.filter((pl.col("site") != 0) | pl.col("site").is_null())
    df = df.with_columns(doubled=pl.col("real") * 2, copy=copies).explode("copy").drop_nulls("copy")
    return df.lazy()
"""
MOVING = """
import polars as pl
def spread(df):
    return df.with_columns(pl.col("ts") - pl.duration(seconds=100), doubled=pl.col("real"), copy=pl.lit(1))
"""
OUTPUT = (
    Column("who", DType.STRING),
    Column("doubled", DType.FLOAT64),
    Column("copy", DType.INT64),
    Column("word", DType.STRING),
    Column("ts", DType.TIMESTAMP),
)
TYPES = {column.name: column.dtype for column in OUTPUT}
RULES = {"real": ["between(-1e9, 5e8)"], "whole": ["not_null: warn"], "ts": ["max_lateness('400s'): drop"]}


def aggregation(function: str, column: str, window_s: int | None) -> Aggregation:
    dtype = TYPES.get(column, DType.INT64)
    window_us = None if window_s is None else window_s * SECOND_US
    hop_us = default_hop_us(window_us) if window_us else 0
    output = output_dtype(function, column, dtype)
    return Aggregation(f"{function}_{column}_{window_s}", function, column, window_us, hop_us, dtype, output)


AGGREGATIONS = tuple(
    aggregation(*given)
    for given in [
        ("count", "*", 60),
        ("sum", "doubled", 600),
        ("sum", "copy", None),
        ("last", "copy", 600),
        ("first", "word", None),
        ("last_5", "copy", None),
        ("count_distinct", "word", 600),
    ]
)
FEATURES = tuple(Column(agg.feature, agg.dtype) for agg in AGGREGATIONS)
NEWEST = (Column("word", DType.STRING), Column("copy", DType.INT64), Column("doubled", DType.FLOAT64))
TTL_US = 300 * SECOND_US


def definitions(project: str, code: str, mode: Any, clock: Any = "event") -> Catalog:
    transform = Transform(mode, code, "spread", OUTPUT, moves_time='pl.col("ts")' in code)
    expected = parse_expectations(RULES, PARTS.columns, "ts", "view")
    view = FeatureView(
        "spread", "windowed", ("who",), FEATURES, "f", source="parts", aggregations=AGGREGATIONS,
        transform=transform, expectations=expected,
    )  # fmt: skip
    newest = FeatureView(
        "newest", "plain", ("who",), NEWEST, "n", source="parts", ttl_us=TTL_US, transform=transform,
        expectations=expected,
    )  # fmt: skip
    service = Service(
        "all", tuple(ViewReference(v.name, v.name, tuple(f.name for f in v.features)) for v in (view, newest))
    )
    entities = (Entity("who", "who", DType.STRING),)
    return Catalog(project, 1, clock, entities, (PARTS,), (view, newest), (), (service,))


def slow_share(events: list[NaiveEvent], code: str) -> tuple[list[NaiveEvent], set[tuple[int, int, int]]]:
    """What the view counts of `events` and the positions of its dead letters, event by event."""
    once = {event.position for event in without_repeats(events, PARTS.dedup_horizon_us)}
    watermark, rows, dead = None, [], set()
    for event in sorted(events, key=lambda e: e.position):
        late = watermark is not None and watermark - event.time_us > 400 * SECOND_US
        watermark = event.time_us if watermark is None else max(watermark, event.time_us)
        real = event.values["real"]
        if event.position not in once:
            continue
        if real is not None and not -1e9 <= real <= 5e8:
            dead.add(event.position)
        elif late:
            continue
        elif code == MOVING:
            values = {"doubled": real, "copy": 1, "word": event.values["word"]}
            rows.append(NaiveEvent((event.key[0],), event.time_us - 100 * SECOND_US, event.position, values))
        elif event.values["word"] == "50%,":
            dead.add(event.position)
        elif event.key[1] != 0:
            doubled = None if real is None else real * 2
            for copy in range(abs(event.values["short"] or 0) % 3):
                values = {"doubled": doubled, "copy": copy, "word": event.values["word"]}
                place = (*event.position[:2], event.position[2] * 10 + copy)
                rows.append(NaiveEvent((event.key[0],), event.time_us, place, values))
    return [row for row in rows if None not in row.key], dead


def ask(settings: Settings, catalog: Catalog) -> Any:
    async def once() -> Any:
        store: redis.asyncio.Redis = open_store_async(settings)
        plan = plan_service(catalog, "all", full_feature_names=False)
        try:
            return await lookup(store, plan, parse_request(plan, {"who": WORDS}), None, 0)
        finally:
            await store.aclose()

    return asyncio.run(once())


CASES = [(PANDAS, "pandas"), (POLARS, "polars"), (MOVING, "polars")]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("code", "mode"), CASES, ids=["pandas", "polars", "moving"])
def test_stream_and_training_equal_the_loop(
    settings: Settings, tmp_path: Path, code: str, mode: str, seed: int
) -> None:
    rng = random.Random(seed)
    catalog = definitions(f"spread{CASES.index((code, mode))}{seed}", code, mode)
    folder = settings.model_copy(update={"data_dir": tmp_path / "data"})
    store, offline = open_store(settings), OfflineStore(folder.data_dir)
    worker = fresh_worker(store, offline, catalog)
    history: list[NaiveEvent] = []
    start_us, arrival = 1_000_000 * SECOND_US, 0
    for _ in range(5):
        for _ in range(rng.randrange(1, 4)):
            rows = random_rows(rng, rng.randrange(1, 40), start_us, ids=300)
            position = EventStream(store, catalog.project).append("parts", "ndjson", ndjson(rows), len(rows))
            for i, row in enumerate(rows):
                event = naive_event(row, (0, position.offset, i), 0)
                arrival = max(arrival, event.time_us)
                history.append(naive_event(row, (0, position.offset, i), arrival))
        if rng.random() < 0.4:
            worker = fresh_worker(store, offline, catalog)
        while worker.step(block_ms=1):
            pass
        start_us += rng.randrange(200) * SECOND_US
        mine, dead = slow_share(history, code)
        assert_online(settings, catalog, mine)
        letters = pending_letters(store, catalog.project)[0].to_pylist()
        assert {(letter["partition"], letter["offset"], letter["index"]) for letter in letters} == dead
        assert {letter["view"] for letter in letters} == ({"spread", "newest"} if dead else set())
    archive(store, folder, catalog)
    labels = random_labels(rng, history)
    found = build_dataset(catalog, "all", labels, History(offline, tmp_path)).to_pylist()
    for row in found:
        got = {f.name: plain_value(row[f.name]) for f in FEATURES}
        assert_equals_oracle(catalog.views[0], got, mine, (row["who"],), plain_value(row["event_timestamp"]))
        assert_newest(row, mine, row["who"], plain_value(row["event_timestamp"]))
    assert explain(store, History(offline, tmp_path), catalog, "spread", ["a"], None, 0).agree


def fresh_worker(store: Any, offline: OfflineStore, catalog: Catalog) -> Worker:
    worker = Worker(store, offline, catalog)
    worker.start()
    return worker


def assert_online(settings: Settings, catalog: Catalog, mine: list[NaiveEvent]) -> None:
    result = ask(settings, catalog)
    columns = dict(zip(result.names, (column.to_pylist() for column in result.columns), strict=True))
    for row, who in enumerate(WORDS):
        got = {f.name: plain_value(columns[f.name][row]) for f in FEATURES}
        assert_equals_oracle(catalog.views[0], got, mine, (who,), int(result.t_us[row]))
        held = {name: values[row] for name, values in columns.items()}
        assert_newest(held, mine, who, int(result.t_us[row]))


def assert_newest(row: dict[str, Any], mine: list[NaiveEvent], who: Any, t_us: int) -> None:
    """The plain view's values are those of the last row that the transform made of the newest event."""
    truth = plain_row(mine, (who,), t_us, TTL_US)
    expected = truth if isinstance(truth, dict) else dict.fromkeys(f.name for f in NEWEST)
    assert {f.name: row[f.name] for f in NEWEST} == {f.name: expected[f.name] for f in NEWEST}


def archive(store: Any, settings: Settings, catalog: Catalog) -> None:
    """Run the archiver over what the stream holds, dead letters of views among it."""
    from headrace.stores.catalogs import save_catalog

    save_catalog(store, settings, catalog)
    settings.repo.mkdir(exist_ok=True)
    (settings.repo / "feature_store.yaml").write_text(f"project: {catalog.project}\n")
    archiver = Archiver(settings, store)
    while archiver.step():
        pass
    archiver.flush()
    assert pending_letters(store, catalog.project)[2] == 0


def random_labels(rng: random.Random, events: list[NaiveEvent]) -> pa.Table:
    at = [rng.choice(events).time_us + rng.choice([-1, 0, 1, 60 * SECOND_US]) for _ in range(60)]
    whos = [rng.choice([*WORDS, "unseen", None]) for _ in at]
    return pa.table({"who": whos, "event_timestamp": pa.array(at, pa.int64()).cast(pa.timestamp("us", "UTC"))})


def test_one_poisonous_event_costs_one_event(settings: Settings, tmp_path: Path) -> None:
    catalog = dataclasses.replace(definitions("poison", PANDAS, "pandas"))
    store = open_store(settings)
    worker = fresh_worker(store, OfflineStore(tmp_path), catalog)
    rows = [
        {"id": str(i), "who": "a", "short": 2, "word": "50%," if i == 700 else "w", "ts": moment(SECOND_US)}
        for i in range(1_000)
    ]
    EventStream(store, "poison").append("parts", "ndjson", ndjson(rows), len(rows))
    while worker.step(block_ms=1):
        pass
    result = ask(settings, catalog)
    counts = dict(zip(result.names, result.columns, strict=True))["count_*_60"].to_pylist()
    assert counts[WORDS.index("a")] == 2 * 999
    letter, other = pending_letters(store, "poison")[0].to_pylist()
    assert [(each["view"], each["index"]) for each in (letter, other)] == [("spread", 700), ("newest", 700)]
    assert letter["reason"] == "transform: ValueError: poison"
    assert b'"word":"50%,"' in letter["payload"]


def test_a_function_that_cannot_run_here_stops_its_own_source(settings: Settings, tmp_path: Path) -> None:
    good = definitions("missing", PANDAS, "pandas")
    others = dataclasses.replace(PARTS, name="others")
    broken = "import no_such_module\n" + PANDAS
    views = tuple(
        dataclasses.replace(view, transform=dataclasses.replace(view.transform, code=broken))
        for view in good.views
        if view.transform
    )
    counts = dataclasses.replace(
        good.views[0], name="counts", source="others", transform=None, expectations=(),
        aggregations=AGGREGATIONS[:1], features=FEATURES[:1],
    )  # fmt: skip
    service = Service("all", (ViewReference("counts", "counts", (FEATURES[0].name,)),))
    catalog = dataclasses.replace(good, sources=(PARTS, others), views=(*views, counts), services=(service,))
    store = open_store(settings)
    worker = fresh_worker(store, OfflineStore(tmp_path), catalog)
    for _ in range(2):
        rows = [{"id": None, "who": "a", "short": 2, "word": "w", "ts": moment(SECOND_US)}] * 3
        for source in ("parts", "others"):
            EventStream(store, "missing").append(source, "ndjson", ndjson(rows), len(rows))
        while worker.step(block_ms=1):
            pass
        assert "no_such_module" in worker._stops.held["parts", 0]
        worker = fresh_worker(store, OfflineStore(tmp_path), catalog)
    result = ask(settings, catalog)
    assert dict(zip(result.names, result.columns, strict=True))["count_*_60"].to_pylist()[WORDS.index("a")] == 6
    applied = worker._markers.applied("source", [("parts", 0), ("others", 0)])
    assert [held.total if held else 0 for held in applied.values()] == [0, 6]
