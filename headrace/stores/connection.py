"""Connections to the online store: the configured one, else the data directory's embedded server.

No command is sent twice by the client: who appends or compares-and-sets decides what a lost reply means.
"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from headrace.errors import SettingsError
from headrace.settings import Settings
from headrace.stores.cluster import SCHEMES, ClusterStore, open_cluster
from headrace.stores.cluster_async import AsyncClusterStore
from headrace.stores.embedded import attach

__all__ = ["open_store", "open_store_async", "store_url"]

CONNECT_TIMEOUT_S = 5.0
REPLY_TIMEOUT_S = 60.0  # longer than any XREAD blocks
LOADING_TIMEOUT_S = 120.0
_CLUSTER = {redis.Redis: ClusterStore, redis.asyncio.Redis: AsyncClusterStore}


def open_store(settings: Settings) -> redis.Redis:
    """A client of the online store, checked: it answers and never evicts.

    Attaches to (and if need be starts) the embedded server when no URL is configured, for this process's life.
    Raises SettingsError for a URL that is malformed or that nobody answers at, and for an evicting store.
    """
    client: redis.Redis = _client(redis.Redis, Retry(NoBackoff(), 0), settings)
    try:
        _wait_until_loaded(client, settings)
        _refuse_eviction(client)
    except BaseException:
        client.close()
        raise
    return client


def open_store_async(settings: Settings) -> redis.asyncio.Redis:
    """The same for asyncio. The checks block: call it before the loop serves anybody."""
    open_store(settings).close()
    client: redis.asyncio.Redis = _client(redis.asyncio.Redis, AsyncRetry(NoBackoff(), 0), settings)
    return client


def store_url(settings: Settings) -> str:
    """The URL that the settings configure without its password, or `embedded`."""
    if settings.redis_url is None:
        return "embedded"
    parts = urlsplit(settings.redis_url)
    secret, _, host = parts.netloc.rpartition("@")
    scheme = f"{parts.scheme}://" if parts.scheme else ""
    return f"{scheme}{'***@' if secret else ''}{host}{parts.path}"


def _client(kind: Any, retry: Any, settings: Settings) -> Any:
    options = {
        "decode_responses": False,
        "retry": retry,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": REPLY_TIMEOUT_S,
    }
    if settings.redis_url is None:
        return kind(unix_socket_path=str(attach(settings.data_dir)), **options)
    try:
        if urlsplit(settings.redis_url).scheme in SCHEMES:
            return open_cluster(_CLUSTER[kind], settings.redis_url, **{**options, "retry": retry})
        return kind.from_url(settings.redis_url, **options)
    except ValueError:
        raise SettingsError(
            f"HEADRACE_REDIS_URL must be a redis://, rediss://, unix:// or redis+cluster:// URL, got "
            f"{store_url(settings)!r}; write it like redis://localhost:6379, or unset it to use an embedded store."
        ) from None


def _wait_until_loaded(client: redis.Redis, settings: Settings) -> None:
    deadline = time.monotonic() + LOADING_TIMEOUT_S
    while True:
        try:
            client.ping()
            return
        except redis.BusyLoadingError as error:
            if time.monotonic() > deadline:
                raise _unreachable(settings, error) from None
            time.sleep(0.1)
        except (redis.RedisError, OSError) as error:
            raise _unreachable(settings, error) from None


def _unreachable(settings: Settings, error: Exception) -> SettingsError:
    return SettingsError(
        f"The online store must be reachable, but {store_url(settings)} does not answer ({error}); "
        "start it, correct HEADRACE_REDIS_URL, or unset it to use an embedded store."
    )


def _refuse_eviction(client: redis.Redis) -> None:
    """Raise SettingsError for a store that drops keys when it is full; one that hides its settings passes."""
    try:
        found: Any = client.config_get("maxmemory-policy")
    except redis.ResponseError:  # CONFIG is forbidden or renamed
        return
    policy = {_text(name): _text(value) for name, value in found.items()}.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        raise SettingsError(
            f"The online store must never evict, but its maxmemory-policy is {policy!r}; "
            "set it with CONFIG SET maxmemory-policy noeviction, and in its configuration file."
        )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
