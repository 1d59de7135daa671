"""preview and dead-letters as a user calls them: sample events, an apply, a push, a mended definition, a replay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from headrace.cli import group
from headrace.errors import DefinitionError, HeadraceError, RequestError, UnknownNameError
from headrace.settings import Settings, load_settings
from headrace.stores.catalogs import load_catalog
from headrace.stores.connection import open_store
from headrace.stores.counters import read_counts
from headrace.stores.embedded import detach
from headrace.stores.offline import OfflineStore
from materialize.archiver import Archiver
from materialize.worker import Worker

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental:RuntimeWarning")  # Feast, on reading its registry

DEFINITIONS = """
import polars as pl
from feast import FeatureView, Field, FileSource, FeatureService
from feast.types import Float64
from headrace.define import entity, events, stream_view, windows

card = entity("card", key="card_id")
payments = events(
    "payments", time="ts", id="id",
    columns={"id": "string", "card_id": "string", "amount": "double", "ts": "timestamp"},
    expect={"amount": ["between(0, LIMIT)"], "card_id": ["max_length(3): drop", "not_null: warn"]},
)
def euros(df):
    if (df["id"] == "bad").any():
        raise ValueError("cannot read it")
    return df.filter(pl.col("amount") > 1).with_columns(euros=pl.col("amount") * 0.5)
spend = stream_view(
    "spend", card, payments, windows("euros", ["sum", "count"], over=["1h"]),
    transform=euros, engine="polars",
    columns={"card_id": "string", "euros": "double", "ts": "timestamp"},
    expect={"id": ["not_null"]},
)
raw = stream_view("raw", card, payments, windows("*", ["count"], over=["1h"]))
limits = FeatureView(name="limits", entities=[card], schema=[Field(name="limit", dtype=Float64)],
                     source=FileSource(name="limits_file", path="data/limits.parquet", timestamp_field="since"))
