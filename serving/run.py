"""Run the server until it is told to stop."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import uvicorn

from headrace.errors import SettingsError
from headrace.settings import Settings
from serving.app import build_app
from serving.state import open_state

__all__ = ["run_server"]

BACKLOG = 2_048
GRACE_S = 10


def run_server(settings: Settings, on_listening: Callable[[str], None], stop: threading.Event | None = None) -> None:
    """Serve until SIGINT or SIGTERM, then finish the requests under way.

    `on_listening` gets the URL once the server answers. `stop` is set by signals that came before uvicorn took them
    over. Raises SettingsError for a set-up that cannot work.
    """
    stop = stop or threading.Event()
    listener = bind(settings)
    try:
        server = Server(make_config(settings), lambda: on_listening(url_of(listener)), stop)
        if not stop.is_set():
            server.run(sockets=[listener])
    finally:
        listener.close()


def bind(settings: Settings) -> socket.socket:
    """A socket at the settings' host and port; raises SettingsError when it cannot be had."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise _cannot_listen(settings, error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(settings, error) from None
    return listener


def _cannot_listen(settings: Settings, error: OSError) -> SettingsError:
    return SettingsError(
        f"The server must have a free address, but {settings.host}:{settings.port} cannot be had ({error.strerror}); "
        "choose another with HEADRACE_PORT or --port (0 takes any free one)."
    )


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def make_config(settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        build_app(open_state(settings)),
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_config=None,
        log_level="critical",  # failures of requests are logged once, by the handler of unexpected errors
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )


class Server(uvicorn.Server):
    """uvicorn's server, which says when it listens, and stops at once if `stop` was set while it started."""

    def __init__(
        self, config: uvicorn.Config, on_listening: Callable[[], None], stop: threading.Event | None = None
    ) -> None:
        super().__init__(config)
        self._on_listening = on_listening
        self._stop = stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._stop is not None and self._stop.is_set():
            self.should_exit = True
        elif self.started:
            self._on_listening()
