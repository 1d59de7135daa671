"""Thousands of commands over one connection, packed by hand and read by hiredis: what a pipeline would cost otherwise.

A command is its bytes in the Redis protocol (RESP). `command_template` makes the part that thousands of commands
share once; `template % (len(a), a, len(b), b)` fills in the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hiredis
import redis

__all__ = ["Wire", "command_template", "pack_command", "reply_error"]

_RECEIVE_BYTES = 1 << 18
_ERRORS: dict[str, type[redis.RedisError]] = {
    "NOSCRIPT": redis.exceptions.NoScriptError,
    "READONLY": redis.exceptions.ReadOnlyError,
    "LOADING": redis.exceptions.BusyLoadingError,
}


def command_template(*parts: bytes | int | None) -> bytes:
    """A command's bytes with `%d` and `%b` for the length and the bytes of every None among `parts`."""
    packed = [b"*%d\r\n" % len(parts)]
    for part in parts:
        if part is None:
            packed.append(b"$%d\r\n%b\r\n")
        else:
            data = part if isinstance(part, bytes) else b"%d" % part
            packed.append((b"$%d\r\n%b\r\n" % (len(data), data)).replace(b"%", b"%%"))
    return b"".join(packed)


_LENGTHS = [b"\r\n$%d\r\n" % n for n in range(1 << 13)]
"""What stands before a part of each of the lengths that most have."""


def pack_command(parts: Sequence[bytes]) -> bytes:
    """A command's bytes."""
    if max(map(len, parts)) < len(_LENGTHS):
        pieces = [piece for part in parts for piece in (_LENGTHS[len(part)], part)]
    else:
        pieces = [piece for part in parts for piece in (b"\r\n$%d\r\n" % len(part), part)]
    return b"".join([b"*%d" % len(parts), *pieces, b"\r\n"])


def reply_error(text: str) -> redis.RedisError:
    """The exception that an error reply stands for."""
    return _ERRORS.get(text.partition(" ")[0], redis.ResponseError)(text)


class Wire:
    """A connection of its own to a client's server, opened when first used. Not thread-safe.

    Any failure closes it, so that no late reply can be taken for another's, and raises redis.RedisError.
    """

    keys_per_command = 32

    def __init__(self, store: redis.Redis) -> None:
        self._pool = store.connection_pool
        self._connection: Any = None
        self._reader: Any = hiredis.Reader()
        self._buffer = bytearray(_RECEIVE_BYTES)

    def send(self, commands: Sequence[bytes]) -> None:
        """Sends the commands; their replies must be received, in order."""
        try:
            self._socket().sendall(b"".join(commands))
        except OSError as error:
            self.close()
            raise redis.ConnectionError(f"the connection to the store was lost ({error})") from error

    def receive(self, n: int) -> list[Any]:
        """The next `n` replies. If one of them is an error, raises it after all have been read."""
        replies = self.receive_any(n)
        if any(issubclass(kind, Exception) for kind in set(map(type, replies))):
            raise next(reply for reply in replies if isinstance(reply, Exception))
        return replies

    def receive_any(self, n: int) -> list[Any]:
        """The next `n` replies, errors among them."""
        replies: list[Any] = []
        gets = self._reader.gets
        while len(replies) < n:
            reply = gets()
            if reply is not False:
                replies.append(reply)
            else:
                self._feed()
                gets = self._reader.gets
        return replies

    def _feed(self) -> None:
        try:
            size = self._socket().recv_into(self._buffer)
        except OSError as error:
            self.close()
            kind = redis.TimeoutError if isinstance(error, TimeoutError) else redis.ConnectionError
            raise kind(f"the store's reply did not come ({error})") from error
        if not size:
            self.close()
            raise redis.ConnectionError("the store closed the connection")
        self._reader.feed(self._buffer, 0, size)

    def _socket(self) -> Any:
        if self._connection is None:
            connection: Any = self._pool.make_connection()
            connection.connect()
            self._connection = connection
            self._reader = hiredis.Reader(replyError=reply_error)
        return self._connection._sock

    def close(self) -> None:
        """Closes the connection; the next use opens another."""
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None
