"""The wheel, installed: it must work from a directory that has its own serving/ and training/."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"headrace", "materialize", "serving", "training"}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(uv(), "build", "--wheel", "--out-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


def uv() -> Path | str:
    beside = Path(sys.executable).with_name("uv")
    return beside if beside.exists() else "uv"


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh environment with the wheel; its dependencies are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    run(uv(), "pip", "install", "--offline", "--no-deps", "--python", folder / "bin" / "python", wheel)
    (site,) = folder.glob("lib/python*/site-packages")
    dependencies = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    links = [path for path in dependencies.iterdir() if "headrace" not in path.name.lower()]
    for path in links:
        if path.suffix != ".pth" and not (site / path.name).exists():
            (site / path.name).symlink_to(path)
    yield folder


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A directory whose own files bear our packages' names."""
    for name in (*PACKAGES, "click", "redis"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    return tmp_path


def test_the_wheel_holds_our_four_packages_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_command_works_where_other_packages_bear_our_names(venv: Path, crowded: Path) -> None:
    assert "serve" in run(venv / "bin" / "headrace", "--help", cwd=crowded)
    code = "import sys; sys.path.pop(0); import serving.app, training, materialize; print(serving.app.__file__)"
    assert str(venv) in run(venv / "bin" / "python", "-c", code, cwd=crowded)


def test_every_process_starts_there_and_says_what_is_missing(venv: Path, crowded: Path) -> None:
    environment = {**os.environ, "HEADRACE_DATA_DIR": str(crowded / "data"), "HEADRACE_REPO": str(crowded / "repo")}
    for command in (["worker"], ["archive"], ["serve", "--port", "0"], ["up", "--port", "0"], ["streams"]):
        done = subprocess.run(
            [venv / "bin" / "headrace", *command],
            cwd=crowded,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 1, done.stderr
        assert done.stderr.startswith("Error: A project is known by"), done.stderr
        assert done.stderr.count("\n") == 1
