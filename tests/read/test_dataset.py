from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from archived import (
    GOOD,
    HITS,
    LATEST,
    MOMENT,
    WORLD,
    Archive,
    file_rows,
    hit,
    labels,
    times,
)
from click.testing import CliRunner
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
    plain_value,
    random_rows,
    with_key,
)
from seeds import oracle_seeds

import headrace
from headrace.catalog.definitions import (
    Catalog,
    write_source,
)
from headrace.cli.dataset import dataset_command
from headrace.cli.materialize import materialize_command
from headrace.errors import DataError, RequestError, UnknownNameError
from headrace.read.dataset import build_dataset, read_positions
from headrace.read.history import History
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "data")


@pytest.fixture
def history(archive: Archive, tmp_path: Path) -> History:
    (tmp_path / "repo").mkdir()
    return History(archive.store, tmp_path / "repo")


@pytest.mark.parametrize("seed", oracle_seeds(4))
def test_the_dataset_path_equals_the_loop(archive: Archive, history: History, seed: int) -> None:
    rng = random.Random(seed)
    source = dataclasses.replace(PARTS, partitions=2)
    definitions = dataclasses.replace(catalog(), sources=(source,))
    events, arrival = [], [0, 0]
    for step in range(12):
        rows = random_rows(rng, rng.randrange(1, 60), (1000 + step * 30) * SECOND_US, ids=300)
        part = rng.randrange(2)
        offset = archive.add(source, rows, part)
        for i, row in enumerate(rows):
            event = naive_event(row, (part, offset, i), 0)
            arrival[part] = max(arrival[part], event.time_us)
            events.append(dataclasses.replace(event, arrival_us=arrival[part]))
    kept = without_repeats(events, source.dedup_horizon_us)
    assert len(kept) < len(events)
    if seed % 2:
        archive.store.compact("parts")
    labels = _labels(rng, kept)
    table = build_dataset(definitions, "everything", labels, history, full_feature_names=True)
    assert table.select(labels.column_names).equals(labels)
    _assert_oracle(definitions, table, kept)


def _labels(rng: random.Random, events: list[NaiveEvent]) -> pa.Table:
    """Labels at, beside and away from events, in no order, some twice, some keys null or unseen."""
    at = [rng.choice(events).time_us + rng.choice([-1, 0, 0, 1, 60 * SECOND_US]) for _ in range(150)]
    whos = [rng.choice([*WORDS, "unseen", None]) for _ in at]
    sites = pa.array([rng.choice([-1, 7, 9, None]) for _ in at], pa.int64())
    labels = pa.table({"late": [rng.random() < 0.5 for _ in at], "site": sites, "who": whos})
    labels = labels.append_column("event_timestamp", pa.array(at, pa.int64()).cast(MOMENT))
    return pa.concat_tables([labels, labels.slice(0, 10)]).combine_chunks()


def _assert_oracle(definitions: Catalog, table: pa.Table, events: list[NaiveEvent]) -> None:
    rows = table.to_pylist()
    for view, parts in zip((BY_WHO, BY_BOTH, NEWEST), [(0,), (0, 1), (1,)], strict=True):
        mine = with_key(events, parts)
        for row in rows:
            key = tuple((row["who"], row["site"])[part] for part in parts)
            got = {f.name: plain_value(row[f"{view.name}__{f.name}"]) for f in view.features}
            assert_equals_oracle(view, got, mine, key, plain_value(row["event_timestamp"]))


def words(history: History, *rows: tuple[Any, float]) -> list[Any]:
    found: list[Any] = build_dataset(WORLD, "last", labels(*rows), history)["word"].to_pylist()
    return found


def test_a_plain_view_counts_events_up_to_and_at_the_label_a_windowed_one_before_it(
    archive: Archive, history: History
) -> None:
    file_rows(history)
    archive.add(HITS, [hit("a", 100, word="x")])
    assert words(history, ("a", 99.999999), ("a", 100), ("b", 100), (None, 100)) == [None, "x", None, None]
    counts = build_dataset(WORLD, "count", labels(("a", 100), ("a", 100.000001), ("b", 101), (None, 101)), history)
    assert counts["count_*_60"].to_pylist() == [0, 1, 0, 0]


def test_ttl_is_inclusive_and_an_expired_row_hides_older_ones(archive: Archive, history: History) -> None:
    file_rows(history)
    archive.add(HITS, [hit("a", 100, word="x")])
    assert words(history, ("a", 110), ("a", 110.000001)) == ["x", None]


def test_the_whole_newest_row_wins_nulls_included(archive: Archive, history: History) -> None:
    file_rows(history)
    archive.add(HITS, [hit("a", 100, 5.0, "x"), hit("a", 101, None, None)])
    table = build_dataset(WORLD, "last", labels(("a", 102)), history)
    assert table.select(["word", "score"]).to_pylist() == [{"word": None, "score": None}]