"""
EVENTS = [
    {"id": "1", "card_id": "a", "amount": 10.0, "ts": "2024-05-01T10:00:00Z"},
    {"id": "2", "card_id": "a", "amount": 0.5, "ts": "2024-05-01T10:01:00Z"},
    {"id": "3", "card_id": "b", "amount": 500.0, "ts": "2024-05-01T10:02:00Z"},
    {"id": "bad", "card_id": "a", "amount": 30.0, "ts": "2024-05-01T10:03:00Z"},
    {"id": None, "card_id": "b", "amount": 40.0, "ts": "2024-05-01T10:04:00Z"},
    {"id": "6", "card_id": "long", "amount": 50.0, "ts": "2024-05-01T10:05:00Z"},
    {"id": "7", "card_id": "b", "amount": "six", "ts": "2024-05-01T10:06:00Z"},
    {"id": "8", "card_id": None, "amount": 2.0, "ts": "2024-05-01T10:07:00Z"},
    {"id": "1", "card_id": "a", "amount": 11.0, "ts": "2024-05-01T10:08:00Z"},
]
SOURCE_REASONS = ["expected between(0, LIMIT) of amount, got 500.0", "amount must be float64, got 'six'"]
VIEW_REASONS = ["transform: ValueError: cannot read it", "expected not_null of id, got null"]


class Project:
    """A repo with its data directory, and the commands on both."""

    def __init__(self, folder: Path) -> None:
        self.repo = folder / "repo"
        self.repo.mkdir()
        (self.repo / "feature_store.yaml").write_text("project: shop\nregistry: data/registry.db\n")
        self.file = folder / "events.ndjson"
        self.file.write_text("\n".join(map(json.dumps, EVENTS)))
        self.settings: Settings = load_settings(repo=self.repo, data_dir=folder / "data")

    def define(self, limit: int) -> None:
        (self.repo / "shop_features.py").write_text(DEFINITIONS.replace("LIMIT", str(limit)))

    def run(self, *arguments: str) -> Result:
        options = ["--repo", str(self.settings.repo), "--data-dir", str(self.settings.data_dir)]
        return CliRunner().invoke(group, [*arguments, *options], catch_exceptions=True)

    def ok(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    def letters(self, *options: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.ok("dead-letters", "--json", *options))
        return found

    def catch_up(self, archive: bool = True) -> None:
        with open_store(self.settings) as store:
            worker = Worker(store, OfflineStore(self.settings.data_dir), load_catalog(store, "shop"))
            worker.start()
            while worker.step(block_ms=1):
                pass
            if archive:
                archiver = Archiver(self.settings, store)
                while archiver.step():
                    pass
                archiver.flush()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.setenv("HEADRACE_CLOCK", "event")
    made = Project(tmp_path)
    made.settings = made.settings.model_copy(update={"clock": "event"})
    yield made
    detach(made.settings.data_dir)


def reasons(letters: list[dict[str, Any]]) -> list[str]:
    return [letter["reason"].replace("100)", "LIMIT)") for letter in letters]


def test_dead_letters_are_listed_and_replayed_once(project: Project) -> None:
    project.define(100)
    project.ok("apply")
    project.ok("push", "payments", str(project.file))
    project.catch_up(archive=False)
    assert reasons(project.letters()) == VIEW_REASONS  # on their way to the archive
    project.catch_up()
    project.catch_up()
    assert sorted(reasons(project.letters())) == sorted(SOURCE_REASONS + VIEW_REASONS)
    assert reasons(project.letters("--view", "spend")) == VIEW_REASONS
    assert len(project.letters("--limit", "1", "--source", "payments")) == 1
    assert project.letters("--since", "2030-01-01T00:00:00Z") == []
    text = project.ok("dead-letters")
    assert "spend" in text and '"amount": "six"' in text

    assert "Replayed 0 dead letters of payments." in project.ok("dead-letters", "replay", "--source", "payments")
    project.define(1_000)
    project.ok("apply", "--rebuild")
    project.catch_up()
    said = project.ok("dead-letters", "replay", "--source", "payments")
    assert "Replayed 1 dead letter of payments." in said
    assert "1 dead letter would be dead again" in said
    assert "Replayed 0" in project.ok("dead-letters", "replay", "--source", "payments")  # marked, not yet archived
    project.catch_up()
    assert "Replayed 0" in project.ok("dead-letters", "replay", "--source", "payments")
    assert sorted(reasons(project.letters())) == sorted([SOURCE_REASONS[1], *VIEW_REASONS])
    explained = json.loads(project.ok("explain", "raw", "b", "--json", "--at", "2024-05-01T10:30:00Z"))
    assert explained["online"]["values"] == {"count_1h": 2}
    assert explained["agree"]


def test_the_worker_counts_by_source_view_and_rule(project: Project) -> None:
    project.define(100)
    project.ok("apply")
    project.catch_up()
    project.ok("push", "payments", str(project.file))
    project.catch_up()  # a worker that starts builds nothing anew and counts what is new
    with open_store(project.settings) as store:
        counts = {counted: n for counted, n in read_counts(store, "shop").items() if n}
    assert counts == {
        ("source", "payments", "events", "", ""): 6,
        ("source", "payments", "repeated", "", ""): 1,
        ("source", "payments", "dead", "", ""): 2,
        ("source", "payments", "quarantined", "amount", "between(0, 100)"): 1,
        ("source", "payments", "dropped", "card_id", "max_length(3)"): 1,
        ("source", "payments", "warned", "card_id", "not_null"): 1,
        ("view", "spend", "quarantined", "id", "not_null"): 1,
        ("view", "spend", "quarantined", "", "transform"): 1,
        ("view", "spend", "null_key", "", ""): 1,
        ("view", "raw", "null_key", "", ""): 1,
    }


def test_a_preview_runs_what_is_not_applied(project: Project) -> None:
    project.define(100)
    shown = json.loads(project.ok("preview", "spend", "--events", str(project.file), "--json"))
    assert [(row["_event"], row["euros"]) for row in shown["rows"]] == [(0, 5.0), (7, 1.0)]
    assert [(row["_event"], row["where"]) for row in shown["dead"]] == [
        (2, "source"), (3, "view"), (4, "view"), (6, "source"),
    ]  # fmt: skip
    assert shown["features"] == [{"card_id": "a", "sum_euros_1h": 5.0, "count_euros_1h": 1}]
    later = json.loads(
        project.ok("preview", "spend", "--events", str(project.file), "--json", "--at", "2024-05-02T10:30:00Z")
    )
    assert later["features"] == [{"card_id": "a", "sum_euros_1h": None, "count_euros_1h": 0}]
    text = project.ok("preview", "raw", "--events", str(project.file), "--limit", "1")
    assert "rows that count: 5" in text and "... and 4 more" in text
    assert not project.settings.data_dir.exists()


REFUSED: list[tuple[list[str], type[HeadraceError], str]] = [
    (["preview", "nothing", "--events", "FILE"], UnknownNameError, "no feature view 'nothing'"),
    (["preview", "limits", "--events", "FILE"], RequestError, "reads a file"),
    (["preview", "spend", "--events", "FILE", "--at", "noon"], RequestError, "RFC 3339"),
]


@pytest.mark.parametrize(("arguments", "kind", "words"), REFUSED)
def test_a_preview_that_cannot_run_is_refused(
    project: Project, arguments: list[str], kind: type[HeadraceError], words: str
) -> None:
    project.define(100)
    result = project.run(*[str(project.file) if part == "FILE" else part for part in arguments])
    assert isinstance(result.exception, kind)
    assert words in str(result.exception)


def test_a_preview_refuses_a_transform_that_is_not_row_wise(project: Project) -> None:
    text = DEFINITIONS.replace("LIMIT", "9").replace('df.filter(pl.col("amount") > 1)', 'df.sort("amount").head(3)')
    (project.repo / "shop_features.py").write_text(text)
    result = project.run("preview", "spend", "--events", str(project.file))
    assert isinstance(result.exception, DefinitionError)
    assert "shop_features.py, line" in str(result.exception) and "gives other rows" in str(result.exception)


def test_a_preview_in_a_test_of_the_user_s() -> None:
    import headrace
    from headrace.define import entity, events, stream_view, windows

    card = entity("card", key="card_id")
    payments = events("payments", time="ts", columns={"card_id": "string", "amount": "double", "ts": "timestamp"})
    sums = windows("amount", ["sum"], over=["1h"])
    spend = stream_view("spend", card, payments, sums, transform=doubled, expect={"card_id": ["not_null"]})
    rows = [
        {"card_id": "a", "amount": 1.0, "ts": "2024-05-01T10:00:00Z"},
        {"card_id": None, "amount": 2.0, "ts": "2024-05-01T10:00:00Z"},
        {"card_id": "a", "amount": 3.0, "ts": "2024-05-01T10:00:01Z"},
    ]
    for sample in (rows, pa.Table.from_pylist(rows), pa.Table.from_pylist(rows).to_pandas()):
        shown = headrace.preview(spend, sample)
        assert shown.rows["amount"].to_pylist() == [2.0, 6.0]
        assert shown.dead["reason"].to_pylist() == ["expected not_null of card_id, got null"]
        assert shown.features.to_pylist() == [{"card_id": "a", "sum_amount_1h": 8.0}]
    assert headrace.preview(spend, []).features.num_rows == 0


def doubled(df: pd.DataFrame) -> Any:
    return df.assign(amount=df["amount"] * FACTOR)


FACTOR = 2
