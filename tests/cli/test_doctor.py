"""headrace doctor: what it finds, and that it finds the server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from shop import Live, now, running, shop

from headrace.cli import group
from headrace.cli.server_file import forget_server, record_server, running_server
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.models import Manifest, ModelInput, promote, save_model


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder: Path = tmp_path_factory.mktemp("doctored")
    (folder / "feature_store.yaml").write_text("project: shop\nregistry: data/registry.db\n")
    settings = Settings(repo=folder, data_dir=folder / "data", port=0)
    with running(settings, shop()) as server:
        server.push([{"id": "1", "card_id": "a", "amount": 1, "ts": now()}, {"id": 2, "ts": now()}])
        server.wait_until_applied()
        server.wait_until_applied("archived")
        yield server


def call(settings: Settings, *arguments: str) -> Any:
    where = ["--repo", str(settings.repo), "--data-dir", str(settings.data_dir)]
    lines = CliRunner().invoke(group, [*arguments, "--json", *where]).stdout.splitlines()
    begin = next(i for i, line in enumerate(lines) if line in ("[", "{"))  # after what the server's threads log
    return json.loads("\n".join(lines[begin:]))


def part(findings: Any, name: str) -> Any:
    return next(finding for finding in findings if finding["part"] == name)


def test_a_folder_of_no_project_is_one_failure_and_starts_no_store(tmp_path: Path) -> None:
    settings = Settings(repo=tmp_path / "none", data_dir=tmp_path / "data")
    findings = call(settings, "doctor")
    assert (
        part(findings, "definitions")["level"] == "fail" and "registry: data" in part(findings, "definitions")["text"]
    )
    assert not settings.data_dir.exists()


def test_the_server_is_found_by_its_url_and_by_what_it_recorded(live: Live) -> None:
    assert part(call(live.settings, "doctor", "--url", live.url), "server")["level"] == "ok"
    assert part(call(live.settings, "doctor", "--port", live.url.rpartition(":")[2]), "server")["level"] == "ok"
    assert part(call(live.settings, "doctor", "--port", "1"), "server")["level"] == "warn"
    record_server(live.settings, live.url)
    assert live.url in part(call(live.settings, "doctor"), "server")["text"]
    forget_server(live.settings)
    assert running_server(live.settings) is None


def test_a_record_of_a_process_that_is_gone_counts_for_nothing(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    (tmp_path / "server.json").write_text('{"pid": 4194305, "url": "http://127.0.0.1:1"}')
    assert running_server(settings) is None
    (tmp_path / "server.json").write_text("half")
    assert running_server(settings) is None
    record_server(settings, "http://127.0.0.1:2")
    assert running_server(settings) == "http://127.0.0.1:2" and os.getpid()


def test_dead_letters_are_counted_by_source_with_the_command_that_shows_them(live: Live) -> None:
    found = part(call(live.settings, "doctor"), "dead letters of payments")
    assert found["level"] == "warn" and "1 event in no view; see why: headrace dead-letters" in found["text"]
    assert call(live.settings, "streams")["payments"]["dead_letters"] == 1


def test_a_model_that_the_definitions_left_behind_is_named_and_predict_says_the_same(live: Live) -> None:
    from sklearn.linear_model import LogisticRegression

    inputs = (ModelInput("card_spend__count_2h", shop().views[0].features[0].dtype),)
    manifest = Manifest("old", "card_v1", inputs, "fraud", 0.0, 1, {}, {}, {}, {}, "2026-01-01T00:00:00Z")
    saved = save_model(live.settings.data_dir, manifest, LogisticRegression())
    promote(live.settings.data_dir, "old", saved.version)
    found = part(call(live.settings, "doctor"), "model")
    assert found["level"] == "warn" and "no longer gives card_spend__count_2h" in found["text"]
    reply = live.post("/predict", {"model": "old", "entities": {"card_id": ["a"]}}, 503)
    assert "no longer gives card_spend__count_2h" in reply and "headrace train --name old" in reply


def test_counts_are_in_the_singular_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: shop\nregistry: data/registry.db\n")
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data")
    catalog = shop()
    with open_store(settings) as store:
        save_catalog(store, settings, replace(catalog, sources=catalog.sources[:1], services=catalog.services[:1]))
    texts = [finding["text"] for finding in call(settings, "doctor") if finding["part"] == "catalog"]
    assert any("1 source, 2 views, 1 service" in text for text in texts)
