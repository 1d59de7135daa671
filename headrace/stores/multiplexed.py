"""One connection to the store that all requests of a process share: their commands leave together, once a loop turn.

Replies come in the order of the commands, so a request is known by its place and by how many replies it waits for.
Whatever becomes of a request (its caller is gone, its time is up, its callback fails), its replies are counted and
dropped, and those of the others are not moved. A reply that is an error fails the request that it answers. A lost
connection fails what was under way, and the next request opens another; none is sent twice.

redis-py makes the connection (any kind of URL, TLS, user and password) and is then left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
import redis
import redis.asyncio

from headrace.stores.wire import reply_error
from headrace.telemetry import get_logger

__all__ = ["OnDone", "SharedConnection"]

OnDone = Callable[[Any], None]
"""Gets the list of a request's replies, or a redis.RedisError in its place."""

TIMEOUT_S = 5.0
"""How long a request waits for its replies."""
STUCK_S = 15.0
"""A connection whose oldest replies are so late is given up: its server is gone, or will not answer."""
MOST_WAITING = 20_000
"""Requests under way; more are refused at once."""
WATCH_S = 0.25
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.05, 2.0
KEPT_BUFFER_BYTES = 1 << 20

log = get_logger()


class _Waiting:
    """A request whose replies are due; `on_done` is None once nobody waits for them any more."""

    __slots__ = ("on_done", "replies", "since_s")

    def __init__(self, replies: int, on_done: OnDone, since_s: float) -> None:
        self.replies, self.on_done, self.since_s = replies, cast(OnDone | None, on_done), since_s


