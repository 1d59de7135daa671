"""plan, apply, list and describe as a user calls them, on an embedded store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from headrace.catalog.definitions import Column, DType, Source
from headrace.cli import group
from headrace.errors import DataError, UnknownNameError
from headrace.settings import load_settings
from headrace.stores.catalogs import load_catalog, read_mirror, save_catalog
from headrace.stores.connection import open_store
from headrace.stores.models import Manifest, ModelInput, promote, save_model
from headrace.stores.offline import OfflineStore, event_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental:RuntimeWarning")  # Feast, on reading its registry

DEFINITIONS = """
from feast import FeatureService, FeatureView, Field, FileSource, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, UnixTimestamp
from headrace.define import entity, events, stream_view, windows

print("definitions may print")
card = entity("card", key="card_id")
payments = events("payments", time="ts", id="id",
                  columns={"id": "string", "card_id": "string", "amount": "double", "ts": "timestamp"})
spend = stream_view("spend", card, payments, windows("amount", ["sum"], over=["1h"]))
limits = FeatureView(name="limits", entities=[card], schema=[Field(name="limit", dtype=Float64)],
                     source=FileSource(name="limits_file", path="data/limits.parquet", timestamp_field="since"))
trip = RequestSource(name="trip", schema=[Field(name="at", dtype=UnixTimestamp)])

@on_demand_feature_view(sources=[trip, spend], schema=[Field(name="hour", dtype=Int64)])
def clock(inputs):
    out = inputs[[]].copy()
    out["hour"] = inputs["at"].dt.hour
    return out

