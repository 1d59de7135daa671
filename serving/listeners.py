"""Where the server listens: an address, a unix socket beside it, and whether it speaks TLS."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import SettingsError
from headrace.settings import Settings
from serving.guards.access import refuse_open_address

__all__ = ["Listeners", "bind", "check_tls", "listening", "url_of"]

BACKLOG = 2_048


@dataclass(frozen=True, slots=True)
class Listeners:
    """Listening sockets: `address` of TCP, `local` a unix socket's."""

    address: socket.socket
    local: socket.socket | None = None

    def close(self) -> None:
        for held in (self.address, self.local):
            if held is not None:
                held.close()


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[Listeners]:
    """Sockets where the settings say; raises SettingsError when they cannot be had. The unix socket's file is removed
    in the end."""
    check_tls(settings)
    refuse_open_address(settings)
    listeners = Listeners(bind(settings), None)
    try:
        if settings.uds is not None:
            listeners = Listeners(listeners.address, _bind_local(settings.uds))
        yield listeners
    finally:
        listeners.close()
        if listeners.local is not None and settings.uds is not None:
            settings.uds.unlink(missing_ok=True)


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


def _bind_local(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_left_over(path):
            path.unlink()
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"The unix socket must be a path that nobody has, but {path} cannot be had ({error.strerror or error}); "
            "choose another with HEADRACE_UDS or --uds."
        ) from None
    return listener


def _is_left_over(path: Path) -> bool:
    """Whether it is the socket of a server that is gone."""
    if not path.exists() or not stat.S_ISSOCK(os.stat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) != 0


def check_tls(settings: Settings) -> None:
    """Raises SettingsError unless certificate and key are both there and fit, or neither is set."""
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None and key is None:
        return
    if cert is None or key is None:
        raise SettingsError(
            f"TLS takes a certificate and its key, got {cert or key} alone; "
            "set HEADRACE_TLS_CERT and HEADRACE_TLS_KEY (--tls-cert, --tls-key)."
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"TLS takes a certificate and its unencrypted key in PEM files, {cert} and {key} are refused ({error}); "
            "correct --tls-cert and --tls-key."
        ) from None


def url_of(listener: socket.socket, tls: bool = False) -> str:
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{'https' if tls else 'http'}://{shown}:{port}"
