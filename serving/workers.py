"""Several processes that serve one address: each accepts from the listening socket that they share.

The parent only watches: a worker that ends is started again. What they count lies in files of a folder that they
share (prometheus_client's multiprocess mode), so each tells the sum, those that ended included.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from headrace.errors import SettingsError
from headrace.settings import Settings
from headrace.stores.connection import open_store
from headrace.telemetry import get_logger
from serving.listeners import Listeners
from serving.state import open_catalog

__all__ = ["run_workers"]

POLL_S = 0.1
STOP_TIMEOUT_S = 20.0
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.1, 5.0
STEADY_S = 10.0
"""A worker that lived so long is started again at once."""

_COMMAND = [sys.executable, "-P", "-u", "-m", "headrace", "serve", "--supervised", "--handed"]
"""Then the numbers of the listening sockets (TCP's, and the unix socket's or `-`), and of a pipe on which the process
says that it listens."""

log = get_logger()


class _Worker:
    """One place among the workers, and the process that holds it now."""

    def __init__(self, settings: Settings, listeners: Listeners, counts: str) -> None:
        self._settings, self._listeners, self._counts = settings, listeners, counts
        self._started_s, self._backoff_s, self._again_s = 0.0, 0.0, 0.0
        self.is_ready = False
        self.start()

    def start(self) -> None:
        self._started_s, self.is_ready = time.monotonic(), False
        self._ready, told = os.pipe()
        os.set_blocking(self._ready, False)
        local = self._listeners.local
        handed = [self._listeners.address.fileno(), None if local is None else local.fileno(), told]
        self.process = subprocess.Popen(
            [*_COMMAND, ",".join("-" if number is None else str(number) for number in handed)],
            stdin=subprocess.PIPE,
            pass_fds=[number for number in handed if number is not None],
            env={**os.environ, **_environment(self._settings), "PROMETHEUS_MULTIPROC_DIR": self._counts},
            start_new_session=True,
        )
        os.close(told)

    def watch(self) -> int | None:
        """Notes whether it listens; returns the code of a process that has ended."""
        if not self.is_ready:
            with contextlib.suppress(BlockingIOError):
                self.is_ready = os.read(self._ready, 1) == b"."
        return self.process.poll()

    def start_again(self) -> None:
        """Starts another process in place of one that ended; later and later if they do not live."""
        now_s = time.monotonic()
        if not self._again_s:
            lived = now_s - self._started_s > STEADY_S
            self._backoff_s = 0.0 if lived else min(max(2 * self._backoff_s, FIRST_BACKOFF_S), LONGEST_BACKOFF_S)
            self._again_s = now_s + self._backoff_s
            log.warning("a server process ended; starting another", pid=self.process.pid, code=self.process.returncode)
        if now_s >= self._again_s:
            self._again_s = 0.0
            self._close()
            self.start()

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def wait(self, deadline_s: float) -> None:
        """Until it has ended, by force in the end."""
        try:
            self.process.wait(max(0.1, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("a server process did not stop; killing it", pid=self.process.pid)
            self.process.kill()
            self.process.wait()
        self._close()

    def _close(self) -> None:
        os.close(self._ready)
        if self.process.stdin is not None:
            self.process.stdin.close()


def run_workers(
    settings: Settings, listeners: Listeners, on_listening: Callable[[], None], stop: threading.Event
) -> None:
    """Serve by `settings.workers` processes until `stop` is set; calls `on_listening` once all of them answer.

    Raises SettingsError for a set-up that cannot work, and where a process ends before the first answer.
    """
    with contextlib.closing(open_store(settings)) as store:  # attached until this process ends
        open_catalog(settings, store)
    with tempfile.TemporaryDirectory(prefix="headrace-counts-") as counts:
        workers = [_Worker(settings, listeners, counts) for _ in range(settings.workers)]
        try:
            if _wait_until_ready(workers, stop):
                on_listening()
                _keep_up(workers, stop)
        finally:
            for worker in workers:
                worker.stop()
            deadline_s = time.monotonic() + STOP_TIMEOUT_S
            for worker in workers:
                worker.wait(deadline_s)


def _wait_until_ready(workers: list[_Worker], stop: threading.Event) -> bool:
    """Whether all listen before `stop` is set."""
    while not stop.wait(POLL_S):
        for worker in workers:
            code = worker.watch()
            if code is not None:
                raise SettingsError(f"A server process ended with code {code} before it listened; see what it wrote.")
        if all(worker.is_ready for worker in workers):
            return True
    return False


def _keep_up(workers: list[_Worker], stop: threading.Event) -> None:
    while not stop.wait(POLL_S):
        for worker in workers:
            if worker.watch() is not None:
                worker.start_again()


def _environment(settings: Settings) -> dict[str, str]:
    """The settings as variables, for a process that reads them from there."""
    named = ("repo", "data_dir", "redis_url", "host", "port", "tls_cert", "tls_key", "fast_lane")
    values = {name: getattr(settings, name) for name in named}
    return {f"HEADRACE_{name.upper()}": str(value) for name, value in values.items() if value is not None}
