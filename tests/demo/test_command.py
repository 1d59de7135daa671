"""headrace demo."""

import os
import sys
from pathlib import Path

import pytest

from headrace.cli import demo
from headrace.errors import SettingsError


def test_in_a_checkout_the_process_becomes_the_demo(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execve", lambda *given: calls.append(given))
    demo.demo_command.main(["--moments", "3"], standalone_mode=False)
    ((program, command, environment),) = calls
    assert program == sys.executable and command[1:] == ["-P", "-m", "demo", "--moments", "3"]
    assert (Path(environment["PYTHONPATH"].split(os.pathsep)[0]) / "demo" / "__main__.py").exists()


def test_elsewhere_it_says_where_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "headrace" / "cli" / "demo.py"))
    with pytest.raises(SettingsError, match="get the source"):
        demo.demo_command.main([], standalone_mode=False)
