"""Running Headrace as a user does: its commands, and `headrace up` as a child that is stopped in the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

__all__ = ["DemoError", "Headrace"]

START_S = 90.0
STOP_S = 90.0
GONE_S = 20.0


class DemoError(Exception):
    """The demo cannot go on; the message says what was asked and what came back."""


class Headrace:
    """Commands in one repo and data directory, under the event-time clock."""

    def __init__(self, checkout: Path, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._checkout = checkout
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        own = {"REPO": checkout / "feature_repo", "DATA_DIR": data_dir, "CLOCK": "event"}
        own |= {"DEGRADE": "0", "DEADLINE_MS": "20000", "SHED_LAG_MS": "5000"}  # what is compared comes from the store
        self._environment: Mapping[str, str] = inherited | {f"HEADRACE_{name}": str(v) for name, v in own.items()}

    def run(self, *arguments: str) -> str:
        """Run `headrace ARGUMENTS` to its end; returns what it printed. Raises DemoError when it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "headrace", *arguments],
            cwd=self._checkout,
            env=self._environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise DemoError(f"headrace {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}{done.stdout}")
        return done.stdout

    @contextmanager
    def up(self) -> Iterator[str]:
        """`headrace up` for the length of the block, ready; gives its URL. Raises DemoError if it does not start or
        does not stop cleanly."""
        port = _free_port()
        log = self.data_dir / "up.log"
        with log.open("wb") as output:
            # A session of its own: Ctrl-C reaches the demo alone, which then stops this child in order.
            child = subprocess.Popen(
                [sys.executable, "-m", "headrace", "up", "--port", str(port)],
                cwd=self._checkout,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, child, log)
            yield url
        finally:
            code = _stop(child)
        if code != 0:
            raise DemoError(f"headrace up ended with {code}; its log ends:\n{_tail(log)}")
        _wait_until_gone(self.data_dir)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(url: str, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise DemoError(f"headrace up ended with {child.returncode}; its log ends:\n{_tail(log)}")
        try:
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise DemoError(f"headrace up is not ready after {START_S:.0f} s; its log ends:\n{_tail(log)}")


def _stop(child: subprocess.Popen[bytes]) -> int:
    """SIGTERM and wait; returns the exit code."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    try:
        return child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _wait_until_gone(data_dir: Path) -> None:
    """Wait until no process names the data directory (where /proc tells): the embedded store is the last to go.

    Raises DemoError with those that stay.
    """
    deadline = time.monotonic() + GONE_S
    while left := _processes_naming(data_dir):
        if time.monotonic() > deadline:
            raise DemoError(f"These processes are left running: {left}")
        time.sleep(0.05)


def _processes_naming(data_dir: Path) -> list[int]:
    name, found = os.fsencode(data_dir), []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if name in command.read_bytes() and int(command.parent.name) not in (os.getpid(), os.getppid()):
                found.append(int(command.parent.name))
    return found


def _tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
