from __future__ import annotations

import dataclasses
import gc
import os
import random
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from archived import COUNTED, HITS, MOMENT, WORLD, Archive, file_rows, hit, labels, times
from deltalake import DeltaTable, write_deltalake
from naive import NaiveEvent, window_value
from scenario import (
    BY_BOTH,
    BY_WHO,
    NEWEST,
    PARTS,
    SECOND_US,
    WORDS,
    assert_equals_oracle,
    naive_event,
    plain_value,
    random_rows,
    with_key,
)
from scenario import catalog as scenario_catalog
from seeds import oracle_seeds

import headrace
from headrace.catalog.definitions import Catalog
from headrace.errors import DataError, RequestError, UnknownNameError
from headrace.read.fingerprints import ColumnHash
from headrace.read.history import History
from headrace.read.manifest import read_manifest
from headrace.read.training_set import manifest_path
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.table_care import drop_before
from headrace.stores.table_writer import GROUP_ROWS, TableWriter, scratch_beside
from headrace.stores.tombstones import Tombstone, Tombstones, mirror_tombstones


def made(folder: Path, catalog: Catalog = WORLD) -> Settings:
    """Settings of a project that holds `catalog`."""
    settings = Settings(repo=folder / "repo", data_dir=folder / "data")
    settings.repo.mkdir(exist_ok=True)
    with open_store(settings) as store:
        save_catalog(store, settings, catalog)
    return settings


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A project that no test changes: a is hit at 100 s and 200 s, b at 150 s; c is in the batch file, at 100 s."""
    settings = made(tmp_path_factory.mktemp("shared"))
    archive = Archive(settings.data_dir)
    archive.add(HITS, [hit("a", 100, word="x"), hit("b", 150, word="y")])
    archive.add(HITS, [hit("a", 200, word="z", score=2.0), hit(None, 120, word="nobody")])
    file_rows(History(archive.store, settings.repo), ("c", 100, "file"))
    yield settings
    detach(settings.data_dir)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """The archive of the test's own project: a is hit at 100 s, b at 150 s."""
    archive = Archive(tmp_path / "data")
    archive.add(HITS, [hit("a", 100, word="x"), hit("b", 150, word="y")])
    return archive


@pytest.fixture
def own(archive: Archive, tmp_path: Path) -> Iterator[Settings]:
    """A project of the test's own."""
    settings = made(tmp_path)
    file_rows(History(archive.store, settings.repo), ("c", 100, "file"))
    yield settings
    detach(settings.data_dir)


GIVEN = labels(("b", 151), ("a", 101), ("a", 205), ("b", 151), (None, 101), why=["1", "2", "3", "1", "5"])
WORDS_OF_GIVEN = ["y", "x", "z", "y", None]


def parquet(folder: Path) -> Path:
    pq.write_table(GIVEN, folder / "l.parquet", row_group_size=2)
    return folder / "l.parquet"


def parquet_folder(folder: Path) -> Path:
    (folder / "parts").mkdir()
    for i, part in enumerate((GIVEN.slice(0, 2), GIVEN.slice(2))):
        pq.write_table(part, folder / "parts" / f"{i}.parquet")
    return folder / "parts"


def delta(folder: Path) -> Path:
    write_deltalake(folder / "delta", GIVEN.slice(3))
    write_deltalake(folder / "delta", GIVEN, mode="overwrite")
    return folder / "delta"


def csv(folder: Path) -> Path:
    pacsv.write_csv(GIVEN, folder / "l.csv")
    return folder / "l.csv"


def ndjson(folder: Path) -> Path:
    rows = [{**row, "event_timestamp": row["event_timestamp"].isoformat()} for row in GIVEN.to_pylist()]
    (folder / "l.ndjson").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return folder / "l.ndjson"