fraud = FeatureService(name="fraud", features=[spend, limits, clock])
by_name = FeatureService(name="by_name", features=["spend:sum_amount_1h", clock[["hour"]]])
"""


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    root = tmp_path / "my repo"
    root.mkdir()
    (root / "feature_store.yaml").write_text(
        "project: shop\nregistry: deep/er/registry.db\nonline_store:\n  type: redis\n  connection_string: nowhere:1\n"
    )
    (root / "shop_features.py").write_text(DEFINITIONS)
    return root


@pytest.fixture
def run(repo: Path, tmp_path: Path) -> Callable[..., Result]:
    def call(*arguments: str) -> Result:
        return CliRunner().invoke(group, [*arguments, "--repo", str(repo), "--data-dir", str(tmp_path / "data")])

    return call


def body(result: Result) -> Any:
    return json.loads(result.stdout)


def test_plan_needs_no_store_and_its_exit_code_says_whether_anything_changes(run: Any, tmp_path: Path) -> None:
    result = run("plan", "--json")
    assert result.exit_code == 2, result.output
    assert body(result)["previous_version"] is None and body(result)["version"] == 1
    assert [change["name"] for change in body(result)["changes"]] == [
        "card",
        "payments",
        "spend",
        "limits",
        "clock",
        "fraud",
        "by_name",
    ]
    assert not (tmp_path / "data").exists()
    assert run("apply").exit_code == 0
    assert run("plan").exit_code == 0


def test_apply_saves_the_catalog_registers_with_feast_and_says_where(run: Any, repo: Path, tmp_path: Path) -> None:
    from feast import FeatureStore, RepoConfig

    result = run("apply")
    assert result.exit_code == 0, result.output
    assert "+ feature view spend" in result.stdout and f"Feast registry: {repo}/deep/er/registry.db" in result.stdout
    settings = load_settings(repo=repo, data_dir=tmp_path / "data")
    store = open_store(settings)
    catalog = load_catalog(store, "shop")
    store.close()
    assert catalog == read_mirror(settings) and catalog.version == 1
    registry = str(repo / "deep" / "er" / "registry.db")
    feast = FeatureStore(config=RepoConfig(project="shop", registry=registry, provider="local", online_store=None))
    assert {field.name for field in feast.get_stream_feature_view("spend").features} >= {"sum_amount_1h"}
    assert [p.name for p in feast.get_feature_service("fraud").feature_view_projections] == ["spend", "limits", "clock"]
    by_name = feast.get_feature_service("by_name").feature_view_projections
    assert {(p.name, *(field.name for field in p.features)) for p in by_name} == {
        ("spend", "sum_amount_1h"),
        ("clock", "hour"),
    }


def test_a_second_apply_changes_nothing_and_a_changed_one_raises_the_version(run: Any, repo: Path) -> None:
    from feast import FeatureStore, RepoConfig

    run("apply")
    again = body(run("apply", "--json"))
    assert (again["version"], again["changes"]) == (1, [])
    text = (
        DEFINITIONS.replace('over=["1h"]', 'over=["2h"]')
        .replace(", limits, clock", ", clock")
        .replace("spend:sum_amount_1h", "spend")
    )
    (repo / "shop_features.py").write_text(text.replace("limits = FeatureView", "def unused(): return FeatureView"))
    changed = body(run("apply", "--json"))
    assert changed["version"] == 2
    assert {(c["action"], c["name"]) for c in changed["changes"]} == {
        ("changed", "spend"),
        ("removed", "limits"),
        ("changed", "clock"),
        ("changed", "fraud"),
        ("changed", "by_name"),
    }
    registry = str(repo / "deep" / "er" / "registry.db")
    feast = FeatureStore(config=RepoConfig(project="shop", registry=registry, provider="local", online_store=None))
    assert "limits" not in {view.name for view in feast.list_feature_views()}
    assert "limits_file" not in {source.name for source in feast.list_data_sources()}


def test_a_refusal_is_one_message_exit_1_and_nothing_saved(run: Any, repo: Path, tmp_path: Path) -> None:
    (repo / "shop_features.py").write_text(DEFINITIONS.replace('["sum"]', '["median"]'))
    for command in ("plan", "apply"):
        result = run(command, "--json")
        assert result.exit_code == 1
        assert "'median'" in body(result)["refused"]
    assert read_mirror(load_settings(repo=repo, data_dir=tmp_path / "data")) is None
    assert not (repo / "deep").exists()


def test_a_function_that_cannot_work_is_refused_before_it_serves(run: Any, repo: Path) -> None:
    (repo / "shop_features.py").write_text(DEFINITIONS.replace(".dt.hour", ".dt.no_such_part"))
    assert "no_such_part" in body(run("plan", "--json"))["refused"]


def test_an_unsafe_change_is_refused(run: Any, repo: Path) -> None:
    run("apply")
    (repo / "shop_features.py").write_text(DEFINITIONS.replace('"amount": "double"', '"amount": "float"'))
    result = run("plan", "--json")
    assert result.exit_code == 1
    assert "source 'payments' had 'amount' as float64" in body(result)["refused"]


def test_a_name_whose_archive_holds_other_types_is_refused(run: Any, repo: Path, tmp_path: Path) -> None:
    old = Source("payments", (Column("amount", DType.STRING), Column("ts", DType.TIMESTAMP)), "ts")
    none = pa.table({"amount": pa.array([], pa.string()), "ts": pa.array([], pa.timestamp("us", "UTC"))})
    empty = np.array([], np.int64)
    rows = event_rows(
        none,
        event_time_us=empty,
        arrival_us=empty,
        partition=0,
        offset=empty,
        index=empty,
        is_repeat=empty.astype(bool),
    )
    archive = OfflineStore(tmp_path / "data")
    archive.append_events(old, rows, partition=0, last_offset=1)
    for command in ("plan", "apply"):
        result = run(command, "--json")
        assert result.exit_code == 1
        assert (
            "'events/payments' holds 'amount' as string and would get 'amount' as double; use a new name"
            in (body(result)["refused"])
        )
    (repo / "shop_features.py").write_text(DEFINITIONS.replace('"payments"', '"payments_2"'))
    assert run("apply").exit_code == 0


def test_an_emptied_store_does_not_start_versions_again(run: Any, repo: Path, tmp_path: Path) -> None:
    run("apply")
    settings = load_settings(repo=repo, data_dir=tmp_path / "data")
    store = open_store(settings)
    catalog = load_catalog(store, "shop")
    save_catalog(store, settings, replace(catalog, version=7))
    store.delete("headrace.catalog:shop")
    store.close()
    assert body(run("apply", "--json"))["version"] == 7


def test_list_and_describe_show_what_was_applied(run: Any) -> None:
    assert isinstance(run("list").exception, DataError)
    run("apply")
    assert body(run("list", "--json"))["views"] == ["spend", "limits"]
    assert "windowed, by card, 1 feature" in run("list").stdout
    described = body(run("describe", "spend", "--json"))
    assert (described["definition"], described["kind"]) == ("feature view", "windowed")
    assert described["aggregations"][0]["hop_us"] == 300_000_000
    assert "def clock" in run("describe", "clock").stdout
    assert isinstance(run("describe", "nothing").exception, UnknownNameError)


def test_plan_refuses_a_configuration_that_apply_would_and_the_remedy_works_with_both(run: Any, repo: Path) -> None:
    config = repo / "feature_store.yaml"
    config.unlink()
    for command in ("plan", "apply"):
        refused = body(run(command, "--json"))["refused"]
        assert "'project: my_project', 'registry: data/registry.db' and 'provider: local'" in refused
    config.write_text("project: my_project\n")
    for command in ("plan", "apply"):
        assert "names no registry" in body(run(command, "--json"))["refused"]
    config.write_text("project: my_project\nregistry: data/registry.db\nprovider: nowhere\n")
    assert run("plan", "--json").exit_code == run("apply", "--json").exit_code == 1
    config.write_text("project: my_project\nregistry: data/registry.db\nprovider: local\n")
    assert (run("plan").exit_code, run("apply").exit_code) == (2, 0)


def test_notes_name_services_whose_short_names_collide(run: Any, repo: Path) -> None:
    two = 'again = stream_view("again", card, payments, windows("amount", ["sum"], over=["1h"]))\n'
    text = DEFINITIONS.replace("limits = ", two + "limits = ").replace("[spend, limits", "[spend, again, limits")
    (repo / "shop_features.py").write_text(text)
    assert any("Service 'fraud': 'sum_amount_1h' is in more" in note for note in body(run("plan", "--json"))["notes"])


def test_a_plan_shows_what_leaves_and_what_comes_and_what_becomes_of_the_models(
    run: Any, repo: Path, tmp_path: Path
) -> None:
    from sklearn.linear_model import LogisticRegression

    run("apply")
    inputs = (ModelInput("spend__sum_amount_1h", DType.FLOAT64),)
    manifest = Manifest("risk", "fraud", inputs, "bad", 0.0, 1, {}, {}, {}, {}, "2026-01-01T00:00:00Z")
    save_model(tmp_path / "data", manifest, LogisticRegression())
    promote(tmp_path / "data", "risk", 1)
    text = DEFINITIONS.replace('over=["1h"]', 'over=["2h"]').replace("spend:sum_amount_1h", "spend")
    (repo / "shop_features.py").write_text(text)
    planned = body(run("plan", "--json"))
    details = {change["name"]: change["details"] for change in planned["changes"]}
    assert "features: - sum_amount_1h float64, + sum_amount_2h float64" in details["spend"]
    assert "references: - spend:sum_amount_1h, + spend:sum_amount_2h" in details["fraud"]
    assert any("no longer gives spend__sum_amount_1h" in note and "--name risk" in note for note in planned["notes"])


def test_describe_prints_windows_as_plan_does(run: Any) -> None:
    run("apply")
    text = run("describe", "spend").stdout
    assert "sum_amount_1h = sum(amount) over 1h by 5m" in text and "_us" not in text
