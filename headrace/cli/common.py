"""What the commands share: the options that override settings, and how they print."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.settings import load_settings

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["counted", "make_console", "with_settings"]

PIPED_WIDTH = 1_000


def make_console() -> Console:
    """A console of the terminal's width; what is piped has its lines whole, whatever their length."""
    from rich.console import Console

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else PIPED_WIDTH, highlight=False, markup=False, emoji=False, soft_wrap=True)


def counted(n: int, word: str) -> str:
    """`1 source`, `2 sources`."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def with_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--repo`, `--data-dir` and `--redis-url` to a command and hand it `settings` as first argument."""

    @click.option("--repo", type=click.Path(path_type=Path), help="Folder of the definitions [HEADRACE_REPO].")
    @click.option("--data-dir", type=click.Path(path_type=Path), help="Data directory [HEADRACE_DATA_DIR].")
    @click.option("--redis-url", help="URL of the online store; unset uses an embedded one [HEADRACE_REDIS_URL].")
    @functools.wraps(function)
    def command(repo: Path | None, data_dir: Path | None, redis_url: str | None, **kwargs: Any) -> Any:
        return function(load_settings(repo=repo, data_dir=data_dir, redis_url=redis_url), **kwargs)

    return command
