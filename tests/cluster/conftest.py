"""One cluster for all tests that leave it as they found it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.nodes import Node, cluster, url_of

from headrace.settings import Settings

PRIMARIES, SPARE = 3, 3


HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Clients of a cluster that nobody closes are found by the collector of cycles, their sockets first."""
    for item in items:
        if item.path.parent == HERE:
            for kind in ("pytest.PytestUnraisableExceptionWarning", "ResourceWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"))


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    """Three primaries, and one without slots."""
    with cluster(tmp_path_factory.mktemp("cluster"), PRIMARIES, spares=1) as started:
        yield started


@pytest.fixture
def clustered(nodes: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings of an empty cluster, which processes of this one find too."""
    for node in nodes:
        node.client.flushall()
    monkeypatch.setenv("HEADRACE_REDIS_URL", url_of(nodes[0]))
    yield Settings(repo=tmp_path / "repo", data_dir=tmp_path / "data", port=0, lease=1.0)
    gc.collect()
