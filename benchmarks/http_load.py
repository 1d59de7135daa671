"""Load on an HTTP server from a process of its own, over connections that stay open.

    python -m benchmarks.http_load FILE PORT SECONDS CONNECTIONS [RATE]

FILE holds the bodies of `POST /get-online-features`, one JSON object a line, asked in turn. Without RATE every
connection asks again as soon as it is answered (closed loop). With RATE requests fall due on a schedule that never
waits for anything (open loop), and a latency counts from the moment its request was due, so that a stalled server is
not let off the requests that it kept from being sent. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import httptools
import numpy as np
import orjson
import uvloop

__all__ = ["WARM_UP_S", "Load", "request_bytes"]

WARM_UP_S = 0.5
TICK_S = 0.0005
LATEST_S = 5.0


def request_bytes(body: bytes, accept: str = "application/json", path: str = "/get-online-features") -> bytes:
    """One request as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._parser = httptools.HttpResponseParser(self)
        self._due_s = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._load.lost += not self._load.ended

    def ask(self, due_s: float) -> None:
        assert self.transport is not None
        self._due_s = due_s
        self.transport.write(self._load.next_request())

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self._parser = httptools.HttpResponseParser(self)
        self._load.answered(self, self._due_s, status)


@dataclass
class Load:
    """One run: what is asked, and what came back."""

    requests: Sequence[bytes]
    rate: float | None = None
    latencies_s: list[float] = field(default_factory=list)
    refused: int = 0
    lost: int = 0
    ended: bool = False
    since_s: float = float("inf")
    _sent: int = 0
    _idle: deque[Connection] = field(default_factory=deque)
    _waiting: deque[float] = field(default_factory=deque)

    def next_request(self) -> bytes:
        self._sent += 1
        return self.requests[self._sent % len(self.requests)]

    def answered(self, connection: Connection, due_s: float, status: int) -> None:
        """Count one reply, and use the connection again."""
        now_s = time.perf_counter()
        if due_s >= self.since_s:
            self.latencies_s.append(now_s - due_s)
            self.refused += status != 200
        if self.ended:
            return
        if self.rate is None:
            connection.ask(now_s)
        elif self._waiting:
            connection.ask(self._waiting.popleft())
        else:
            self._idle.append(connection)

    async def run(self, port: int, seconds: float, connections: int) -> dict[str, float]:
        """Rates and latencies over `seconds`, after a warm-up."""
        loop = asyncio.get_running_loop()
        held = [
            (await loop.create_connection(lambda: Connection(self), "127.0.0.1", port))[1] for _ in range(connections)
        ]
        started_s = time.perf_counter()
        self.since_s = started_s + WARM_UP_S
        ends_s = self.since_s + seconds
        if self.rate is None:
            for connection in held:
                connection.ask(time.perf_counter())
            await asyncio.sleep(ends_s - time.perf_counter())
        else:
            self._idle = deque(held)
            await self._offer(started_s, ends_s, connections)
        self.ended = True
        n, unsent = len(self.latencies_s), len(self._waiting)
        for connection in held:
            if connection.transport is not None:
                connection.transport.abort()
        p50, p99, p999, worst = np.quantile(self.latencies_s or [0.0], [0.5, 0.99, 0.999, 1.0]).tolist()
        found = {"p50_ms": p50, "p99_ms": p99, "p999_ms": p999, "worst_ms": worst}
        counts = {"refused": self.refused, "lost": self.lost, "unsent": unsent}
        return {"per_s": n / seconds, **{name: s * 1e3 for name, s in found.items()}, **counts}

    async def _offer(self, started_s: float, ends_s: float, connections: int) -> None:
        """Send what falls due until the end, then wait a while for what is under way."""
        assert self.rate is not None
        due, last = 0, int((ends_s - started_s) * self.rate)
        while due < last:
            now_s = time.perf_counter()
            while due < last and (due_s := started_s + due / self.rate) <= now_s:
                due += 1
                if self._idle:
                    self._idle.popleft().ask(due_s)  # in turn: none is idle long enough to be closed
                else:
                    self._waiting.append(due_s)
            await asyncio.sleep(TICK_S)
        while len(self._idle) < connections and time.perf_counter() < ends_s + LATEST_S:
            await asyncio.sleep(0.01)


def main() -> None:
    file, port, seconds, connections = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    rate = float(sys.argv[5]) if len(sys.argv) > 5 else None
    accept, *bodies = file.read_bytes().splitlines()
    load = Load([request_bytes(body, accept.decode()) for body in bodies], rate)
    print(orjson.dumps(uvloop.run(load.run(port, seconds, connections))).decode())


if __name__ == "__main__":
    main()
