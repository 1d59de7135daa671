"""Loads the definition files of a repo as Feast does, and leaves the process as it was.

Every .py file below the repo but `__init__.py` and what `.feastignore` names is imported under its path from the
repo, with the repo on `sys.path` only meanwhile; definitions are the Feast objects bound to module-level names.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView, Project
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY
from feast.labeling.label_view import LabelView
from feast.permissions.permission import Permission
from feast.repo_operations import get_repo_files

from headrace.catalog.project import CONFIG_FILE, read_config
from headrace.errors import DefinitionError, HeadraceError, SettingsError

__all__ = ["FEAST_WARNINGS", "Repo", "load_repo"]

FEAST_WARNINGS = ("Entity value_type will be mandatory", ".*views? (are|is an) experimental")
"""Patterns of the warnings that Feast gives for every use of a view."""

_KINDS = (DataSource, Entity, FeatureView, OnDemandFeatureView, LabelView, FeatureService, Project, Permission)
Kind = TypeVar("Kind")


@dataclass
class Repo:
    """A loaded repo: its settings, its modules by name, and its definitions in the order of files and lines."""

    root: Path
    config: dict[str, Any]
    modules: dict[str, ModuleType] = field(default_factory=dict)
    objects: list[Any] = field(default_factory=list)

    @property
    def project(self) -> str:
        name: str = self.config["project"]
        return name

    def of(self, kind: type[Kind]) -> list[Kind]:
        """The definitions of one Feast class, subclasses among them."""
        return [item for item in self.objects if isinstance(item, kind)]


def load_repo(root: Path) -> Repo:
    """Load the repo in the folder `root`.

    Raises SettingsError for a folder without feature_store.yaml or definitions, DefinitionError for a file that
    cannot be loaded, with its line, and for one that is named like an importable module.
    """
    root = root.resolve()
    repo = Repo(root, read_config(root))
    files = [path for path in get_repo_files(root) if _is_ours(root, path)]
    if not files:
        raise SettingsError(f"{root} holds {CONFIG_FILE} but no definition file; write one, such as features.py.")
    for file in files:
        _refuse_shadow(root, file)
    with _imports_from(root):
        for file in files:
            name = ".".join(file.relative_to(root).with_suffix("").parts)
            repo.modules[name] = _import(root, file, name)
    for module in repo.modules.values():
        _collect(module, repo.objects)
    return repo


def _collect(module: ModuleType, objects: list[Any]) -> None:
    for value in vars(module).values():
        wanted = isinstance(value, _KINDS) and value is not DUMMY_ENTITY
        if wanted and not any(value is known for known in objects):
            objects.append(value)


def _import(root: Path, file: Path, name: str) -> ModuleType:
    """Import one definition file; whatever its code raises becomes a DefinitionError with file and line."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        place = _place(root, file, error)
        if isinstance(error, HeadraceError):
            raise DefinitionError(f"{place}: {error}") from error
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise DefinitionError(f"{place} cannot be loaded: {reason}; correct it.") from error


def _place(root: Path, file: Path, error: Exception) -> str:
    """The innermost line of the repo that took part in `error`."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_relative(root, Path(error.filename))}, line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_relative_to(root):
            return f"{_relative(root, Path(frame.filename))}, line {frame.lineno}"
    return str(_relative(root, file))


def _relative(root: Path, file: Path) -> Path:
    return file.relative_to(root) if file.is_relative_to(root) else file


@contextlib.contextmanager
def _imports_from(root: Path) -> Iterator[None]:
    """Let imports find the repo's files, freshly read, and take every trace of them back afterwards."""
    before, path, bytecode = dict(sys.modules), list(sys.path), sys.dont_write_bytecode
    for name in _modules_below(root):
        del sys.modules[name]
    sys.path.insert(0, str(root))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        with contextlib.chdir(root), contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            for message in FEAST_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for name in _modules_below(root):
            sys.modules.pop(name)
        sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})
        sys.path[:], sys.dont_write_bytecode = path, bytecode
        sys.path_importer_cache.pop(str(root), None)


def _modules_below(root: Path) -> list[str]:
    """Names of the imported modules and packages whose files lie below `root`, those of a .venv in it aside."""
    return [name for name, module in list(sys.modules.items()) if _is_below(root, module)]


def _is_below(root: Path, module: ModuleType) -> bool:
    places = [getattr(module, "__file__", None)]
    if places == [None]:
        places = [str(place) for place in getattr(module, "__path__", [])]
    return any(_is_ours(root, _resolved(os.path.abspath(place))) for place in places if place)


@lru_cache(maxsize=20_000)
def _resolved(path: str) -> Path:
    """Kept: thousands of modules are asked each time that a repo is loaded."""
    return Path(path).resolve()


def _is_ours(root: Path, path: Path) -> bool:
    """Whether `path` lies in the repo and not in an environment that lies in it."""
    return path.is_relative_to(root) and "site-packages" not in path.parts


def _refuse_shadow(root: Path, file: Path) -> None:
    """Raises DefinitionError if importing `file` by its name would find another module."""
    first = file.relative_to(root).parts[0]
    name = first.removesuffix(".py")
    found = _importable(root, name)
    if found is not None:
        raise DefinitionError(
            f"A definition file must not be named like an importable module, {file.relative_to(root)} "
            f"shadows {name!r} ({found}); rename it, for example to {name}_features."
        )


def _importable(root: Path, name: str) -> str | None:
    """Where an import of `name` would find a module outside the repo, or None."""
    if name in sys.stdlib_module_names:
        return "the standard library"
    outside = [place for place in sys.path if not _is_ours(root, Path(place or ".").resolve())]
    spec = _find(name, outside)
    if spec is None or spec.origin is None or _is_ours(root, Path(spec.origin).resolve()):
        return None
    return spec.origin


def _find(name: str, path: list[str]) -> ModuleSpec | None:
    for finder in sys.meta_path:
        search = path if finder is PathFinder else None
        spec = finder.find_spec(name, search) if hasattr(finder, "find_spec") else None
        if spec is not None:
            return spec
    return None
