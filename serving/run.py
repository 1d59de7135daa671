"""Run the server until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn

from headrace.settings import Settings
from headrace.telemetry import get_logger
from serving.app import build_app
from serving.lane import lane_protocol
from serving.listeners import BACKLOG, Listeners, bind, listening, url_of
from serving.state import open_state
from serving.workers import run_workers

__all__ = ["Server", "bind", "make_config", "run_server", "serve_handed", "url_of"]

log = get_logger()

GRACE_S = 10
SECURITY_HEADERS = [("x-content-type-options", "nosniff"), ("x-frame-options", "DENY"), ("cache-control", "no-store")]
"""On every reply: what is answered is data of the moment, and no page of others."""


def run_server(settings: Settings, on_listening: Callable[[str], None], stop: threading.Event | None = None) -> None:
    """Serve until SIGINT or SIGTERM, then finish the requests under way.

    `on_listening` gets the URL once the server answers. `stop` is set by signals that came before uvicorn took them
    over. Raises SettingsError for a set-up that cannot work.
    """
    stop = stop or threading.Event()

    def told() -> None:
        on_listening(url)
        if settings.api_keys is None:
            log.warning("no API keys: whoever can reach the server may read and write", url=url)

    with listening(settings) as listeners:
        url = url_of(listeners.address, settings.tls_cert is not None)
        if settings.workers > 1:
            run_workers(settings, listeners, told, stop)
        else:
            serve(settings, listeners, told, stop)


def serve(settings: Settings, listeners: Listeners, on_listening: Callable[[], None], stop: threading.Event) -> None:
    """Serve in this process, on sockets that listen."""
    server = Server(make_config(settings), on_listening, stop, listeners.local)
    if not stop.is_set():
        server.run(sockets=[listeners.address])


def serve_handed(settings: Settings, handed: str, stop: threading.Event) -> None:
    """Serve as a worker, on the sockets that its parent hands it (see workers.py)."""
    address, local, ready = (None if part == "-" else int(part) for part in handed.split(","))
    assert address is not None and ready is not None
    unix = None if local is None else socket.socket(fileno=local)
    try:
        serve(settings, Listeners(socket.socket(fileno=address), unix), lambda: _say_ready(ready), stop)
    finally:
        if unix is not None:
            unix.close()


def _say_ready(pipe: int) -> None:
    os.write(pipe, b".")
    os.close(pipe)


def make_config(settings: Settings) -> uvicorn.Config:
    state = open_state(settings)
    return uvicorn.Config(
        build_app(state),
        loop="uvloop",
        http=lane_protocol(state) if settings.fast_lane else "httptools",
        ws="none",
        access_log=False,
        log_config=None,
        log_level="critical",  # failures of requests are logged once, by the handler of unexpected errors
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
        headers=SECURITY_HEADERS,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=None if settings.tls_key is None else str(settings.tls_key),
    )


class Server(uvicorn.Server):
    """uvicorn's server, which says when it listens, and stops at once if `stop` was set while it started. It listens on
    the unix socket `local` too."""

    def __init__(
        self,
        config: uvicorn.Config,
        on_listening: Callable[[], None],
        stop: threading.Event | None = None,
        local: socket.socket | None = None,
    ) -> None:
        super().__init__(config)
        self._on_listening = on_listening
        self._stop = stop
        self._local = local

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._local is not None:
            self.servers.append(await self._listen_locally(self._local))
        if self._stop is not None and self._stop.is_set():
            self.should_exit = True
        elif self.started:
            self._on_listening()

    async def _listen_locally(self, local: socket.socket) -> Any:
        config: Any = self.config
        protocol = partial(
            config.http_protocol_class, config=config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return await asyncio.get_running_loop().create_unix_server(protocol, sock=local, backlog=BACKLOG)
