"""Fixtures that every room shares. Stores are real, and only those that the tests started."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import hypothesis
import prometheus_client  # noqa: F401  # before Feast, which would have it count into files
import pytest
from xdist.scheduler import LoadScopeScheduling

from headrace.settings import Settings, _from_environment
from headrace.stores.embedded import detach

hypothesis.settings.register_profile("headrace", deadline=None)
hypothesis.settings.load_profile("headrace")

for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
    if not name.startswith(("HEADRACE_CRASH_", "HEADRACE_ORACLE_", "HEADRACE_CLUSTER_")):
        del os.environ[name]
# machines that run tests are busy: no answer is given up there but where a test is about that
os.environ.update({"HEADRACE_DEADLINE_MS": "20000", "HEADRACE_SHED_LAG_MS": "5000", "HEADRACE_DEGRADE": "0"})
os.environ.pop("COLUMNS", None)  # of the terminal, as processes of pytest-xdist are told: no output is for one

TOGETHER = {"cluster": "processes", "crash": "processes", "feast_plugin": "feast_plugin"}
"""Folders whose tests run in one process, one after the other: they start many, or share what is dear to set up."""


class FilesTogether(LoadScopeScheduling):
    """How tests are shared out among processes (`pytest -n 2`): those of a file stay together, for its fixtures."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return TOGETHER.get(path.split("/")[1], path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesTogether:
    config.option.loadscopereorder = False  # few tests in a file may be long ones
    return FilesTogether(config, log)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a data directory of the session's own, whose embedded store starts when first asked for."""
    folder = tmp_path_factory.mktemp("headrace")
    made = Settings(repo=folder / "repo", data_dir=folder / "data")
    yield made
    detach(made.data_dir)


@pytest.fixture
def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(autouse=True)
def _fresh_environment() -> Iterator[None]:
    """No test sees the settings that another put into the environment."""
    _from_environment.cache_clear()
    yield
    _from_environment.cache_clear()