def test_equal_times_go_to_direct_writes_then_events_by_position_then_the_file(
    archive: Archive, history: History
) -> None:
    file_rows(history, ("a", 100, "file"), ("b", 100, "file"), ("c", 100, "first"), ("c", 100, "file"), ("d", 9, "old"))
    archive.add(HITS, [hit("a", 100, word="event"), hit("b", 100, word="early")])
    archive.add(HITS, [hit("b", 100, word="event")])
    row = {"who": "a", "score": 1, "word": "direct", "event_timestamp": moment(100 * SECOND_US), "created": None}
    archive.add(write_source(WORLD, LATEST), [row])
    assert words(history, ("a", 100), ("b", 100), ("c", 100), ("d", 10)) == ["direct", "event", "file", "old"]


def test_columns_rows_and_types_stand_as_promised(archive: Archive, history: History) -> None:
    file_rows(history)
    archive.add(HITS, [hit("a", 100, 3.0, "hi"), hit("a", 101, 4.0, "ho")])
    given = labels(("a", 102), ("b", 50), ("a", 102), bonus=pa.array([2, 1, 2], pa.int32()), why=["x", None, "x"])
    table = build_dataset(WORLD, "all", given, history)
    assert table.column_names == ["who", "event_timestamp", "bonus", "why", "shout", "per_hit", "word"]
    assert table.select(given.column_names).equals(given)
    assert table["per_hit"].to_pylist() == [3.0, None, 3.0] and table["shout"].to_pylist() == ["HO", None, "HO"]
    assert table.schema.field("per_hit").type == pa.float64()
    full = build_dataset(WORLD, "all", given, history, full_feature_names=True)
    assert full.column_names[4:] == ["ratio__shout", "ratio__per_hit", "latest__word"]


def test_join_key_maps_read_the_mapped_columns(archive: Archive, history: History) -> None:
    file_rows(history)
    archive.add(HITS, [hit("a", 100, 3.0, "pays"), hit("b", 100, 4.0, "gets")])
    given = labels(("b", 105), payer=["a"], payee=["b"])
    table = build_dataset(WORLD, "pair", given, history, full_feature_names=True)
    assert table["payer__word"].to_pylist() == ["pays"] and table["payee__score"].to_pylist() == [4.0]
    assert table["counted__count_*_60"].to_pylist() == [1]
    with pytest.raises(RequestError, match="full_feature_names"):
        build_dataset(WORLD, "pair", given, history)


def test_positions_give_the_same_rows_again(archive: Archive, history: History) -> None:
    file_rows(history)
    archive.add(HITS, [hit("a", 100, word="x")])
    positions = read_positions(WORLD, "all", archive.store)
    assert positions == {"hits": {0: 1}, "writes/latest": {}}
    archive.add(HITS, [hit("a", 101, word="later")])
    archive.add(write_source(WORLD, LATEST), [{"who": "a", "word": "d", "event_timestamp": moment(102 * SECOND_US)}])
    assert words(history, ("a", 103)) == ["d"]
    assert words(dataclasses.replace(history, up_to=positions), ("a", 103)) == ["x"]


def test_no_label_rows_give_no_rows_of_the_right_types(history: History) -> None:
    file_rows(history)
    table = build_dataset(WORLD, "all", labels(bonus=pa.array([], pa.int64())), history)
    assert table.num_rows == 0 and table.schema.field("per_hit").type == pa.float64()


def test_nothing_archived_gives_empty_windows_and_nulls(history: History) -> None:
    file_rows(history)
    assert words(history, ("a", 1)) == [None]
    assert build_dataset(WORLD, "count", labels(("a", 1)), history)["count_*_60"].to_pylist() == [0]


def test_times_without_a_zone_are_utc_in_pandas_csv_and_parquet(
    archive: Archive, history: History, tmp_path: Path
) -> None:
    file_rows(history)
    archive.add(HITS, [hit("007", 100, word="x")])
    naive = datetime.fromtimestamp(100, UTC).replace(tzinfo=None)
    frame = pd.DataFrame({"who": ["007", None], "event_timestamp": [naive, naive]})
    frame.to_parquet(tmp_path / "l.parquet")
    frame.to_csv(tmp_path / "l.csv", index=False)
    (tmp_path / "z.csv").write_text("who,event_timestamp\n007,1969-12-31T19:01:40.0000009-05:00\n,1970-01-01\n")
    for given in (frame, tmp_path / "l.parquet", str(tmp_path / "l.csv"), tmp_path / "z.csv"):
        assert build_dataset(WORLD, "last", given, history)["word"].to_pylist() == ["x", None]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"who": ["a"]}, "'event_timestamp' is missing; they have: who"),
        ({"event_timestamp": times(1)}, "need the columns event_timestamp, who, but 'who' is missing"),
        ({**GOOD, "who": [7]}, "Label column 'who' must be string, got int64"),
        ({**GOOD, "event_timestamp": [1.5]}, "Label column 'event_timestamp' must be timestamp, got double"),
        ({**GOOD, "event_timestamp": ["soon"]}, "Label column 'event_timestamp' must be timestamp: .*soon"),
        ({**GOOD, "event_timestamp": pa.array([None], MOMENT)}, "event_timestamp is null in row 0"),
        ({**GOOD, "word": ["mine"]}, "both called 'word'; rename the column, or use --full-feature-names"),
    ],
)
def test_labels_that_do_not_fit_are_refused(history: History, given: dict[str, Any], message: str) -> None:
    file_rows(history)
    with pytest.raises(DataError, match=message):
        build_dataset(WORLD, "last", pa.table(given), history)


