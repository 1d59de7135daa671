"""A progress bar on standard error, of work whose size may be unknown at first."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Progressing", "silent"]


class Progressing:
    """A bar that is shown while the context lasts, on a terminal only."""

    def __init__(self, title: str, shown: bool = True) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,} rows"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        disable = not (shown and sys.stderr.isatty())
        self._title = title
        self._bar = Progress(*columns, transient=True, disable=disable, console=Console(stderr=True))
        self._task: TaskID | None = None

    def __enter__(self) -> Progressing:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def begin(self, what: str, total: int | None) -> None:
        """The next stage, of `total` rows if that is known."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(f"{self._title}: {what}", total=total)

    def advance(self, rows: int) -> None:
        """So many rows more are done."""
        if self._task is not None:
            self._bar.advance(self._task, rows)


def silent() -> Progressing:
    """One that shows nothing."""
    return Progressing("", shown=False)
