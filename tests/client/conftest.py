"""A running shop, clients of it over HTTP and straight to its store, and a proxy before it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_proxy import Proxy
from shop import Live, running, shop

from headrace.client import FeatureClient
from headrace.settings import Settings


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder: Path = tmp_path_factory.mktemp("a shop")
    settings = Settings(repo=folder, data_dir=folder / "data", port=0, max_rows=50)
    with running(settings, shop()) as server:
        yield server


@pytest.fixture(scope="module", params=["over http", "from the store"])
def client(request: pytest.FixtureRequest, live: Live) -> Iterator[FeatureClient]:
    made = FeatureClient(live.url) if request.param == "over http" else FeatureClient.from_store(live.settings)
    with made:
        yield made


@pytest.fixture
def proxy(live: Live) -> Iterator[Proxy]:
    made = Proxy(live.url, socket.create_server(("127.0.0.1", 0)))
    yield made
    made.close()


@pytest.fixture
def proxy_url(proxy: Proxy) -> str:
    return f"http://127.0.0.1:{proxy.listener.getsockname()[1]}"