class _Link(asyncio.Protocol):
    """One connection, from its greeting to its end."""

    def __init__(self, connection: Any, on_lost: Callable[[_Link, Exception], None]) -> None:
        self._writer = connection._writer  # closes its transport when nobody holds it
        self._transport: Any = self._writer.transport
        self._on_lost = on_lost
        self._waiting: deque[_Waiting] = deque()
        self._unsent: list[bytes] = []
        self._got: list[Any] = []
        self._error: Exception | None = None
        self._reader = hiredis.Reader(replyError=self._note_error)
        self._reader.setmaxbuf(KEPT_BUFFER_BYTES)
        self._loop = asyncio.get_running_loop()
        self._transport.set_protocol(self)
        connection._reader = connection._writer = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def send(self, packed: bytes, waiting: _Waiting) -> None:
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(packed)
        self._waiting.append(waiting)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self.is_open:
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    def _note_error(self, text: str) -> Exception:
        self._error = reply_error(text)
        return self._error

    def data_received(self, data: bytes) -> None:
        try:
            self._take(data)
        except hiredis.ProtocolError as error:
            self.give_up(redis.ConnectionError(f"the store's reply cannot be read ({error})"))

    def _take(self, data: bytes) -> None:
        self._reader.feed(data)
        gets, waiting, got = self._reader.gets, self._waiting, self._got
        while (reply := gets()) is not False:
            got.append(reply)
            if not waiting:
                self.give_up(redis.ConnectionError("the store answers what nobody asked"))
                return
            if len(got) == waiting[0].replies:
                error, self._error, self._got = self._error, None, []
                finish(waiting.popleft(), got if error is None else error)
                got = self._got

    def drop_late(self, before_s: float) -> float | None:
        """Fails the requests that began before; returns when the oldest that is still under way did."""
        for waiting in self._waiting:
            if waiting.since_s > before_s:
                break
            finish(waiting, redis.TimeoutError("the store's reply did not come in time"))
        return self._waiting[0].since_s if self._waiting else None

    def give_up(self, error: Exception) -> None:
        """Closes the connection and fails what is under way."""
        self._transport.abort()
        self._end(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(redis.ConnectionError(f"the connection to the store was lost ({error or 'closed'})"))

    def _end(self, error: Exception) -> None:
        lost, self._waiting = self._waiting, deque()
        self._on_lost(self, error)
        for waiting in lost:
            finish(waiting, error)


def finish(waiting: _Waiting, result: Any) -> None:
    """Hands a request its result, once; a failure of its callback is its own."""
    on_done, waiting.on_done = waiting.on_done, None
    if on_done is None:
        return
    try:
        on_done(result)
    except Exception as error:
        log.error("what waited for the store failed", exc_info=error)


class SharedConnection:
    """The connection of one event loop to the server of `store`, opened when first used; see the module.

    Only that loop's thread may touch it.
    """

    def __init__(self, store: redis.asyncio.Redis, timeout_s: float = TIMEOUT_S) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._link: _Link | None = None
        self._opening: asyncio.Task[None] | None = None
        self._queued: deque[tuple[bytes, _Waiting]] = deque()
        self._failed: Exception | None = None
        self._retry_s, self._backoff_s = 0.0, 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._closed = False

    def submit(self, packed: bytes, replies: int, on_done: OnDone) -> None:
        """Sends commands, packed, that get so many replies (at least 1); `on_done` is called once, maybe at once.

        It gets redis.ConnectionError without a connection, redis.TimeoutError after `timeout_s`, the error of a reply
        in place of all.
        """
        waiting = _Waiting(replies, on_done, time.monotonic())
        link = self._link
        if (len(self._queued) if link is None else len(link)) >= MOST_WAITING:
            finish(waiting, redis.ConnectionError(f"{MOST_WAITING} requests wait for the store"))
        elif link is not None and link.is_open:
            link.send(packed, waiting)
        else:
            self._queue(packed, waiting)
        if self._watch is None and not self._closed:
            self._watch = asyncio.get_running_loop().call_later(WATCH_S, self._look)

    async def request(self, packed: bytes, replies: int) -> list[Any]:
        """The replies to commands; cancelling drops them when they come. Raises redis.RedisError as `submit` gives."""
        found: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

        def on_done(result: Any) -> None:
            if found.done():
                return
            if isinstance(result, Exception):
                found.set_exception(result)
            else:
                found.set_result(result)

        self.submit(packed, replies, on_done)
        return await found

    async def aclose(self) -> None:
        """Closes the connection; what is under way fails."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._watch is not None:
            self._watch.cancel()
        error = redis.ConnectionError("the connection was closed")
        if self._link is not None:
            self._link.give_up(error)
        self._fail_queued(error)

    def _queue(self, packed: bytes, waiting: _Waiting) -> None:
        """Lets a request wait for the connection that is being opened, or that it opens itself. While the last attempt
        lies back no longer than the backoff, it fails at once."""
        if self._closed:
            finish(waiting, redis.ConnectionError("the connection was closed"))
        elif self._opening is None and self._failed is not None and time.monotonic() < self._retry_s:
            finish(waiting, self._failed)
        else:
            self._queued.append((packed, waiting))
            if self._opening is None:
                self._opening = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        pool: Any = self._store.connection_pool
        connection = pool.make_connection()
        try:
            await connection.connect()
            link = _Link(connection, self._lost)
            if not link.is_open:
                raise redis.ConnectionError("the store closed the connection")
        except (redis.RedisError, OSError) as error:
            self._opening = None
            self._back_off(error if isinstance(error, redis.RedisError) else redis.ConnectionError(str(error)))
            return
        except BaseException:
            with contextlib.suppress(redis.RedisError, OSError):
                await connection.disconnect(nowait=True)
            raise
        self._opening, self._failed, self._backoff_s = None, None, 0.0
        self._link = link
        queued, self._queued = self._queued, deque()
        for packed, waiting in queued:
            if waiting.on_done is not None:
                link.send(packed, waiting)

    def _back_off(self, error: redis.RedisError) -> None:
        if self._backoff_s == 0:
            log.warning("the online store cannot be reached; trying again", error=str(error))
        self._backoff_s = min(max(2 * self._backoff_s, FIRST_BACKOFF_S), LONGEST_BACKOFF_S)
        self._failed = error
        self._retry_s = time.monotonic() + self._backoff_s * random.uniform(0.5, 1.0)
        self._fail_queued(error)

    def _fail_queued(self, error: Exception) -> None:
        queued, self._queued = self._queued, deque()
        for _, waiting in queued:
            finish(waiting, error)

    def _lost(self, link: _Link, error: Exception) -> None:
        if self._link is link:
            self._link = None
            if not self._closed:
                log.warning("the connection to the online store ended", error=str(error))

    def _look(self) -> None:
        """Now and then: what is late fails, a connection that is stuck is given up."""
        self._watch = None
        now_s = time.monotonic()
        for _, waiting in self._queued:
            if waiting.since_s <= now_s - self._timeout_s:
                finish(waiting, redis.TimeoutError("the store could not be reached in time"))
        link = self._link
        if link is not None:
            oldest_s = link.drop_late(now_s - self._timeout_s)
            if oldest_s is not None and oldest_s <= now_s - STUCK_S:
                link.give_up(redis.TimeoutError("the store does not answer"))
        if not self._closed and (self._queued or self._link):
            self._watch = asyncio.get_running_loop().call_later(WATCH_S, self._look)
