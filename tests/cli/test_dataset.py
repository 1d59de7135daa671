from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from archived import HITS, WORLD, Archive, file_rows, hit, labels
from click.testing import CliRunner, Result

from headrace.cli.dataset import dataset_command
from headrace.errors import DataError, HeadraceError
from headrace.read.history import History
from headrace.read.manifest import read_manifest
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach

HEADRACE = [sys.executable, "-P", "-m", "headrace"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A project where a is hit at 100 s and b at 150 s, and c is in the batch file, at 100 s."""
    folder = tmp_path_factory.mktemp("dataset")
    made = Settings(repo=folder / "repo", data_dir=folder / "data")
    made.repo.mkdir()
    with open_store(made) as store:
        save_catalog(store, made, WORLD)
    archive = Archive(made.data_dir)
    archive.add(HITS, [hit("a", 100, word="x"), hit("b", 150, word="y")])
    file_rows(History(archive.store, made.repo), ("c", 100, "file"))
    yield made
    detach(made.data_dir)


def asked(settings: Settings, *arguments: str | Path) -> list[str]:
    return [*map(str, arguments), "--repo", str(settings.repo), "--data-dir", str(settings.data_dir)]


def run(settings: Settings, *arguments: str | Path) -> Result:
    return CliRunner().invoke(dataset_command, asked(settings, *arguments), catch_exceptions=False)


def test_references_memory_and_as_csv(settings: Settings, tmp_path: Path) -> None:
    pq.write_table(labels(("a", 101), ("b", 101)), tmp_path / "l.parquet")
    wanted = ("--features", "latest:word, counted:count_*_60", "--full-feature-names", "--memory", "100MB")
    done = run(settings, *wanted, "--labels", tmp_path / "l.parquet", "--out", tmp_path / "o.csv", "--no-manifest")
    assert done.exit_code == 0 and "2 rows, 2 features" in done.output and "50.0%" in done.output
    rows = pacsv.read_csv(tmp_path / "o.csv")
    assert rows["latest__word"].to_pylist() == ["x", ""] and rows["counted__count_*_60"].to_pylist() == [1, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.parquet", "o.csv"]


def test_entities_on_a_grid_and_the_same_rows_from_their_manifest(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "who.csv").write_text("who\na\nb\n")
    grid = ("--every", "50s", "--from", "1970-01-01T00:01:40", "--to", "1970-01-01T00:04:10")
    told = ("--out", tmp_path / "o.parquet", "--manifest", tmp_path / "m" / "o.json")
    done = run(settings, "--service", "last", "--entities", tmp_path / "who.csv", *grid, *told)
    assert "6 rows, 2 features" in done.output
    first = pq.read_table(tmp_path / "o.parquet")
    assert first["word"].to_pylist() == ["x", None, None, "y", None, None]
    again = ("--from-manifest", tmp_path / "m" / "o.json", "--out", tmp_path / "again.parquet")
    assert "Differs" not in run(settings, *again).output
    assert pq.read_table(tmp_path / "again.parquet").equals(first)
    (tmp_path / "who.csv").write_text("who\na\nc\n")
    with pytest.raises(DataError, match="the labels are not those of the manifest"):
        run(settings, *again)
    done = run(settings, *again, "--allow-changed")
    assert "Differs from the manifest: the labels are not those of the manifest." in done.output
    assert read_manifest(tmp_path / "again.parquet.manifest.json").rows == 6


def test_all_entities_are_scored_as_of_the_present(settings: Settings, tmp_path: Path) -> None:
    done = run(settings, "--service", "last", "--all-entities", "--out", tmp_path / "o.parquet")
    assert "3 rows" in done.output and pq.read_table(tmp_path / "o.parquet")["word"].to_pylist() == [None, "y", None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--service NAME, or --features"),
        (("--service", "last", "--features", "latest:word", "--labels", "l"), "--service NAME, or --features"),
        (("--service", "last"), "by one of --labels FILE, --entities FILE and --all-entities"),
        (("--service", "last", "--labels", "l", "--all-entities"), "by one of --labels FILE"),
        (("--service", "last", "--labels", "l", "--every", "1h"), "have their own times"),
        (("--service", "last", "--labels", "l", "--allow-changed"), "--allow-changed goes with --from-manifest"),
        (("--from-manifest", "m", "--service", "last"), "says what to build; leave out --service"),
        (("--from-manifest", "m", "--to", "2024-01-01"), "leave out --to"),
        (("--service", "last", "--labels", "l", "--manifest", "m", "--no-manifest"), "contradict each other"),
    ],
)
def test_options_that_contradict_are_wrong_usage(settings: Settings, arguments: tuple[str, ...], message: str) -> None:
    done = run(settings, *arguments, "--out", "o.parquet")
    assert done.exit_code == 2 and message in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--service", "nope"), "There is no feature service 'nope'; the catalog has: all, count, last, pair"),
        (("--features", "latest.word"), "A feature is named as view:feature, got 'latest.word'"),
        (("--features", "latest:words"), "View 'latest' has no feature 'words'; it has: score, word"),
        (("--service", "last", "--memory", "1MB"), "built in at least 64 MB"),
        (("--service", "last"), "there are none; nothing was written"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    settings: Settings, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    pq.write_table(labels(), tmp_path / "l.parquet")
    with pytest.raises(HeadraceError, match=message):
        run(settings, *arguments, "--labels", tmp_path / "l.parquet", "--out", tmp_path / "o.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["l.parquet"]


@pytest.mark.parametrize("stopped_by", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_what_was_there_before(
    settings: Settings, tmp_path: Path, stopped_by: signal.Signals
) -> None:
    (tmp_path / "who.csv").write_text("who\na\n")
    out = tmp_path / "o.parquet"
    out.write_bytes(b"old")
    grid = ("--every", "1s", "--from", "1970-01-01", "--to", "1970-02-10")
    wanted = asked(settings, "--service", "count", "--entities", tmp_path / "who.csv", *grid, "--out", out)
    process = subprocess.Popen([*HEADRACE, "dataset", *wanted], stderr=subprocess.PIPE, text=True, env={**os.environ})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".o.parquet.*/o.parquet")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(stopped_by)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "Interrupted; nothing was written.\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.parquet", "who.csv"]
    assert out.read_bytes() == b"old"


def test_a_full_disk_is_one_line_and_leaves_what_was_there_before(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "who.csv").write_text("who\na\n")
    out = tmp_path / "o.parquet"
    out.write_bytes(b"old")
    grid = ("--every", "1s", "--from", "1970-01-01", "--to", "1970-01-08")
    wanted = asked(settings, "--service", "count", "--entities", tmp_path / "who.csv", *grid, "--out", out)
    limited = ["sh", "-c", 'ulimit -f 1000; exec "$@"', "sh", *HEADRACE, "dataset", *wanted]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("Error: o.parquet cannot be written: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.parquet", "who.csv"] and out.read_bytes() == b"old"


def test_a_bad_file_is_one_line_and_exit_1(settings: Settings, tmp_path: Path) -> None:
    pq.write_table(pa.table({"who": ["a"]}), tmp_path / "l.parquet")
    wanted = asked(settings, "--service", "last", "--labels", tmp_path / "l.parquet", "--out", tmp_path / "o.parquet")
    done = subprocess.run([*HEADRACE, "dataset", *wanted], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and not done.stdout
    assert done.stderr.startswith("Error: Labels for feature service 'last' need the columns event_timestamp, who, but")
