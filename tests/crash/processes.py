"""Real processes that can be killed, frozen and starved, and a supervisor that starts again what died."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from headrace.stores.keeper import find_server

UNLIMITED = resource.RLIM_INFINITY
HEADRACE = [sys.executable, "-P", "-m", "headrace"]


def free_port() -> int:
    """A free port below those that outgoing connections take, so that it stays free while its process is dead."""
    while True:
        with contextlib.suppress(OSError), socket.socket() as probe:
            port = random.SystemRandom().randrange(15_000, 32_000)
            probe.bind(("127.0.0.1", port))
            return port


class Child:
    """A process that is meant to run: `ensure` starts it when it does not, unless it is `held`. Its output goes to
    `log` by a pipe, which no limit on the size of files reaches."""

    def __init__(self, name: str, command: list[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        self.starts = 0
        self.held = False
        self.ends: list[int] = []
        self._command = command
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ensure(self) -> None:
        with self._lock:
            if self.held or (self._process is not None and self._process.poll() is None):
                return
            if self._process is not None:
                self._forget(self._process)
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, env=self._env
            )
            self.starts += 1
            threading.Thread(target=_copy, args=(self._process.stdout, self.log), daemon=True).start()

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        self.ends.append(process.returncode)
        if process.stdin:
            process.stdin.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: int) -> None:
        """Sends a signal; nothing if it is dead."""
        with self._lock:
            if self._process is not None:
                self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and waits for its death."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def close(self) -> None:
        """Kills it for good."""
        self.kill()
        with self._lock:
            if self._process is not None:
                self._forget(self._process)
                self._process = None

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def limit_files(self, size: int) -> bool:
        """No file of its may grow beyond `size` bytes; False if it is dead."""
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, UNLIMITED))
            return True
        return False

    def tail(self, lines: int = 15) -> str:
        text = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(f"  {self.name}| {line[:400]}" for line in text[-lines:])


def _copy(pipe: Any, log: Path) -> None:
    with log.open("ab", buffering=0) as file, pipe:
        while data := os.read(pipe.fileno(), 65_536):
            file.write(data)


class Supervisor:
    """Starts children again when they have died, at once, until stopped; then kills them."""

    def __init__(self, children: list[Child]) -> None:
        self.children = children
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.03):
            for child in self.children:
                child.ensure()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        for child in self.children:
            child.ensure()
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()
            for child in self.children:
                child.close()


class StoreProcess:
    """A store server with an append-only file in a folder of its own; nobody supervises it."""

    def __init__(self, folder: Path, port: int, appendfsync: str, *more: str) -> None:
        self.folder = folder
        self.port = port
        folder.mkdir(parents=True, exist_ok=True)
        options = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": str(folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": appendfsync,
            "repl-diskless-sync-delay": "0",
            "maxmemory-policy": "noeviction",
            "hash-max-listpack-value": "512",
        }
        command = [find_server(), *[part for name, value in options.items() for part in (f"--{name}", value)], *more]
        self._child = Child("store", command, folder / "server.log")

    def start(self) -> None:
        """Starts it and waits until its data is loaded."""
        self._child.ensure()
        with self.client() as client:
            for _ in range(1_500):
                with contextlib.suppress(redis.RedisError, OSError):
                    client.ping()
                    return
                time.sleep(0.02)
        raise AssertionError(f"the store did not start:\n{self._child.tail()}")

    def client(self) -> redis.Redis:
        """A client that asks once."""
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=20, retry=Retry(NoBackoff(), 0))

    def kill(self) -> None:
        self._child.close()

    def freeze(self) -> None:
        self._child.freeze()

    def resume(self) -> None:
        self._child.resume()

    def lives(self) -> bool:
        with contextlib.suppress(redis.RedisError, OSError), self.client() as client:
            return bool(client.ping())
        return False

    def lose_data(self) -> None:
        """Deletes its files; it must be dead."""
        shutil.rmtree(self.folder / "appendonlydir")

    def wait_for_command(self, pattern: bytes, timeout_s: float = 5) -> bool:
        """Waits until the server has run a command that matches, as MONITOR writes it; whether it did."""
        deadline, held = time.monotonic() + timeout_s, b""
        with socket.create_connection(("127.0.0.1", self.port), 5) as monitor:
            monitor.sendall(b"MONITOR\r\n")
            monitor.settimeout(0.5)
            while time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    held = held[-200:] + monitor.recv(1 << 20)
                if re.search(pattern, held):
                    return True
        return False

    def wait_until_replicating(self) -> None:
        """Waits until a replica has its master's data, and has it on disk."""
        with self.client() as client:
            for _ in range(1_000):
                link: Any = client.info("replication")
                disk: Any = client.info("persistence")
                rewriting = disk["aof_rewrite_in_progress"] or disk["aof_rewrite_scheduled"]
                if link.get("master_link_status") == "up" and not rewriting and disk["aof_enabled"]:
                    return
                time.sleep(0.02)
        raise AssertionError(f"the replica did not follow:\n{self._child.tail()}")
