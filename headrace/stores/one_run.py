"""A client that speaks to one run of the store's server: the one that it first met.

A pool of connections opens a lost one again unasked. Between two commands of one piece of work the server may then be
another: one that came back with less, or a replica in its place. What was read from the first must not be finished in
the second.
"""

from __future__ import annotations

import re
from typing import Any, cast

import redis

__all__ = ["Run", "StoreReplacedError", "one_run"]


class StoreReplacedError(redis.ConnectionError):
    """The server that this client spoke to has ended or given way; begin anew with a new client."""


def one_run(store: redis.Redis) -> redis.Redis:
    """A client like `store`, with connections of its own, every one to the run of the server that the first of them
    finds; to another, StoreReplacedError. Where INFO is forbidden it is a client like any other."""
    client: Any = store
    if isinstance(client, redis.RedisCluster):
        return cast(redis.Redis, cast(Any, client).fresh())
    pool = store.connection_pool
    settings = {**pool.connection_kwargs, "redis_connect_func": Run().connect}
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **settings))


class Run:
    """The run that was met first."""

    def __init__(self) -> None:
        self._id: bytes | None = None

    def connect(self, connection: Any) -> None:
        """Greets the server on a new connection. Raises StoreReplacedError for another than the first."""
        connection.on_connect()
        met = _run_id(connection)
        if self._id is not None and met != self._id:
            raise StoreReplacedError("the store's server is another than the one that this work began with")
        self._id = met


def _run_id(connection: Any) -> bytes:
    """The server's name for its run, empty where it tells none."""
    connection.send_command("INFO", "server")
    try:
        reply = connection.read_response()
    except redis.ResponseError:
        return b""
    text = reply if isinstance(reply, bytes) else str(reply).encode()
    found = re.search(rb"run_id:(\w+)", text)
    return cast(bytes, found.group(1)) if found else b""
