"""The upper bounds of a server: one fixed reply, with nothing behind it.

python -m benchmarks.bare_server asgi|protocol PORT FILE
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

import httptools
import uvicorn
import uvloop
from fastapi import FastAPI, Request, Response


def asgi(port: int, reply: bytes) -> None:
    """A route of FastAPI that reads its body, on uvicorn with uvloop and httptools."""
    app = FastAPI()

    @app.post("/get-online-features")
    async def answer(request: Request) -> Response:
        await request.body()
        return Response(reply, media_type="application/json")

    uvicorn.run(app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", access_log=False, log_level="error")


class Bare(asyncio.Protocol):
    """Answers whatever is asked as soon as the request is whole."""

    reply = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._transport.write(self.reply)


async def protocol(port: int, reply: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(reply)}\r\n\r\n"
    Bare.reply = head.encode() + reply
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    kind, port, reply = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).read_bytes()
    if kind == "asgi":
        asgi(port, reply)
    else:
        uvloop.run(protocol(port, reply))
