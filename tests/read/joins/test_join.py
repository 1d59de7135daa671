from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from archived import (
    FILE_COLUMNS,
    HITS,
    LATEST,
    WORLD,
    Archive,
    file_rows,
    hit,
    labels,
    times,
)
from deltalake import write_deltalake
from naive import NaiveEvent, known_at, without_repeats
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
    plain_value,
    random_rows,
    with_key,
)
from seeds import oracle_seeds

from headrace.catalog.definitions import (
    BatchSource,
    Catalog,
    Column,
    DType,
    Entity,
    Service,
    Transform,
    ViewReference,
)
from headrace.catalog.expectations import parse_expectations
from headrace.errors import DataError
from headrace.read.history import History
from headrace.read.joins.join import iter_training_rows
from headrace.read.joins.key_codes import KeyCodes
from headrace.read.joins.key_hashes import key_hashes
from headrace.read.joins.limits import Limits, StepSizes
from headrace.read.joins.spill import Buckets, Space
from headrace.read.labels import TableLabels
from headrace.read.plans import plan_service
from headrace.stores.offline_reads import open_table
from headrace.stores.table_care import vacuum

MOMENT = pa.timestamp("us", "UTC")
PLENTY = 2_000_000_000
SOURCE = dataclasses.replace(PARTS, partitions=2)
SCENARIO = dataclasses.replace(catalog(), sources=(SOURCE,))


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "data")


@pytest.fixture
def history(archive: Archive, tmp_path: Path) -> History:
    (tmp_path / "repo").mkdir()
    return History(archive.store, tmp_path / "repo")


