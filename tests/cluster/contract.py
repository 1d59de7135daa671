"""Tests of one server, run again on a cluster: a few always, all of a file with HEADRACE_CLUSTER_ALL=1."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
ALL = bool(os.environ.get("HEADRACE_CLUSTER_ALL"))


def load(path: str) -> ModuleType:
    """A file of tests as a module of its own."""
    name = f"on_a_cluster_{path.removesuffix('.py').replace('/', '_')}"
    spec = importlib.util.spec_from_file_location(name, TESTS / path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contract(module: ModuleType, **quick: Any) -> dict[str, Any]:
    """The module's fixtures and its tests: all, or those named `quick`, for one value of their parameter if it is not
    None."""
    tests = {name: held for name, held in vars(module).items() if name.startswith("test_")}
    fixtures = {name: held for name, held in vars(module).items() if type(held).__name__ == "FixtureFunctionDefinition"}
    return fixtures | (tests if ALL else {name: _only(tests[name], value) for name, value in quick.items()})


def _only(test: Any, value: Any) -> Any:
    if value is None:
        return test
    (mark,) = (mark for mark in test.pytestmark if mark.name == "parametrize")
    test.pytestmark = [other for other in test.pytestmark if other is not mark]
    return pytest.mark.parametrize(mark.args[0], [value])(test)
