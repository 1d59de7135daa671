"""Where the server of a data directory listens: `DATA_DIR/server.json`, there while a server runs."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import orjson

from headrace.settings import Settings

__all__ = ["forget_server", "record_server", "running_server", "trusting"]


def record_server(settings: Settings, url: str) -> None:
    """State that this process serves the data directory at `url`; of several servers the last one stands there."""
    path = _path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    scratch.write_bytes(orjson.dumps({"pid": os.getpid(), "url": url}))
    scratch.replace(path)


def forget_server(settings: Settings) -> None:
    """Take back what this process recorded."""
    held = _read(settings)
    if held is not None and held[0] == os.getpid():
        _path(settings).unlink(missing_ok=True)


def running_server(settings: Settings) -> str | None:
    """URL of the server that the data directory names, None without one and when its process is gone."""
    held = _read(settings)
    if held is None:
        return None
    pid, url = held
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it lives, as another user's
    return url


def trusting(settings: Settings) -> ssl.SSLContext:
    """What a server of these settings is asked with over TLS: its own certificate is trusted, under any name."""
    context = ssl.create_default_context()
    if settings.tls_cert is not None:
        context.load_verify_locations(settings.tls_cert)
        context.check_hostname = False
    return context


def _path(settings: Settings) -> Path:
    return settings.data_dir / "server.json"


def _read(settings: Settings) -> tuple[int, str] | None:
    try:
        held = orjson.loads(_path(settings).read_bytes())
        return int(held["pid"]), str(held["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