@pytest.fixture
def spill_dir(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, in which nothing may be left."""
    folder = tmp_path / "spill"
    folder.mkdir()
    yield folder
    assert not list(folder.iterdir())


def join(
    definitions: Catalog,
    service: str,
    rows: pa.Table,
    history: History,
    spill_dir: Path,
    memory_bytes: int = PLENTY,
    **options: Any,
) -> pa.Table:
    plan = plan_service(definitions, service, full_feature_names=True)
    tables = list(
        iter_training_rows(
            definitions,
            plan,
            TableLabels(rows),
            history,
            memory_bytes=memory_bytes,
            spill_dir=spill_dir,
            **options,
        )
    )
    return pa.concat_tables(tables).combine_chunks()


def cut(monkeypatch: pytest.MonkeyPatch, buckets: int, chunk_rows: int, label_rows: int, hold_bytes: int) -> None:
    """Has every join cut into so many buckets, chunks of rows and of labels, and spill beyond `hold_bytes`."""
    sizes = StepSizes(buckets, chunk_rows, label_rows, False, 7 * chunk_rows)
    monkeypatch.setattr(StepSizes, "of", lambda *_: sizes)
    monkeypatch.setattr(StepSizes, "label_rows_of", lambda *_: label_rows)
    monkeypatch.setattr(Limits, "of", lambda *_: Limits(hold_bytes, 10**9, 2))


CUTS = [(7, 10**6, 10**6, 10**9), (3, 20, 10**6, 5_000), (1, 33, 11, 1), (60, 5, 3, 20_000)]


def archived_events(rng: random.Random, archive: Archive) -> list[NaiveEvent]:
    """Late, repeated and null events, archived day by day in two partitions; those that count."""
    events, arrival = [], [0, 0]
    for step in range(8):
        rows = random_rows(rng, rng.randrange(1, 50), (80_000 + step * 1_000) * SECOND_US, ids=300)
        part = rng.randrange(2)
        offset = archive.add(SOURCE, rows, part)
        for i, row in enumerate(rows):
            event = naive_event(row, (part, offset, i), 0)
            arrival[part] = max(arrival[part], event.time_us)
            events.append(dataclasses.replace(event, arrival_us=arrival[part]))
    return without_repeats(events, SOURCE.dedup_horizon_us)


def random_labels(rng: random.Random, events: list[NaiveEvent], n: int = 50) -> pa.Table:
    """Labels at, beside and away from events, in no order, some keys null or unseen."""
    at = [rng.choice(events).time_us + rng.choice([-1, 0, 0, 1, 60 * SECOND_US]) for _ in range(n)]
    sites = pa.array([rng.choice([-1, 7, 9, None]) for _ in at], pa.int64())
    whos = pa.array([rng.choice([*WORDS, "unseen", None]) for _ in at], pa.string())
    moments = pa.array(at, pa.int64()).cast(MOMENT)
    return pa.table({"number": list(range(n)), "site": sites, "who": whos, "event_timestamp": moments})


def assert_oracle(table: pa.Table, events: list[NaiveEvent], as_known: bool) -> None:
    for view, parts in zip((BY_WHO, BY_BOTH, NEWEST), [(0,), (0, 1), (1,)], strict=True):
        mine = with_key(events, parts)
        for row in table.to_pylist():
            key, t_us = tuple((row["who"], row["site"])[part] for part in parts), plain_value(row["event_timestamp"])
            got = {f.name: plain_value(row[f"{view.name}__{f.name}"]) for f in view.features}
            assert_equals_oracle(view, got, known_at(mine, t_us) if as_known else mine, key, t_us)


@pytest.mark.parametrize("as_known", [False, True])
@pytest.mark.parametrize("seed", oracle_seeds(1))
def test_any_cut_equals_the_loop_to_the_last_bit(
    archive: Archive, history: History, spill_dir: Path, monkeypatch: pytest.MonkeyPatch, seed: int, as_known: bool
) -> None:
    rng = random.Random(seed)
    events = archived_events(rng, archive)
    rows = random_labels(rng, events)
    whole = join(SCENARIO, "everything", rows, history, spill_dir, as_known=as_known)
    assert whole.select(rows.column_names).equals(rows)
    assert_oracle(whole, events, as_known)
    for sizes in CUTS:
        with monkeypatch.context() as patched:
            cut(patched, *sizes)
            assert join(SCENARIO, "everything", rows, history, spill_dir, as_known=as_known).equals(whole), sizes


def test_little_memory_gives_the_same(archive: Archive, history: History, spill_dir: Path) -> None:
    rng = random.Random(5)
    for step in range(6):
        archive.add(SOURCE, random_rows(rng, 700, (80_000 + step * 1_000) * SECOND_US))
    rows = random_labels(rng, [NaiveEvent(0, 80_000 * SECOND_US + i * 10**6, (0, 0, 0)) for i in range(8000)], 2_000)
    seen: list[tuple[str, int, int]] = []
    little = join(SCENARIO, "everything", rows, history, spill_dir, 17_000_000, on_progress=lambda *at: seen.append(at))
    assert little.equals(join(SCENARIO, "everything", rows, history, spill_dir))
    done = [item[1] for item in seen]
    assert done == sorted(done) and {item[2] for item in seen} == {done[-1]}
    assert [*dict.fromkeys(item[0] for item in seen)] == ["by_who", "by_both", "newest", "rows"]


def test_too_little_memory_is_refused(archive: Archive, history: History, spill_dir: Path) -> None:
    archive.add(SOURCE, random_rows(random.Random(1), 500, 80_000 * SECOND_US))
    rows = random_labels(random.Random(2), [NaiveEvent(0, 80_100 * SECOND_US, (0, 0, 0))])
    with pytest.raises(DataError, match=r"500 rows that view 'by_who' reads at a time .* allow more memory"):
        join(SCENARIO, "everything", rows, history, spill_dir, 100_000)


def test_a_run_that_is_broken_off_leaves_nothing(
    archive: Archive, history: History, spill_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(3)
    rows = random_labels(rng, archived_events(rng, archive))
    cut(monkeypatch, 3, 20, 50, 1)
    plan = plan_service(SCENARIO, "everything", full_feature_names=True)
    options: dict[str, Any] = {"memory_bytes": PLENTY, "spill_dir": spill_dir}
    tables = iter_training_rows(SCENARIO, plan, TableLabels(rows), history, **options)
    next(tables)
    assert list(spill_dir.iterdir())
    tables.close()
    assert not list(spill_dir.iterdir())
    path = next(archive.store.events_path("parts").rglob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"\.parquet cannot be read as parquet"):
        next(iter_training_rows(SCENARIO, plan, TableLabels(rows), history, **options))


def test_files_that_are_swept_meanwhile_are_read_where_their_rows_went(
    archive: Archive, history: History, spill_dir: Path
) -> None:
    rng = random.Random(4)
    rows = random_labels(rng, archived_events(rng, archive))
    whole = join(SCENARIO, "everything", rows, history, spill_dir)
    swept: list[str] = []

    def sweep(what: str, done: int, total: int) -> None:
        if not swept:
            archive.store.compact("parts")
            table = open_table(archive.store.events_path("parts"))
            assert table is not None
            swept.extend(vacuum(table, 0))

    assert join(SCENARIO, "everything", rows, history, spill_dir, on_progress=sweep).equals(whole)
    assert len(swept) > 1


def test_nothing_beyond_the_archived_positions_counts(archive: Archive, history: History, spill_dir: Path) -> None:
    rng = random.Random(6)
    rows = random_labels(rng, archived_events(rng, archive))
    before = join(SCENARIO, "everything", rows, history, spill_dir)
    positions = {"parts": archive.store.positions(SOURCE)}
    archive.add(SOURCE, random_rows(rng, 40, 80_000 * SECOND_US), 0)
    held = dataclasses.replace(history, up_to=positions)
    assert not join(SCENARIO, "everything", rows, history, spill_dir).equals(before)
    assert join(SCENARIO, "everything", rows, held, spill_dir).equals(before)
    nothing = dataclasses.replace(history, up_to={})
    assert set(join(SCENARIO, "everything", rows, nothing, spill_dir)["by_who__count_*_60"].to_pylist()) == {0}


EXPLODING = """
import polars as pl
def copies(df):
    return df.with_columns(copy=pl.lit([0, 1, 2])).explode("copy").with_columns(word=pl.col("word") + "!")
"""
JUDGED = (*PARTS.columns, Column("copy", DType.INT64))


@pytest.mark.parametrize("lateness", [None, "max_lateness('120s')"])
def test_watermarks_and_transforms_do_not_depend_on_the_memory(
    archive: Archive, history: History, spill_dir: Path, monkeypatch: pytest.MonkeyPatch, lateness: str | None
) -> None:
    rng = random.Random(7)
    rows = random_labels(rng, archived_events(rng, archive))
    expectations = parse_expectations({"ts": [lateness]}, PARTS.columns, "ts", "view") if lateness else ()
    transform = Transform("polars", EXPLODING, "copies", JUDGED)
    view = dataclasses.replace(BY_WHO, transform=transform, expectations=expectations)
    definitions = dataclasses.replace(SCENARIO, views=(view, BY_BOTH, NEWEST))
    whole = join(definitions, "everything", rows, history, spill_dir)
    assert not whole.equals(join(SCENARIO, "everything", rows, history, spill_dir))
    cut(monkeypatch, 3, 20, 50, 3_000)
    assert join(definitions, "everything", rows, history, spill_dir).equals(whole)


def test_files_of_before_a_column_was_added_have_none(archive: Archive, history: History, spill_dir: Path) -> None:
    older = dataclasses.replace(HITS, columns=tuple(column for column in HITS.columns if column.name != "score"))
    archive.add(older, [{name: value for name, value in hit("a", 100).items() if name != "score"}])
    archive.add(HITS, [hit("a", 110, 7.0)])
    file_rows(history)
    table = join(WORLD, "last", labels(("a", 105), ("a", 115)), history, spill_dir)
    assert table.select(["latest__word", "latest__score"]).to_pylist() == [
        {"latest__word": "w", "latest__score": None},
        {"latest__word": "w", "latest__score": 7.0},
    ]


# Batch files

STATED = dataclasses.replace(
    LATEST,
    name="stated",
    kind="batch",
    source=None,
    ttl_us=0,
    batch=BatchSource("stated", "stated", "seen", (*FILE_COLUMNS, Column("made", DType.TIMESTAMP)), "parquet", "made"),
)


def stated(file_format: str) -> Catalog:
    batch = dataclasses.replace(STATED.batch, path=f"stated.{file_format}", file_format=file_format)  # type: ignore[type-var]
    view = dataclasses.replace(STATED, batch=batch)
    service = Service("stated", (ViewReference("stated", "stated", ("word", "score")),))
    return dataclasses.replace(WORLD, views=(view,), on_demand_views=(), services=(service,))


def write_stated(history: History, file_format: str, rows: list[tuple[str | None, float, float | None, str]]) -> None:
    """Rows of (who, seen, made, word) in seconds, the score their number."""
    who, seen, made, word = zip(*rows, strict=True)
    moments = [pa.array([None if s is None else int(s * SECOND_US) for s in at], pa.int64()) for at in (seen, made)]
    table = pa.table({
        "who": pa.array(who, pa.string()),
        "score": pa.array(range(len(rows)), pa.float32()),
        "word": pa.array(word, pa.string()),
        "seen": moments[0].cast(MOMENT),
        "made": moments[1].cast(MOMENT),
    })  # fmt: skip
    path = history.repo / f"stated.{file_format}"
    if file_format == "delta":
        write_deltalake(str(path), table)
    elif file_format == "csv":
        pacsv.write_csv(table, str(path))
    else:
        pq.write_table(table, path, row_group_size=3)


@pytest.mark.parametrize("file_format", ["parquet", "delta", "csv"])
@pytest.mark.parametrize("bucketed", [False, True])
def test_a_batch_file_counts_what_was_known_of_it(
    history: History, spill_dir: Path, monkeypatch: pytest.MonkeyPatch, file_format: str, bucketed: bool
) -> None:
    rows = [
        ("a", 10, 12, "early"), ("a", 20, 22, "twice"), ("a", 20, 30, "mended"), ("a", 40, None, "unstated"),
        (None, 20, 20, "nobody"), ("b", 50, 60, "later"), ("c", 20, 20, "first"), ("c", 20, 20, "second"),
    ]  # fmt: skip
    write_stated(history, file_format, rows)
    asked = labels(("a", 10), ("a", 13), ("a", 25), ("a", 35), ("a", 40), ("a", 41), ("b", 55), ("c", 20), ("c", 21))
    if bucketed:
        cut(monkeypatch, 3, 2, 2, 1)

    def words(as_known: bool) -> list[Any]:
        table = join(stated(file_format), "stated", asked, history, spill_dir, as_known=as_known)
        for score, word in zip(table["stated__score"].to_pylist(), table["stated__word"].to_pylist(), strict=True):
            assert (score is None) == (word is None) and (word is None or rows[int(score)][3] == word)
        found: list[Any] = table["stated__word"].to_pylist()
        return found

    assert words(False) == ["early", "early", "mended", "mended", "unstated", "unstated", "later", "second", "second"]
    assert words(True) == [None, "early", "twice", "mended", "mended", "unstated", None, None, "second"]


@pytest.mark.parametrize("as_known", [False, True])
def test_a_file_and_a_stream_show_one_newest_row(
    archive: Archive, history: History, spill_dir: Path, monkeypatch: pytest.MonkeyPatch, as_known: bool
) -> None:
    rng = random.Random(9)
    rows = [(rng.choice("abc"), rng.randrange(100), "file") for _ in range(60)]
    file_rows(history, *rows)
    events = [hit(rng.choice("abc"), rng.randrange(100) + 0.5, word="event") for _ in range(30)]
    archive.add(HITS, events[:15], arrived_us=60 * SECOND_US)
    archive.add(HITS, events[15:], arrived_us=120 * SECOND_US)
    asked = labels(*((rng.choice("abcd"), rng.randrange(130)) for _ in range(80)))
    whole = join(WORLD, "last", asked, history, spill_dir, as_known=as_known)
    assert {None, "file", "event"} == set(whole["latest__word"].to_pylist())
    for sizes in CUTS:
        with monkeypatch.context() as patched:
            cut(patched, *sizes)
            assert join(WORLD, "last", asked, history, spill_dir, as_known=as_known).equals(whole)
    happened = [(who, at, at, "file", 9.0) for who, at, _ in rows]
    arrivals = [60] * 15 + [120] * 15
    for event, at in zip(events, arrivals, strict=True):
        happened.append((event["who"], int(_seconds(event)), at, "event", event["score"]))
    for row in whole.to_pylist():
        t = row["event_timestamp"].timestamp()
        mine = [h for h in happened if h[0] == row["who"] and h[1] + (0.5 if h[3] == "event" else 0) <= t]
        mine = [h for h in mine if h[2] < t] if as_known else mine
        newest = max(mine, key=lambda h: h[1] + (0.5 if h[3] == "event" else 0), default=None)
        fresh = newest is not None and newest[1] + (0.5 if newest[3] == "event" else 0) >= t - 10
        assert row["latest__word"] == (newest[3] if newest is not None and fresh else None)


def _seconds(event: dict[str, Any]) -> float:
    return float(event["ts"][17:19]) + 60 * int(event["ts"][14:16])


# Keys


@pytest.mark.parametrize("dtype", [DType.INT32, DType.INT64, DType.STRING])
def test_keys_of_every_type_meet_their_events(
    archive: Archive, history: History, spill_dir: Path, monkeypatch: pytest.MonkeyPatch, dtype: DType
) -> None:
    whos: list[Any] = (
        ["", "a", "x" * 8, "x" * 9, "ünï", "0"] if dtype is DType.STRING else [0, 1, -1, 7, 2**31 - 1, -(2**31)]
    )
    kind = {DType.INT32: pa.int32(), DType.INT64: pa.int64(), DType.STRING: pa.string()}[dtype]
    source = dataclasses.replace(HITS, name=f"hits_{dtype}", columns=(Column("who", dtype), *HITS.columns[1:]))
    entities = (Entity("user", "who", dtype),)
    view = dataclasses.replace(WORLD.view("counted"), source=source.name)
    definitions = dataclasses.replace(WORLD, entities=entities, sources=(source,), views=(view,), on_demand_views=())
    archive.add(source, [hit(who, 100 + i) for i, who in enumerate(whos) for _ in range(i + 1)])
    rows = pa.table({
        "who": pa.array([*whos, None, *reversed(whos)], kind),
        "event_timestamp": times(*[120] * (2 * len(whos) + 1)),
    })  # fmt: skip
    expected = [*range(1, 7), 0, *range(6, 0, -1)]
    for sizes in (None, *CUTS):
        with monkeypatch.context() as patched:
            if sizes is not None:
                cut(patched, *sizes)
            assert join(definitions, "count", rows, history, spill_dir)["counted__count_*_60"].to_pylist() == expected


def test_a_view_without_entities_counts_all_events(
    archive: Archive, history: History, spill_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = dataclasses.replace(WORLD.view("counted"), entities=())
    definitions = dataclasses.replace(WORLD, views=(view,), on_demand_views=())
    archive.add(HITS, [hit(who, 100 + i) for i, who in enumerate(["a", "b", None, "c"])])
    rows = pa.table({"event_timestamp": times(100, 102, 150, 300)})
    for sizes in (None, *CUTS):
        with monkeypatch.context() as patched:
            if sizes is not None:
                cut(patched, *sizes)
            found = join(definitions, "count", rows, history, spill_dir)["counted__count_*_60"].to_pylist()
            assert found == [0, 2, 4, 0]


TEXTS = ["", "a", "b", "ab", "x" * 7, "x" * 8, "x" * 9, "x" * 16, "x" * 17, "ü", "üü", None]


def test_equal_keys_have_equal_hashes_wherever_they_lie() -> None:
    column = pa.array([*TEXTS, *TEXTS], pa.string())
    whole = key_hashes([column], len(column))
    assert (whole[: len(TEXTS)] == whole[len(TEXTS) :]).all()
    assert len(set(whole.tolist())) == len(TEXTS) - 1  # a null is an empty text
    assert key_hashes([column.slice(3, 9)], 9).tolist() == whole[3:12].tolist()
    numbers = pa.array([1, 2, None, 1], pa.int32())
    pairs = key_hashes([numbers, column.slice(0, 4)], 4)
    assert len(set(pairs.tolist())) == 4
    assert key_hashes([numbers], 4).tolist() == key_hashes([numbers.cast(pa.int64())], 4).tolist()
    assert key_hashes([], 3).tolist() == [key_hashes([], 1)[0]] * 3


@pytest.mark.parametrize("far", [1, 2**40])
def test_codes_of_whole_numbers_are_those_of_a_dictionary(far: int) -> None:
    held = pa.array([5 * far, None, -3 * far, 5 * far, 0], pa.int64())
    codes = KeyCodes([held], 5)
    other = pa.array([0, 5 * far, 1, None, -3 * far, 2**62, -(2**62)], pa.int64())
    assert codes.labels.tolist() == [0, -1, 1, 0, 2]
    assert codes.of([other], 7).tolist() == [2, 0, -1, -1, 1, -1, -1]


# Buckets


def test_buckets_keep_rows_in_order_in_memory_and_on_disk(spill_dir: Path) -> None:
    schema = pa.schema([("n", pa.int64()), ("text", pa.string())])
    n = 2_000
    texts = [None if i % 7 == 0 else "x" * (i % 50) for i in range(n)]
    rows = pa.table({"n": list(range(n)), "text": texts}, schema=schema)
    for limit_bytes in (None, 30_000, 0):
        space = Space(spill_dir, limit_bytes)
        buckets = Buckets(schema, 5, space)
        for start in range(0, n, 900):
            part = rows.slice(start, 900)
            buckets.add(part, np.asarray(part["n"]) * 7 % 5)
        assert buckets.on_disk == (limit_bytes is not None) == bool(list(spill_dir.iterdir()))
        for bucket in range(5):
            numbers = [i for i in range(n) if i * 7 % 5 == bucket]
            assert buckets.rows(bucket) == len(numbers)
            assert buckets.table(bucket).equals(rows.take(numbers))
            assert pa.concat_tables(buckets.tables(bucket, 250)).equals(rows.take(numbers))
        buckets.close()
        assert space.held_bytes == 0


def test_a_disk_that_is_full_is_said_so(spill_dir: Path) -> None:
    buckets = Buckets(pa.schema([("n", pa.int64())]), 1, Space(spill_dir, 0))
    buckets.add(pa.table({"n": [1]}), np.array([0]))
    held = buckets._file
    with Path("/dev/full").open("r+b", buffering=0) as full:
        buckets._file = full
        with pytest.raises(DataError, match=r"make room there, or allow more memory"):
            buckets.add(pa.table({"n": [2]}), np.array([0]))
    buckets._file = held
    buckets.close()
