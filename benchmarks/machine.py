"""Processes that a benchmark starts and measures: a store server of its own, and our commands against it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import redis

from headrace.settings import Settings
from headrace.stores.keeper import find_server, server_environment

__all__ = ["Process", "StoreServer", "free_port", "open_server", "peak_memory_mb", "run_json", "start_command"]

LEASE_S = 600  # longer than a benchmark freezes a worker, which would otherwise stand by and start anew
_CPU_CLOCK = 2  # CPUCLOCK_SCHED: the time that all threads of a process ran, to the nanosecond


@dataclass(frozen=True, slots=True)
class StoreServer:
    """A running server and the folder that it and our processes write to."""

    url: str
    port: int
    folder: Path
    process: Process

    def settings(self) -> Settings:
        """The settings of a process that works against this server."""
        return Settings(repo=self.folder / "repo", data_dir=self.folder / "data", redis_url=self.url)


class Process:
    """A child process; its processor time can be read while it runs."""

    def __init__(self, command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        self._log = log
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **(env or {})}
            )

    def cpu_s(self) -> float:
        """User and system seconds of all threads of it and its children so far. Linux only."""
        return sum(time.clock_gettime((~pid << 3) | _CPU_CLOCK) for pid in self._family())

    def memory_mb(self) -> float:
        """Resident memory of the process and its children now. Linux only."""
        return sum(map(_resident_mb, self._family()))

    def check(self) -> None:
        """Raises RuntimeError with the end of its log if it ended."""
        if self._child.poll() is not None:
            raise RuntimeError(f"A process ended with code {self._child.returncode}:\n{self._log.read_text()[-2_000:]}")

    def _family(self) -> list[int]:
        children = Path(f"/proc/{self._child.pid}/task/{self._child.pid}/children").read_text().split()
        return [self._child.pid, *map(int, children)]

    def pause(self) -> None:
        self._child.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._child.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends it, by force if it does not go within 20 s."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGCONT)
            self._child.terminate()
            try:
                self._child.wait(20)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@contextlib.contextmanager
def open_server(folder: Path, appendfsync: str) -> Iterator[StoreServer]:
    """A server on a free port of this machine, with an append-only file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    options = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(folder),
        "save": "",
        "appendonly": "yes",
        "appendfsync": appendfsync,
        "auto-aof-rewrite-min-size": "512mb",
        "maxmemory-policy": "noeviction",
        "hash-max-listpack-value": "512",
    }
    command = [find_server(), *[part for name, value in options.items() for part in (f"--{name}", value)]]
    process = Process(command, folder / "server.log", server_environment())
    try:
        _wait_until_up(process, port)
        yield StoreServer(f"redis://127.0.0.1:{port}/0", port, folder, process)
    finally:
        process.stop()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(process: Process, port: int) -> None:
    with redis.Redis(port=port) as client:
        while True:
            process.check()
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                return
            time.sleep(0.02)


def start_command(server: StoreServer, name: str, *options: str) -> Process:
    """`headrace NAME` with `options` against `server`, as a user runs it."""
    settings = server.settings()
    env = {
        "HEADRACE_REPO": str(settings.repo),
        "HEADRACE_DATA_DIR": str(settings.data_dir),
        "HEADRACE_REDIS_URL": server.url,
        "HEADRACE_LEASE": str(LEASE_S),
    }
    return Process([sys.executable, "-m", "headrace", name, *options], server.folder / f"{name}.log", env)


def run_json(module: str, *arguments: str, timeout_s: float = 120.0) -> dict[str, float]:
    """What `python -m module arguments...` prints as its last line, read as JSON. Raises RuntimeError if it fails."""
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    if done.returncode:
        raise RuntimeError(f"{module} failed: {done.stderr.strip()[-1_000:]}")
    found: dict[str, float] = orjson.loads(done.stdout.strip().splitlines()[-1])
    return found


def peak_memory_mb() -> float:
    """The most resident memory that this process had, without its parent's, which rusage takes over. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
