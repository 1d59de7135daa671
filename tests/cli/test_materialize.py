"""The commands as a user gives them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from headrace.catalog.definitions import BatchSource, Catalog, Column, DType, Entity, FeatureView
from headrace.cli import group
from headrace.errors import DataError, RequestError, UnknownNameError
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach

COLUMNS = (Column("who", DType.INT64), Column("limit", DType.FLOAT64))


def view_of(name: str) -> FeatureView:
    batch = BatchSource(name, f"{name}.parquet", "seen", (*COLUMNS, Column("seen", DType.TIMESTAMP)))
    return FeatureView(name, "batch", ("who",), COLUMNS[1:], "f", batch=batch)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    made = Settings(repo=tmp_path / "repo", data_dir=tmp_path / "data")
    made.repo.mkdir()
    views = (view_of("limits"), view_of("scores"), replace(view_of("hidden"), online=False))
    bare = FeatureView("bare", "plain", ("who",), COLUMNS[1:], "f")
    with open_store(made) as store:
        entities = (Entity("who", "who", DType.INT64),)
        save_catalog(store, made, Catalog("shown", 1, "wall", entities, views=(*views, bare)))
    for name in ("limits", "scores"):
        times = pa.array([1_000_000, 2_000_000, 3_500_000], pa.timestamp("us", "UTC"))
        table = pa.table({"who": pa.array([1, 2, None], pa.int64()), "limit": [1.0, 2.0, 3.0], "seen": times})
        pq.write_table(table, made.repo / f"{name}.parquet")
    yield made
    detach(made.data_dir)


def run(settings: Settings, *arguments: str) -> Result:
    folders = ["--repo", str(settings.repo), "--data-dir", str(settings.data_dir)]
    return CliRunner().invoke(group, [*arguments, *folders])


def test_views_are_loaded_by_name_or_all_of_them(settings: Settings) -> None:
    done = run(settings, "materialize", "scores", "--end", "1970-01-01T00:00:01Z")
    assert done.exit_code == 0 and done.stdout.splitlines()[-1] == (
        "Materialized 1 key of scores, newest row 1970-01-01T00:00:01Z: 1 written"
    )
    done = run(settings, "materialize")
    lines = [line for line in done.stdout.splitlines() if line.startswith("Materialized")]
    whole = "newest row 1970-01-01T00:00:03.500000Z: 2 written; 1 row without a key"
    assert lines == [f"Materialized 2 keys of limits, {whole}", f"Materialized 2 keys of scores, {whole}"]
    done = run(settings, "materialize-incremental", "limits")
    since = "since 1970-01-01T00:00:03.500000Z, newest row 1970-01-01T00:00:03.500000Z"
    assert f"Materialized 0 keys of limits {since}: 0 written; 1 row without a key" in done.stdout


def test_a_file_that_cannot_be_used_is_said_and_the_others_go_on(settings: Settings) -> None:
    (settings.repo / "limits.parquet").write_bytes(b"nonsense")
    done = run(settings, "materialize-incremental")
    assert done.exit_code == 1 and "Materialized 2 keys of scores" in done.stdout
    assert "Error: limits was not materialized. Batch source 'limits': " in done.stderr
    assert isinstance(run(settings, "materialize", "limits").exception, DataError)


def test_what_makes_no_sense_is_refused(settings: Settings) -> None:
    assert run(settings, "materialize", "--end", "soon").exit_code == 2
    reversed_period = ["--start", "2024-05-02", "--end", "2024-05-01"]
    assert "--start" in run(settings, "materialize", "limits", *reversed_period).output
    assert isinstance(run(settings, "materialize", "nope").exception, UnknownNameError)
    assert isinstance(run(settings, "materialize", "bare").exception, RequestError)
    assert isinstance(run(settings, "materialize-incremental", "hidden").exception, RequestError)
    assert isinstance(run(settings, "materialize", "limits", "--memory", "lots").exception, RequestError)