VIEWS = {"who": pa.string_view(), "why": pa.string_view()}
FORMS: list[Callable[[Path], Any]] = [parquet, parquet_folder, delta, csv, ndjson]
FORMS += [lambda _: GIVEN, lambda _: GIVEN.to_pandas(), lambda _: pl.from_arrow(GIVEN)]
FORMS += [
    lambda _: pa.table([GIVEN[name].cast(VIEWS.get(name, MOMENT)) for name in GIVEN.column_names], GIVEN.column_names)
]


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_every_form_give_the_same_rows_in_their_order(
    shared: Settings, tmp_path: Path, form: Callable[[Path], Any]
) -> None:
    rows = headrace.training_set("last", form(tmp_path), settings=shared).to_arrow()
    assert rows.column_names == ["who", "event_timestamp", "why", "word", "score"]
    assert rows["word"].to_pylist() == WORDS_OF_GIVEN
    assert rows["score"].to_pylist() == [1.0, 1.0, 2.0, 1.0, None]
    assert [str(why) for why in rows["why"].to_pylist()] == GIVEN["why"].to_pylist()
    assert rows["event_timestamp"].cast(MOMENT).equals(GIVEN["event_timestamp"])


def test_references_stand_for_a_service(shared: Settings) -> None:
    wanted = ["counted:count_*_60", "latest:word"]
    rows = headrace.training_set(wanted, GIVEN, settings=shared, full_feature_names=True).to_arrow()
    assert rows.column_names[3:] == ["counted__count_*_60", "latest__word"]
    assert rows["counted__count_*_60"].to_pylist() == [1, 1, 1, 1, 0] and rows["latest__word"].to_pylist() == (
        WORDS_OF_GIVEN
    )


def test_every_way_out_gives_the_same_rows(shared: Settings, tmp_path: Path) -> None:
    rows = headrace.training_set("last", GIVEN, settings=shared)
    table = rows.to_arrow()
    assert pa.Table.from_batches(rows.to_batches()).equals(table)
    assert rows.to_pandas()["word"].tolist() == WORDS_OF_GIVEN
    assert rows.to_polars()["word"].to_list() == WORDS_OF_GIVEN
    assert pq.read_table(rows.to_parquet(tmp_path / "deep" / "r.parquet")).equals(table)
    assert pacsv.read_csv(rows.to_csv(tmp_path / "r.csv"))["who"].to_pylist()[:4] == ["b", "a", "a", "b"]
    assert rows.num_rows == 5 and rows.features == ("word", "score")


def test_the_past_of_a_training_set_is_that_of_its_making(archive: Archive, own: Settings) -> None:
    rows = headrace.training_set("last", labels(("a", 105)), settings=own)
    archive.add(HITS, [hit("a", 104, word="later")])
    assert rows.to_arrow()["word"].to_pylist() == ["x"]
    assert headrace.training_set("last", labels(("a", 105)), settings=own).to_arrow()["word"].to_pylist() == ["later"]


# The manifest.


def test_the_manifest_says_what_the_rows_were_built_from_and_what_came_out(own: Settings, tmp_path: Path) -> None:
    rows = headrace.training_set("last", parquet_of(tmp_path, GIVEN), settings=own)
    assert rows.manifest.rows is None
    out = rows.to_parquet(tmp_path / "out.parquet")
    found = read_manifest(manifest_path(out))
    assert found == dataclasses.replace(rows.manifest, created_at=found.created_at)
    assert (found.project, found.catalog_version, found.features, found.rows) == ("test", 1, "last", 5)
    assert found.positions == {"hits": {0: 1}, "writes/latest": {}}
    assert [item.path for item in found.batch_files] == ["latest.parquet"]
    assert found.labels["kind"] == "file" and found.labels["path"] == str(tmp_path / "labels.parquet")
    assert found.null_rates == {"word": 0.4, "score": 0.4}
    assert [view.name for view in found.catalog.views] == ["latest"] and not found.catalog.on_demand_views
    assert not list(tmp_path.glob(".*"))


def parquet_of(folder: Path, table: pa.Table) -> Path:
    pq.write_table(table, folder / "labels.parquet")
    return folder / "labels.parquet"


def test_the_same_rows_are_built_again_after_events_compaction_vacuum_and_another_apply(
    archive: Archive, own: Settings, tmp_path: Path
) -> None:
    given = parquet_of(tmp_path, GIVEN.append_column("bonus", pa.array([1, 2, 3, 4, 5])).drop_columns(["why"]))
    first = headrace.training_set("all", given, settings=own).to_parquet(tmp_path / "first.parquet")
    for i in range(1, 4):
        archive.add(HITS, [hit("a", 100.5, word=f"late{i}"), hit("b", 150.5, word="late")])
    table = DeltaTable(str(archive.store.events_path("hits")))
    table.optimize.compact()
    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    changed = dataclasses.replace(WORLD, version=2, views=(COUNTED,), on_demand_views=(), services=())
    with open_store(own) as store:
        save_catalog(store, own, changed)
    with pytest.raises(UnknownNameError):
        headrace.training_set("all", given, settings=own)
    with pytest.raises(RequestError, match=r"functions run when its rows are built.*ratio.*--trust-functions"):
        headrace.rebuild_training_set(manifest_path(first), settings=own)
    again = headrace.rebuild_training_set(manifest_path(first), settings=own, trust_functions=True)
    assert again.to_arrow().equals(pq.read_table(first)) and again.differences == ()
    second = again.to_parquet(tmp_path / "second.parquet")
    assert read_manifest(manifest_path(second)).columns == read_manifest(manifest_path(first)).columns


