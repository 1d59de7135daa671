from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
from fastapi import FastAPI
from shop import shop

import serving.state
from headrace.settings import Settings
from serving.state import ServerState, lifespan


class DeafStore:
    """A store whose client takes a cancellation for a failed connection."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.closed = False

    async def get(self, key: str) -> None:
        self.asked.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise redis.ConnectionError("gone") from None

    async def aclose(self) -> None:
        self.closed = True


def test_a_server_stops_even_if_its_store_s_client_swallows_the_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.state, "warm_up", lambda: None)

    async def live_and_stop() -> bool:
        app, store = FastAPI(), DeafStore()
        kept: Any = store
        app.state.headrace = ServerState(Settings(), kept, shop())
        async with asyncio.timeout(5), lifespan(app):
            await store.asked.wait()
        return store.closed

    assert asyncio.run(live_and_stop())
