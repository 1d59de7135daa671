"""The example of docs/feast.md, run as it stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plugged import applied_and_archived

from headrace.catalog.load import load_repo
from headrace.settings import Settings
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach

DOCS = Path(__file__).parents[2] / "docs"


def block(page: str, kind: str) -> str:
    found = re.search(rf"```{kind}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    from headrace.feast_plugin.shared import close_shared

    root = tmp_path / "feature_repo"
    root.mkdir()
    (root / "feature_store.yaml").write_text(block("feast.md", "yaml"))
    (root / "definitions.py").write_text(block("definitions.md", "python"))
    monkeypatch.chdir(tmp_path)
    yield root
    close_shared()
    detach(root / ".headrace")


def test_the_example_runs(repo: Path) -> None:
    from feast import FeatureStore

    settings = Settings(repo=repo, data_dir=repo / ".headrace")
    (repo / "data").mkdir()
    FeatureStore(str(repo)).apply(load_repo(repo).objects)
    with open_store(settings) as store:
        applied_and_archived(settings, store)
        names: dict[str, Any] = {}
        exec(block("feast.md", "python"), names)
        applied_and_archived(settings, store)
    asked = {"features": ["card_spend:sum_amount_1h"], "entity_rows": [{"card_id": "c1"}]}
    assert names["store"].get_online_features(**asked).to_dict()["sum_amount_1h"] == [12.5]
    joined = names["store"].get_historical_features(names["labels"], asked["features"]).to_df()
    assert joined["sum_amount_1h"].tolist() == [12.5]
