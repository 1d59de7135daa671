"""What the commands share: the options that override settings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from headrace.settings import load_settings

__all__ = ["with_settings"]


def with_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--repo`, `--data-dir` and `--redis-url` to a command and hand it `settings` as first argument."""

    @click.option("--repo", type=click.Path(path_type=Path), help="Folder of the definitions [HEADRACE_REPO].")
    @click.option("--data-dir", type=click.Path(path_type=Path), help="Data directory [HEADRACE_DATA_DIR].")
    @click.option("--redis-url", help="URL of the online store; unset uses an embedded one [HEADRACE_REDIS_URL].")
    @functools.wraps(function)
    def command(repo: Path | None, data_dir: Path | None, redis_url: str | None, **kwargs: Any) -> Any:
        return function(load_settings(repo=repo, data_dir=data_dir, redis_url=redis_url), **kwargs)

    return command
