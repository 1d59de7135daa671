"""A running shop for the tests of the server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shop import Live, running, shop

from headrace.settings import Settings


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder: Path = tmp_path_factory.mktemp("a shop")
    settings = Settings(repo=folder, data_dir=folder / "data", port=0, max_rows=50, max_body_bytes=1 << 20)
    with running(settings, shop()) as server:
        deadline = time.monotonic() + 20
        while server.http.get("/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield server