def test_other_bad_requests_are_refused(history: History, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no feature service 'nope'"):
        build_dataset(WORLD, "nope", pa.table(GOOD), history)
    with pytest.raises(DataError, match=r"\.parquet or \.csv"):
        build_dataset(WORLD, "last", tmp_path / "labels.txt", history)
    with pytest.raises(DataError, match="no csv file"):
        build_dataset(WORLD, "last", tmp_path / "labels.csv", history)
    with pytest.raises(DataError, match="occurs twice"):
        build_dataset(WORLD, "last", pa.table([["a"], ["b"], times(1)], ["who", "who", "event_timestamp"]), history)
    with pytest.raises(DataError, match="Batch source 'file': There is no parquet file"):
        build_dataset(WORLD, "last", pa.table(GOOD), history)


@pytest.fixture
def settings(history: History, tmp_path: Path) -> Iterator[Settings]:
    made = Settings(repo=history.repo, data_dir=tmp_path / "data")
    with open_store(made) as store:
        save_catalog(store, made, WORLD)
    yield made
    detach(made.data_dir)


def test_the_command_and_the_sdk_give_the_same_rows(
    archive: Archive, history: History, settings: Settings, tmp_path: Path
) -> None:
    file_rows(history, ("a", 100, "x"), ("b", 100, 'say "hi", é'), ("c", 100, ""))
    given = labels(("b", 101), ("a", 101), ("c", 101), ("b", 200))
    pq.write_table(given, tmp_path / "labels.parquet")
    expected = headrace.training_set("last", given, settings=settings).to_arrow()
    assert expected["word"].to_pylist() == ['say "hi", é', "x", "", None]
    folders = ["--repo", str(settings.repo), "--data-dir", str(settings.data_dir)]
    for out in (tmp_path / "new folder" / "out.parquet", tmp_path / "out.csv"):
        wanted = ["--service", "last", "--labels", str(tmp_path / "labels.parquet"), "--out", str(out)]
        done = CliRunner().invoke(dataset_command, [*wanted, *folders], catch_exceptions=False)
        assert done.exit_code == 0 and "4 rows, 2 features" in done.output and "25.0%" in done.output
        assert {path.name for path in out.parent.iterdir() if "out" in path.name} == {
            out.name,
            f"{out.name}.manifest.json",
        }
    assert pq.read_table(tmp_path / "new folder" / "out.parquet").equals(expected)
    assert pacsv.read_csv(tmp_path / "out.csv")["word"].to_pylist()[:2] == expected["word"].to_pylist()[:2]


def test_a_refused_dataset_leaves_the_old_file(settings: Settings, history: History, tmp_path: Path) -> None:
    file_rows(history)
    out = tmp_path / "out.parquet"
    out.write_bytes(b"old")
    pq.write_table(pa.table({"who": ["a"]}), tmp_path / "labels.parquet")
    arguments = ["--service", "last", "--labels", str(tmp_path / "labels.parquet"), "--out", str(out)]
    folders = ["--repo", str(settings.repo), "--data-dir", str(settings.data_dir)]
    done = CliRunner().invoke(dataset_command, [*arguments, *folders])
    assert isinstance(done.exception, DataError) and out.read_bytes() == b"old"


def test_the_materialize_command_says_how_many_keys(settings: Settings, history: History) -> None:
    file_rows(history, ("a", 100, "x"), ("a", 101, "y"), ("b", 100, "z"), (None, 1, "n"))
    folders = ["--repo", str(settings.repo), "--data-dir", str(settings.data_dir)]
    done = CliRunner().invoke(materialize_command, ["latest", *folders], catch_exceptions=False)
    assert "Materialized 2 keys of latest" in done.output
    done = CliRunner().invoke(materialize_command, ["latest", "--start", "1970-01-01T00:01:41Z", *folders])
    assert "Materialized 1 key of latest" in done.output
    assert CliRunner().invoke(materialize_command, ["latest", "--end", "soon", *folders]).exit_code == 2
