"""What an operator does beside everything else: commands that run while faults happen, may be killed themselves, and
are given again until they succeed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from crash.processes import HEADRACE

PAUSE_S = 0.5
SUCCEEDS_WITHIN_S = 300
LONGEST_S = 120
"""A command that hangs longer is ended, and given again."""


@dataclass(frozen=True)
class Ended:
    """One run of a command: its code and what it said."""

    code: int
    output: str
    errors: str


class Operation(threading.Thread):
    """One command, first killed at each of the moments `kills` (seconds after its start), then run until it succeeds.
    `then` is told what the run that succeeded printed, and may return a command to go on with."""

    def __init__(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        kills: Sequence[float] = (),
        then: Callable[[str], Sequence[str] | None] = lambda output: None,
    ) -> None:
        super().__init__(daemon=True)
        self.arguments = list(arguments)
        self.said: list[str] = []
        self.failure: BaseException | None = None
        self._env, self._kills, self._then = {**os.environ, **env}, list(kills), then

    def run(self) -> None:
        try:
            following: Sequence[str] | None = self.arguments
            while following:
                following = self._then(self._until_it_succeeds(following))
        except BaseException as error:
            self.failure = error

    def _until_it_succeeds(self, arguments: Sequence[str]) -> str:
        for moment_s in self._kills:
            ended = self._run(arguments, moment_s)
            self._refuse_traceback(ended)
            self.said.append("killed" if ended.code == -signal.SIGKILL else f"code {ended.code} before its kill")
        self._kills = []
        deadline = time.monotonic() + SUCCEEDS_WITHIN_S
        while time.monotonic() < deadline:
            ended = self._run(arguments, LONGEST_S)
            if ended.code == 0:
                return ended.output
            self.said.append(ended.errors.strip()[-300:] or f"code {ended.code}")
            self._refuse_traceback(ended)
            time.sleep(PAUSE_S)
        raise AssertionError(f"{self} did not succeed within {SUCCEEDS_WITHIN_S} s")

    def _refuse_traceback(self, ended: Ended) -> None:
        assert "Traceback" not in ended.errors, f"{self}: {ended.errors[-4_000:]}"

    def _run(self, arguments: Sequence[str], at_most_s: float) -> Ended:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen([*HEADRACE, *arguments], env=self._env, text=True, **pipes)  # type: ignore[call-overload]
        try:
            output, errors = process.communicate(timeout=at_most_s)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
        return Ended(process.returncode, output, errors)

    def __str__(self) -> str:
        return f"{' '.join(self.arguments)}: {'; '.join([*self.said, 'running' if self.is_alive() else 'ended'])}"


def draw_kills(rng: random.Random, longest_s: float) -> list[float]:
    """When a command is killed, if it is."""
    return [rng.uniform(0.5, longest_s) for _ in range(rng.choice([0, 1, 1, 2]))]