def test_functions_that_the_catalog_still_has_need_no_trust(own: Settings, tmp_path: Path) -> None:
    given = labels(("a", 101), bonus=[1])
    out = headrace.training_set("all", given, settings=own).to_parquet(tmp_path / "out.parquet")
    assert headrace.rebuild_training_set(manifest_path(out), given, settings=own).to_arrow().equals(pq.read_table(out))


def test_a_batch_file_that_changed_is_refused_or_stated(archive: Archive, own: Settings, tmp_path: Path) -> None:
    out = headrace.training_set("last", labels(("c", 101)), settings=own).to_parquet(tmp_path / "out.parquet")
    given, manifest = labels(("c", 101)), manifest_path(out)
    file_rows(History(archive.store, own.repo), ("c", 100, "corrected"))
    with pytest.raises(DataError, match=r"the file latest.parquet of batch source 'file' is not what it was.*allow"):
        headrace.rebuild_training_set(manifest, given, settings=own)
    again = headrace.rebuild_training_set(manifest, given, settings=own, allow_changed=True)
    assert again.to_arrow()["word"].to_pylist() == ["corrected"]
    assert [text.split(" of ")[0] for text in again.differences] == ["the file latest.parquet", "the values"]
    again.to_parquet(tmp_path / "again.parquet")
    assert read_manifest(manifest_path(tmp_path / "again.parquet")).differences == again.differences


def test_labels_must_be_those_of_the_manifest(own: Settings, tmp_path: Path) -> None:
    out = headrace.training_set("last", GIVEN, settings=own).to_parquet(tmp_path / "out.parquet")
    with pytest.raises(RequestError, match="built from labels in memory"):
        headrace.rebuild_training_set(manifest_path(out), settings=own)
    with pytest.raises(DataError, match="the labels are not those of the manifest"):
        headrace.rebuild_training_set(manifest_path(out), GIVEN.slice(1), settings=own)
    chunks = pa.concat_tables([GIVEN.slice(0, 2), GIVEN.slice(2)])
    assert headrace.rebuild_training_set(manifest_path(out), chunks, settings=own).to_arrow()["word"].null_count == 2


