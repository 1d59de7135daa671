"""`headrace up`: the processes as children of one terminal, started together and stopped in order.

A child leads a session of its own, so that the terminal's Ctrl-C reaches the parent alone; it ends by itself when the
parent is gone.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import IO, TextIO

import orjson

from headrace.cli.server_file import trusting
from headrace.settings import Settings
from headrace.stores.catalogs import find_project, load_catalog
from headrace.stores.connection import open_store

__all__ = ["command_of", "run_all"]

STOP_ORDER = ("server", "scheduler", "worker", "archiver")
COMMANDS = {"archiver": "archive", "worker": "worker", "server": "serve", "scheduler": "schedule"}
STOP_TIMEOUT_S = 30.0
ASK_AGAIN_S = 5.0
POLL_S = 0.1
STILL_WAITING_S = 5.0

_LISTENS = re.compile(r"listens on (\S+)")


class Child:
    """One process, its output copied line by line with its name before it."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.url: str | None = None
        self.process = subprocess.Popen(
            command_of(name, settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            bufsize=1,
            start_new_session=True,
        )
        self._copier = threading.Thread(target=self._copy, args=(self.process.stdout,), daemon=True)
        self._copier.start()

    def _copy(self, output: IO[str]) -> None:
        for line in output:
            found = _LISTENS.search(line) if self.url is None else None
            if found and self.name == "server":
                self.url = found.group(1)
            say(self.name, line.rstrip("\n"))

    def code(self) -> int | None:
        """The exit code, None while it runs."""
        return self.process.poll()

    def stop(self) -> bool:
        """SIGTERM, and wait until the process has finished what it had begun; returns whether it did in time."""
        in_time = self._ask_to_stop()
        if not in_time:
            say("up", f"{self.name} did not stop within {STOP_TIMEOUT_S:.0f} s of SIGTERM; killing it")
            self.process.kill()
            self.process.wait()
        self._copier.join(5)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return in_time

    def _ask_to_stop(self) -> bool:
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self.code() is None:
            self.process.terminate()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(min(left_s, ASK_AGAIN_S))
        return True


def command_of(name: str, settings: Settings) -> list[str]:
    """The command line of one of COMMANDS, as a child that ends with its parent."""
    command = [sys.executable, "-P", "-u", "-m", "headrace", COMMANDS[name], "--supervised"]
    command += ["--repo", str(settings.repo), "--data-dir", str(settings.data_dir)]
    if settings.redis_url is not None:
        command += ["--redis-url", settings.redis_url]
    if name == "server":
        command += ["--host", settings.host, "--port", str(settings.port)]
    return command


def say(name: str, line: str, out: TextIO | None = None) -> None:
    """One prefixed line."""
    print(f"{name:<9} | {line}", file=out or sys.stdout, flush=True)


def run_all(settings: Settings, stop: threading.Event) -> int:
    """Runs everything until `stop` is set (0) or a process ends by itself (1).

    Raises HeadraceError for a set-up that cannot work, before anything is started.
    """
    with contextlib.closing(open_store(settings)) as store:  # attached until this process ends
        catalog = load_catalog(store, find_project(settings))
    say("up", f"project {catalog.project}, catalog version {catalog.version}, data in {settings.data_dir}")
    children: list[Child] = []
    try:
        children.extend(Child(name, settings) for name in COMMANDS)
        failed = _watch(children, settings, stop)
    finally:
        killed = _stop_all(children)
    if killed:
        say("up", f"killed: {', '.join(killed)}; what was not finished is still in the stream, for the next start")
    elif failed is None:
        say("up", "stopped; nothing is left running")
        return 0
    return 1


def _watch(children: list[Child], settings: Settings, stop: threading.Event) -> Child | None:
    """Waits; says once when all is ready. Returns the child that ended by itself, None after `stop`."""
    server = next(child for child in children if child.name == "server")
    is_ready, spoken = False, time.monotonic()
    while not stop.wait(POLL_S):
        for child in children:
            if child.code() is not None:
                say("up", f"{child.name} ended by itself with code {child.code()}; stopping the others")
                return child
        if is_ready or server.url is None:
            continue
        is_ready, missing = _ready(server.url, settings)
        if is_ready:
            _welcome(server.url)
        elif time.monotonic() - spoken > STILL_WAITING_S:
            spoken = time.monotonic()
            say("up", f"waiting for views to be built: {', '.join(missing) or 'the server'}")
    say("up", "stopping")
    return None


def _stop_all(children: list[Child]) -> list[str]:
    """Stops them in order; returns the names of those that had to be killed."""
    ordered = sorted(children, key=lambda child: STOP_ORDER.index(child.name))
    return [child.name for child in ordered if not child.stop()]


def _ready(url: str, settings: Settings) -> tuple[bool, list[str]]:
    """Whether every view can be served, and which cannot."""
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5, context=trusting(settings)) as reply:
            return reply.status == 200, []
    except urllib.error.HTTPError as error:
        with contextlib.suppress(orjson.JSONDecodeError, TypeError, KeyError), error:
            found = orjson.loads(error.read())
            return False, [*found["missing"], *found["stopped"].values()]
    except OSError:
        pass
    return False, []


def _welcome(url: str) -> None:
    say("up", f"ready: {url}")
    say("up", "push events   headrace push SOURCE FILE")
    say("up", f"look up       curl {url}/docs shows how; POST {url}/get-online-features")
    say("up", "see progress  headrace streams")
    say("up", "stop          Ctrl-C")
