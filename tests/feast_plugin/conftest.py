"""A repo applied by Feast's CLI, and stores of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from plugged import DEFINITIONS, Plugged, feast_cli, write_profiles, write_repo

from headrace.stores.embedded import detach


@pytest.fixture(scope="package")
def plugged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugged]:
    from headrace.feast_plugin.shared import close_shared

    root = write_repo(tmp_path_factory.mktemp("plugged") / "repo", DEFINITIONS)
    now = datetime.now(UTC)
    write_profiles(root, now)
    feast_cli(root, "apply", f"materialize-incremental {(now + timedelta(seconds=1)).isoformat()}")
    made = Plugged(root, now)
    made.take_in()
    yield made
    made.store.close()
    close_shared()
    detach(made.settings.data_dir)


@pytest.fixture
def feast_store(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Feast's store over an empty repo of the test's own."""
    from feast import FeatureStore

    from headrace.feast_plugin.shared import close_shared

    folders = []

    def make(**options: Any) -> Any:
        root = write_repo(tmp_path / f"repo{len(folders)}", "", **options)
        folders.append(root / "data")
        return FeatureStore(repo_path=str(root))

    yield make
    close_shared()
    for folder in folders:
        detach(folder)