def test_a_file_written_while_rows_are_built_is_not_described(own: Settings, tmp_path: Path) -> None:
    given = parquet_of(tmp_path, GIVEN)
    rows = headrace.training_set("last", given, settings=own)
    rows.to_arrow()
    parquet_of(tmp_path, GIVEN.slice(0, 1))
    with pytest.raises(DataError, match="was changed while rows were built"):
        rows.to_parquet(tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists() and not list(tmp_path.glob(".*"))


def test_what_was_forgotten_since_is_refused_or_stated(own: Settings, tmp_path: Path) -> None:
    out = headrace.training_set("last", GIVEN, settings=own).to_parquet(tmp_path / "out.parquet")
    gone = Tombstone("00", ("user",), 0, {"hits|0": (1, None)})
    mirror_tombstones(own.data_dir / "offline", Tombstones(b"salt", [gone]))
    with pytest.raises(DataError, match=r"other keys are forgotten \(1, then 0\), and their rows gone"):
        headrace.rebuild_training_set(manifest_path(out), GIVEN, settings=own)
    again = headrace.rebuild_training_set(manifest_path(out), GIVEN, settings=own, allow_changed=True)
    assert again.to_arrow().num_rows == 5
    assert again.differences == ("other keys are forgotten (1, then 0), and their rows gone",)


def test_what_retention_removed_is_refused(archive: Archive, own: Settings, tmp_path: Path) -> None:
    later = 3 * 86_400
    archive.add(HITS, [hit("a", later)])
    given = labels(("a", later + 1), ("a", 105))
    out = headrace.training_set("count", given, settings=own).to_parquet(tmp_path / "out.parquet")
    drop_before(archive.store, "hits", 86_400 * SECOND_US)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match="Retention has left the events of 'hits' from 1970-01-02"):
        headrace.rebuild_training_set(manifest_path(out), given, settings=own).to_parquet(tmp_path / "again.parquet")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:-40], "cannot be read as a manifest"),
        (lambda raw: b"[1]", "is no manifest of a training set"),
        (lambda raw: raw.replace(b'"format": 1,\n  "kind"', b'"format": 9,\n  "kind"'), "another format than 1"),
        (lambda raw: raw.replace(b'"positions"', b'"position"'), "no whole manifest"),
    ],
)
def test_a_broken_manifest_is_refused(
    shared: Settings, tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    out = headrace.training_set("last", GIVEN, settings=shared).to_parquet(tmp_path / "out.parquet")
    manifest_path(out).write_bytes(change(manifest_path(out).read_bytes()))
    with pytest.raises(DataError, match=message):
        headrace.rebuild_training_set(manifest_path(out), GIVEN, settings=shared)


def test_a_manifest_of_another_project_is_refused(shared: Settings, tmp_path: Path) -> None:
    rows = headrace.training_set("last", GIVEN, settings=shared)
    with pytest.raises(RequestError, match="of one project"):
        headrace.rebuild_training_set(dataclasses.replace(rows.manifest, project="other"), GIVEN, settings=shared)


# Grids and all entities.


def test_a_grid_is_every_entity_at_every_moment_before_its_end(shared: Settings) -> None:
    listed = pa.table({"who": ["a", "b"], "kind": [1, 2]})
    span = {"start": "1970-01-01T00:01:40", "end": "1970-01-01T00:03:20Z", "every": "50s"}
    rows = headrace.training_set("count", headrace.grid(listed, **span), settings=shared).to_arrow()
    assert rows.column_names == ["who", "kind", "event_timestamp", "count_*_60"]
    assert rows["who"].to_pylist() == ["a", "b", "a", "b"] and rows["kind"].to_pylist() == [1, 2, 1, 2]
    assert rows["event_timestamp"].combine_chunks().equals(times(100, 100, 150, 150))
    assert rows["count_*_60"].to_pylist() == [0, 0, 1, 0]
    longer = headrace.grid(listed, **(span | {"end": datetime(1970, 1, 1, 0, 3, 20, 1, UTC)}))
    assert headrace.training_set("count", longer, settings=shared).num_rows == 6


def test_a_long_grid_comes_in_batches_and_equals_written_labels(shared: Settings) -> None:
    listed = pa.table({"who": ["a", "b", None]})
    asked = headrace.grid(listed, start=datetime.fromtimestamp(0, UTC), end="1970-01-02T00:00", every="1s")
    rows = headrace.training_set("count", asked, settings=shared)
    written = pa.table({
        "who": np.tile(np.array(["a", "b", None]), 86_400),
        "event_timestamp": pa.array(np.repeat(np.arange(86_400) * SECOND_US, 3)).cast(MOMENT),
    })  # fmt: skip
    assert rows.num_rows == 3 * 86_400
    assert rows.to_arrow().equals(headrace.training_set("count", written, settings=shared).to_arrow())


def test_all_entities_are_the_keys_that_any_view_knows_by_then(shared: Settings) -> None:
    both = ["counted:count_*_60", "latest:word"]
    at = headrace.grid(at="1970-01-01T00:02:30Z")
    rows = headrace.training_set(both, at, settings=shared).to_arrow()
    assert rows["who"].to_pylist() == ["a", "b", "c"]
    assert rows["count_*_60"].to_pylist() == [1, 0, 0] and rows["word"].to_pylist() == [None, "y", None]
    assert headrace.training_set(["counted:count_*_60"], at, settings=shared).to_arrow()["who"].to_pylist() == ["a"]
    now = headrace.training_set(both, headrace.grid(), settings=shared).to_arrow()
    assert now["event_timestamp"].combine_chunks().equals(times(*[200.000001] * 3))


def test_all_entities_are_rebuilt_from_the_log_alone(archive: Archive, own: Settings, tmp_path: Path) -> None:
    out = headrace.training_set("last", headrace.grid(), settings=own).to_parquet(tmp_path / "out.parquet")
    archive.add(HITS, [hit("new", 120)])
    again = headrace.rebuild_training_set(manifest_path(out), settings=own).to_arrow()
    assert again.equals(pq.read_table(out)) and again["who"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("wanted", "asked", "error", "message"),
    [
        ("pair", {}, RequestError, r"feature service 'pair' has \(payee\) and \(payer\) and \(who\); give the comb"),
        ("all", {}, RequestError, "needs bonus; give a file of entities"),
        ("count", {"every": "1h"}, RequestError, "a grid that needs all of --every, --from and --to"),
        ("count", {"at": "soon"}, RequestError, "'soon' for at"),
        ("count", {"every": "1h", "start": "2024-01-02", "end": "2024-01-01"}, RequestError, "to a later one"),
        ("count", {"entities": pa.table({"what": ["a"]})}, DataError, "'who' is missing"),
        ("count", {"entities": GIVEN}, DataError, "An entity list has no event_timestamp"),
    ],
)
def test_entities_that_make_no_rows_are_refused(
    shared: Settings, wanted: str, asked: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        headrace.training_set(wanted, headrace.grid(**asked), settings=shared, full_feature_names=True)


# As known then.


@pytest.mark.parametrize("seed", oracle_seeds(3))
def test_rows_as_known_equal_the_loop_over_what_had_arrived(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    source = dataclasses.replace(PARTS, partitions=2)
    settings = made(tmp_path, dataclasses.replace(scenario_catalog(), sources=(source,)))
    archive, events, now_us = Archive(settings.data_dir), [], 1_000 * SECOND_US
    for _ in range(10):
        rows, part = random_rows(rng, rng.randrange(1, 60), now_us), rng.randrange(2)
        now_us += rng.randrange(90 * SECOND_US)
        offset = archive.add(source, rows, part, arrived_us=now_us)
        events += [naive_event(row, (part, offset, i), now_us) for i, row in enumerate(rows)]
    moments = [rng.choice(events) for _ in range(120)]
    at = [rng.choice([e.time_us, e.arrival_us, e.arrival_us + 1, now_us]) for e in moments]
    keys = [(rng.choice([*WORDS, None]), rng.choice([-1, 7, None])) for _ in at]
    who, site = pa.array([key[0] for key in keys], pa.string()), pa.array([key[1] for key in keys], pa.int64())
    given = pa.table({"who": who, "site": site, "event_timestamp": pa.array(at, pa.int64()).cast(MOMENT)})
    rows = headrace.training_set("everything", given, settings=settings, full_feature_names=True, as_known=True)
    out = rows.to_parquet(tmp_path / "known.parquet")
    detach(settings.data_dir)
    late = sum(event.time_us < t <= event.arrival_us for event, t in zip(moments, at, strict=True))
    assert late > 10
    overflows = assert_known(pq.read_table(out).to_pylist(), events)
    assert sum(overflows.values()) > 0
    assert {item.name: item.beyond for item in rows.summary if "sum_whole" in item.name} == overflows


def assert_known(rows: list[dict[str, Any]], events: list[NaiveEvent]) -> dict[str, int]:
    """Holds rows against the loop; returns how many integer sums were beyond an int64, by feature."""
    overflows: dict[str, int] = {}
    for view, parts in zip((BY_WHO, BY_BOTH, NEWEST), [(0,), (0, 1), (1,)], strict=True):
        mine = with_key(events, parts)
        for row in rows:
            t_us, key = plain_value(row["event_timestamp"]), tuple((row["who"], row["site"])[part] for part in parts)
            known = [event for event in mine if event.arrival_us < t_us]
            got = {f.name: plain_value(row[f"{view.name}__{f.name}"]) for f in view.features}
            assert_equals_oracle(view, got, known, key, t_us)
            for agg in (agg for agg in view.aggregations if agg.feature.startswith("sum_whole")):
                seen = dataclasses.replace(agg, function="count")
                lost = got[agg.feature] is None and window_value(seen, known, key, t_us) > 0
                name = f"{view.name}__{agg.feature}"
                overflows[name] = overflows.get(name, 0) + lost
    return overflows


# Bad input.


def corrupt(folder: Path) -> Path:
    """A Parquet file whose footer is whole and whose pages are not."""
    path = parquet_of(folder, pa.concat_tables([GIVEN] * 500))
    raw = bytearray(path.read_bytes())
    raw[4:400] = b"\xff" * 396
    path.write_bytes(raw)
    return path


def without_footer(folder: Path) -> Path:
    path = parquet_of(folder, GIVEN)
    path.write_bytes(path.read_bytes()[:-30])
    return path


def wide(folder: Path) -> Path:
    (folder / "l.csv").write_bytes(b"who,event_timestamp\n" + b"a,2024-01-01\n" * 2_000_000)
    return folder / "l.csv"


def null_late(folder: Path) -> Path:
    many = pa.table(
        {"who": ["a"] * 100_000, "event_timestamp": pa.array([1] * 99_999 + [None], pa.int64()).cast(MOMENT)}
    )
    return parquet_of(folder, many)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (corrupt, "labels.parquet cannot be read as Parquet: .*write it again"),
        (without_footer, "labels.parquet cannot be read as Parquet"),
        (null_late, "event_timestamp is null in row 99999; fill or drop it"),
        (lambda folder: GIVEN.drop_columns(["event_timestamp"]), "'event_timestamp' is missing; they have: who, why"),
        (lambda folder: folder / "none.parquet", "There is no parquet file at"),
        (lambda folder: folder / "labels.txt", "or a folder of Parquet or Delta, got"),
        (lambda folder: GIVEN.append_column("word", GIVEN["why"]), "both called 'word'"),
        (lambda folder: pl.LazyFrame({"who": ["a"]}), "got LazyFrame; convert them"),
        (lambda folder: {"who": ["a"]}, "got dict"),
        (wide, "at most a quarter of --memory: .* has 26 MB, a quarter is 16 MB; write it as Parquet"),
    ],
)
def test_labels_that_cannot_be_used_leave_nothing_behind(
    shared: Settings, tmp_path: Path, given: Callable[[Path], Any], message: str
) -> None:
    made_of, out = given(tmp_path), tmp_path / "out.parquet"
    out.write_bytes(b"old")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=message):
        headrace.training_set("last", made_of, settings=shared, memory="64MB").to_parquet(out)
    assert sorted(tmp_path.iterdir()) == before and out.read_bytes() == b"old"


