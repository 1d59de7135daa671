"""The repo's `feature_store.yaml`, read without Feast."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from headrace.errors import SettingsError

__all__ = ["CONFIG_FILE", "HOW_TO_BEGIN", "project_of", "read_config"]

CONFIG_FILE = "feature_store.yaml"
LINES = "'project: my_project', 'registry: data/registry.db' and 'provider: local'"
HOW_TO_BEGIN = f"create it with the lines {LINES}"


def read_config(repo: Path) -> dict[str, Any]:
    """What `feature_store.yaml` in `repo` says, with environment variables filled in as Feast does.

    Raises SettingsError for a missing or unreadable file and for a project name that Feast would refuse.
    """
    path = repo / CONFIG_FILE
    if not path.is_file():
        raise SettingsError(
            f"A repo holds a {CONFIG_FILE}, {repo} has none; {HOW_TO_BEGIN}, "
            "or name another folder by --repo or HEADRACE_REPO."
        )
    try:
        config = yaml.safe_load(os.path.expandvars(path.read_text()))
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {error}; correct it.") from None
    if not isinstance(config, dict):
        raise SettingsError(f"{path} holds no settings; give it at least the lines {LINES}.")
    _check_project(config.get("project"), path)
    return config


def project_of(repo: Path) -> str:
    """The project's name in `repo`. Raises SettingsError as `read_config` does."""
    project: str = read_config(repo)["project"]
    return project


def _check_project(project: object, path: Path) -> None:
    if not isinstance(project, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", project):
        raise SettingsError(
            f"A project's name is letters, digits and '_', not beginning with '_', {path} has {project!r}; "
            "write 'project: my_project'."
        )
