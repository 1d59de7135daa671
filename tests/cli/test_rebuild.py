"""rebuild, and apply --rebuild, as a user calls them on an embedded store with a worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

import materialize.rebuild
from headrace.cli import group
from headrace.errors import UnknownNameError
from headrace.read.dead_letters import list_letters
from headrace.read.lookup import lookup, parse_request, plan_service
from headrace.settings import Settings
from headrace.stores.catalogs import load_catalog
from headrace.stores.connection import open_store, open_store_async
from headrace.stores.embedded import detach
from headrace.stores.offline import OfflineStore
from headrace.stores.stream import EventStream
from materialize.worker import Worker

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental:RuntimeWarning")  # Feast, on reading its registry

DEFINITIONS = """
from feast import FeatureService
from headrace.define import entity, events, stream_view, windows

card = entity("card", key="card_id")
payments = events("payments", time="ts", id="id",
                  columns={"id": "string", "card_id": "string", "amount": "int64", "ts": "timestamp"})
spend = stream_view("spend", card, payments, windows("amount", ["sum"], over=["lifetime"]))
fraud = FeatureService(name="fraud", features=[spend])
"""
CHANGED = DEFINITIONS.replace('"amount": "int64",', '"amount": "int64", "fee": "int64",').replace(
    'windows("amount", ["sum"], over=["lifetime"])',
    'windows("amount", ["max"], over=["lifetime"]), windows("fee", ["sum"], over=["lifetime"]), '
    'expect={"amount": ["between(0, 100)"]}',
)


class Repo:
    """A repo, its data directory and a worker in this process."""

    def __init__(self, root: Path) -> None:
        self.settings = Settings(repo=root / "repo", data_dir=root / "data", clock="event", lease=0.5)
        self.settings.repo.mkdir()
        (self.settings.repo / "feature_store.yaml").write_text("project: shop\nregistry: registry.db\n")
        self.store: Any = open_store(self.settings)
        self._pushed = 0

    def define(self, text: str) -> None:
        (self.settings.repo / "shop_features.py").write_text(text)

    def run(self, *arguments: str) -> Result:
        where = ["--repo", str(self.settings.repo), "--data-dir", str(self.settings.data_dir)]
        return CliRunner().invoke(group, [*arguments, *where])

    def push(self, **values: Any) -> None:
        """One event of card a, as a producer of the catalog in force pushes it."""
        self._pushed += 1
        row = {"id": str(self._pushed), "card_id": "a", "ts": f"2023-01-01T00:00:{self._pushed:02}Z", **values}
        version = load_catalog(self.store, "shop").version
        EventStream(self.store, "shop").append("payments", "ndjson", orjson.dumps(row), 1, catalog=version)

    def work(self) -> None:
        """A worker starts, takes all that there is, and stops."""
        offline = OfflineStore(self.settings.data_dir)
        worker = Worker(self.store, offline, load_catalog(self.store, "shop"), self.settings)
        worker.start()
        while worker.step(block_ms=1):
            pass
        worker.close()

    def values(self) -> dict[str, Any]:
        """The features of card a."""

        async def look() -> dict[str, Any]:
            plan = plan_service(load_catalog(self.store, "shop"), "fraud")
            client = open_store_async(self.settings)
            try:
                found = await lookup(client, plan, parse_request(plan, {"card_id": ["a"]}), None, 0)
            finally:
                await client.aclose()
            return {name: column[0].as_py() for name, column in zip(found.names[1:], found.columns[1:], strict=True)}

        return asyncio.run(look())


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repo]:
    monkeypatch.setattr(materialize.rebuild, "SETTLE_S", 0.0)
    monkeypatch.setenv("HEADRACE_CLOCK", "event")
    made = Repo(tmp_path)
    yield made
    made.store.close()
    detach(made.settings.data_dir)


def body(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_view_that_serves_is_changed_by_a_rebuild_alone(repo: Repo) -> None:
    repo.define(DEFINITIONS)
    assert repo.run("apply").exit_code == 0
    repo.push(amount=5, fee=1)
    repo.push(amount=500, fee=1)
    repo.work()
    assert repo.values() == {"sum_amount_lifetime": 505}

    repo.define(CHANGED)
    assert any("apply --rebuild" in note for note in json.loads(repo.run("plan", "--json").stdout)["notes"])
    refused = repo.run("apply", "--json")
    assert refused.exit_code == 1 and "run headrace apply --rebuild" in json.loads(refused.stdout)["refused"]
    assert repo.values() == {"sum_amount_lifetime": 505}

    applied = body(repo.run("apply", "--rebuild", "--json"))
    assert applied["version"] == 3 and any(note.startswith("Rebuilt spend from 2 events") for note in applied["notes"])
    assert repo.values() == {"max_amount_lifetime": 5, "sum_fee_lifetime": None}, "no producer knew of fees yet"
    repo.push(amount=7, fee=2)
    repo.work()
    assert repo.values() == {"max_amount_lifetime": 7, "sum_fee_lifetime": 2}
    catalog = load_catalog(repo.store, "shop")
    letters = list_letters(repo.store, OfflineStore(repo.settings.data_dir), catalog)
    assert [(letter["view"], letter["offset"] > 0) for letter in letters] == [("spend", True)]
    assert body(repo.run("apply", "--json"))["changes"] == []


def test_rebuild_says_what_it_did_and_knows_its_views(repo: Repo) -> None:
    repo.define(DEFINITIONS)
    repo.run("apply")
    repo.push(amount=5)
    repo.work()
    done = body(repo.run("rebuild", "spend", "--json"))
    assert (done["views"], done["events"], done["version"]) == (["spend"], 1, 3)
    assert repo.values() == {"sum_amount_lifetime": 5}
    assert "serving from catalog version 5" in repo.run("rebuild", "spend").stdout
    assert isinstance(repo.run("rebuild", "typo").exception, UnknownNameError)
    assert "Stopped or killed, run it" in repo.run("rebuild", "--help").stdout


def test_a_view_that_never_served_is_changed_at_once(repo: Repo) -> None:
    repo.define(DEFINITIONS)
    repo.run("apply")
    repo.define(CHANGED)
    assert body(repo.run("apply", "--json"))["version"] == 2
