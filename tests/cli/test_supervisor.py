"""How `up` stops its children."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.cli import supervisor
from headrace.settings import Settings

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
SLOW = """
import signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1) if not asked else sys.exit(0))
print('up', flush=True)
while True: time.sleep(0.01)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(supervisor, "STOP_TIMEOUT_S", 2.0)
    monkeypatch.setattr(supervisor, "ASK_AGAIN_S", 0.2)
    yield


def child(code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> supervisor.Child:
    monkeypatch.setattr(supervisor, "command_of", lambda name, settings: [sys.executable, "-c", code])
    made = supervisor.Child("worker", Settings(data_dir=Path("unused")))
    while "up" not in capsys.readouterr().out:
        time.sleep(0.01)
    return made


def test_a_child_that_lost_the_first_signal_is_asked_again(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert child(SLOW, monkeypatch, capsys).stop()


def test_a_child_that_does_not_stop_is_killed_and_named(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deaf = child(DEAF, monkeypatch, capsys)
    assert supervisor._stop_all([deaf]) == ["worker"]
    assert deaf.code() == -9
    assert "worker did not stop within 2 s of SIGTERM; killing it" in capsys.readouterr().out
