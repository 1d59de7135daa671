"""A signal that comes while the server starts stops it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from shop import shop

import serving.run
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach


@pytest.mark.parametrize("moment", ["before", "while building", "while starting"])
def test_a_stop_that_comes_before_uvicorn_takes_the_signals_is_honoured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data", port=0)
    with open_store(settings) as store:
        save_catalog(store, settings, shop())
    stop, listened = threading.Event(), []
    made, begun = serving.run.make_config, serving.run.Server.startup

    def build(given: Settings) -> object:
        if moment == "while building":
            stop.set()
        return made(given)

    async def start(self: serving.run.Server, sockets: object = None) -> None:
        stop.set()
        await begun(self, sockets)  # type: ignore[arg-type]

    monkeypatch.setattr(serving.run, "make_config", build)
    if moment == "while starting":
        monkeypatch.setattr(serving.run.Server, "startup", start)
    if moment == "before":
        stop.set()
    serving.run.run_server(settings, listened.append, stop)
    detach(settings.data_dir)
    assert listened == []