def test_a_damaged_archive_or_batch_file_is_said(archive: Archive, own: Settings, tmp_path: Path) -> None:
    (file,) = archive.store.events_path("hits").rglob("*.parquet")
    whole, batch = file.read_bytes(), own.repo / "latest.parquet"
    before = sorted(tmp_path.iterdir())
    for damage, message in (
        (lambda: file.write_bytes(whole[:4] + b"\xff" * 100 + whole[104:]), "cannot be read as parquet"),
        (lambda: file.write_bytes(whole[:-20]), "cannot be read as parquet"),
        (lambda: file.unlink(), "The archive has all files that its tables name, .* is missing; restore it"),
        (lambda: (file.write_bytes(whole), batch.write_bytes(b"PAR1")), "Batch source 'file': .* cannot be read"),
        (lambda: batch.unlink(), "Batch source 'file': .* cannot be read: .*No such file"),
    ):
        damage()
        with pytest.raises(DataError, match=message):
            headrace.training_set("last", GIVEN, settings=own).to_parquet(tmp_path / "out.parquet")
    assert sorted(tmp_path.iterdir()) == before


def test_naive_times_are_utc_whatever_brings_them(shared: Settings) -> None:
    naive = datetime.fromtimestamp(151, UTC).replace(tzinfo=None)
    frame = pd.DataFrame({"who": ["b"], "event_timestamp": [naive]})
    for given in (frame, pl.from_pandas(frame), pa.Table.from_pandas(frame)):
        assert headrace.training_set("last", given, settings=shared).to_arrow()["word"].to_pylist() == ["y"]


