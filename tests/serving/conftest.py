"""Running servers for the tests: the shop, and the repo of every type that Feast's server was recorded with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from shop import Live, running, shop

from headrace.settings import Settings


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module with BOTH_LANES runs twice: its lookups answered before ASGI, and through it."""
    for name in ("live", "wire"):
        if name in metafunc.fixturenames and getattr(metafunc.module, "BOTH_LANES", False):
            metafunc.parametrize(name, ["lane", "asgi"], indirect=True, scope="module")


def is_lane(request: pytest.FixtureRequest) -> bool:
    return getattr(request, "param", "lane") == "lane"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Live]:
    folder: Path = tmp_path_factory.mktemp("a shop")
    options = {"port": 0, "max_rows": 50, "max_body_bytes": 1 << 20, "fast_lane": is_lane(request)}
    settings = Settings.model_validate({"repo": folder, "data_dir": folder / "data", **options})
    with running(settings, shop()) as server:
        yield server


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Live]:
    """wire_repo and wire_more, with the rows and events that Feast's server had when it was recorded."""
    from headrace.catalog.compile import compile_repo
    from headrace.catalog.load import load_repo

    here = Path(__file__).parent
    record = json.loads((here / "feast_replies.json").read_text())
    folder = tmp_path_factory.mktemp("wire")
    shutil.copytree(here / "wire_repo", folder / "repo")
    shutil.copytree(here / "wire_more", folder / "repo", dirs_exist_ok=True)
    settings = Settings(repo=folder / "repo", data_dir=folder / "data", port=0, fast_lane=is_lane(request))
    with running(settings, compile_repo(load_repo(settings.repo))) as live:
        for body in record["writes"]:
            live.post("/write-to-online-store", body)
        live.push(record["events"], "readings")
        live.wait_until_applied()
        yield live
