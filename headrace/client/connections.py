"""HTTP/1.1 to one server over connections that are kept: httptools parses, asyncio transports.

A general client's request costs a millisecond of this process on an event loop, a lookup's answer a tenth of that.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httptools

from headrace.errors import RequestError, ServerError

__all__ = ["Connections", "Reply"]

IDLE_S = 4.0
"""How long a connection is kept for another request: servers close theirs after five seconds or more."""
UNIX = "unix:"


class Reply(NamedTuple):
    """A whole reply; header names are in lower case."""

    status: int
    headers: dict[str, str]
    content: bytes


class _Connection(asyncio.Protocol):
    """One connection, which answers one request at a time."""

    def __init__(self) -> None:
        self.is_free = False
        self.idle_since_s = 0.0
        self._answer: asyncio.Future[Reply] | None = None
        self._transport: Any = None
        self._parser: Any = None
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []

    async def ask(self, request: bytes) -> Reply:
        """The reply. Raises ConnectionError for a connection that ends before, ServerError for what is no HTTP."""
        self.is_free = False
        self._parser, self._headers, self._parts = httptools.HttpResponseParser(self), {}, []
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            raise ConnectionResetError("the connection was closed")
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self.is_free = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():  # nobody asked
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ServerError(f"The server must answer in HTTP/1.1, it does not: {error}; correct the URL."))
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._answer is None or self._answer.done():
            return
        self.is_free = self._parser.should_keep_alive()
        self.idle_since_s = time.monotonic()
        self._answer.set_result(Reply(self._parser.get_status_code(), self._headers, b"".join(self._parts)))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_free = False
        self._fail(ConnectionResetError(str(error or "the connection ended before the reply")))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


class Connections:
    """The connections to the server at `url`, at most so many at once, for one event loop."""

    def __init__(self, url: str, headers: Mapping[str, str], verify: bool | str, most: int) -> None:
        """`url` is http, https, or `unix:` and a path; `headers` go with every request; `verify` is whether a
        certificate is checked, or the file of the CA that signed it. Raises RequestError for another URL."""
        self._socket = url.removeprefix(UNIX) if url.startswith(UNIX) else None
        parts = urlsplit("http://localhost" if self._socket is not None else url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RequestError(f"A server's URL is like http://localhost:6566 or unix:/its/socket, got {url!r}.")
        self._host, self._port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        self._path = parts.path.rstrip("/")
        self._tls = _tls(verify) if parts.scheme == "https" else None
        self._fixed = _lines({"host": parts.netloc.rpartition("@")[2], **headers})
        self._slots = asyncio.Semaphore(most)
        self._kept: list[_Connection] = []

    async def post(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """The reply to a request. Raises OSError for a connection that cannot be had or ends, ServerError."""
        head = f"POST {self._path}{path} HTTP/1.1\r\n{self._fixed}{_lines(headers)}content-length: {len(body)}\r\n\r\n"
        async with self._slots:
            connection = self._take() or await self._connect()
            try:
                reply = await connection.ask(head.encode("latin-1") + body)
            except BaseException:
                connection.close()
                raise
            if connection.is_free:
                self._kept.append(connection)
            else:
                connection.close()
            return reply

    def close(self) -> None:
        """Closes the connections that are kept."""
        while self._kept:
            self._kept.pop().close()

    def _take(self) -> _Connection | None:
        oldest_s = time.monotonic() - IDLE_S
        while self._kept:
            connection = self._kept.pop()
            if connection.is_free and connection.idle_since_s > oldest_s:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        if self._socket is not None:
            return (await loop.create_unix_connection(_Connection, self._socket))[1]
        return (await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls))[1]


def _tls(verify: bool | str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=verify if isinstance(verify, str) else None)
    if verify is False:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _lines(headers: Mapping[str, str]) -> str:
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    for line in lines:
        if "\r" in line[:-2] or "\n" in line[:-2] or not line.isascii():
            raise RequestError(f"A header must be one line of ASCII, got {line[:-2]!r}.")
    return "".join(lines)