@pytest.mark.parametrize(
    ("size", "message"),
    [("2 GBit", "write it like 2GB"), ("1MB", "at least 64 MB, got '1MB'"), ("-5", "write it like 2GB")],
)
def test_a_memory_that_is_none_is_refused(shared: Settings, size: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        headrace.training_set("last", GIVEN, settings=shared, memory=size)


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_built(shared: Settings, tmp_path: Path) -> None:
    rows = headrace.training_set("last", GIVEN, settings=shared)
    with pytest.raises(DataError, match="is a folder; name a file in it"):
        rows.to_parquet(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written: .*choose another file"):
        rows.to_parquet(tmp_path / "file" / "out.parquet")
    assert rows.summary == ()


def test_a_csv_takes_no_lists(shared: Settings, tmp_path: Path) -> None:
    given = GIVEN.append_column("tags", pa.array([["a"]] * 5))
    with pytest.raises(DataError, match=r"A CSV file has no lists, column 'tags' is list"):
        headrace.training_set("last", given, settings=shared).to_csv(tmp_path / "out.csv")
    assert not list(tmp_path.iterdir())


# The writer and the hashes.


def test_the_writer_holds_no_more_than_a_row_group(tmp_path: Path) -> None:
    gc.collect()
    began, most = pa.total_allocated_bytes(), 0
    piece = np.arange(GROUP_ROWS // 2)
    with TableWriter(tmp_path / "out.parquet", pa.schema([("x", pa.int64())]), "parquet") as writer:
        for i in range(100):
            writer.write(pa.table({"x": pa.array((piece * 2_654_435_761 + i).tolist())}))
            most = max(most, pa.total_allocated_bytes() - began)
    metadata = pq.ParquetFile(tmp_path / "out.parquet").metadata
    assert (metadata.num_rows, metadata.num_row_groups) == (50 * GROUP_ROWS, 50)
    assert most < 20 * piece.nbytes < 100 * piece.nbytes / 4


def test_what_a_killed_process_left_goes_with_the_next_run(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    with scratch_beside(out) as folder:
        mine = folder.name
    killed = mine.replace(f"-{os.getpid()}-", "-4194999-")
    others = mine.replace(".out.parquet.", ".out.parquet.other_")
    for name in (killed, others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    with scratch_beside(out) as folder, scratch_beside(out):
        assert {path.name for path in tmp_path.iterdir()} >= {folder.name, others}
        assert not (tmp_path / killed).exists()
    assert [path.name for path in tmp_path.iterdir()] == [others]
    shutil.rmtree(tmp_path / others)


VALUES = [
    pa.array([1, None, 3, 4]),
    pa.array(["a", None, "", "ü"]),
    pa.array([[1.5], None, [], [2.0, None]]),
    pa.array([["a", "b"], ["ab"], None, [""]]),
    pa.array([True, None, False, True]),
    times(1, 2, 3, 4),
    pa.array([{"a": 1}, None, {"a": 2}, {"a": None}]),
    pa.array(["x", "y", None, "z"]).dictionary_encode(),
    pa.array([b"\xff", None, b"", b"\x00"]),
    pa.array([Decimal("1.5"), None, Decimal("2.5"), Decimal("3.5")]),
    pa.array([1, None, 3, 4]).cast(pa.duration("us")),
    pa.array([1, None, 3, 4], pa.int32()).cast(pa.date32()),
    pa.array([[1, 2], None, [3, 4], [5, 6]], pa.list_(pa.int64(), 2)),
    pa.array([[("k", 1)], None, [], [("k", 2)]], pa.map_(pa.string(), pa.int64())),
    pa.array([np.float16(1), None, np.float16(2), np.float16(3)], pa.float16()),
    pa.nulls(4),
]


def hashed(*chunks: Any) -> str:
    held = ColumnHash()
    held.update(pa.chunked_array(chunks))
    return held.hexdigest()


@pytest.mark.parametrize("values", VALUES, ids=lambda values: str(values.type))
def test_a_hash_sees_values_and_order_not_how_they_are_cut(values: Any) -> None:
    whole = hashed(values)
    assert hashed(values.slice(0, 1), values.slice(1, 2), values.slice(3)) == whole
    assert hashed(values.take(pa.array([0, 1, 2, 3]))) == whole
    assert hashed(values.slice(0, 3)) != whole
    if values.null_count < 4:
        assert hashed(values.take(pa.array([2, 1, 0, 3]))) != whole
        assert hashed(values.take(pa.array([0, None, 2, None]))) != whole


def test_a_hash_does_not_see_what_lies_under_a_null() -> None:
    under = pa.Array.from_buffers(pa.int64(), 2, [pa.py_buffer(b"\x01"), pa.py_buffer(np.array([5, 7]).tobytes())], 1)
    assert under.to_pylist() == [5, None] and hashed(under) == hashed(pa.array([5, None]))
