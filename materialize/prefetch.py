"""An iterator that runs ahead of whoever takes its items, in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["prefetched"]

Item = TypeVar("Item")
_END = object()


@contextmanager
def prefetched(items: Iterable[Item], ahead: int = 2) -> Generator[Iterable[Item]]:
    """`items`, up to `ahead` of them made before they are asked for. What making them raises is raised to who takes
    them; on leaving, no more are made and the thread has ended."""
    made: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(ahead)
    stop = threading.Event()
    thread = threading.Thread(target=_make, args=(items, made, stop), daemon=True)
    thread.start()
    try:
        yield _taken(made)
    finally:
        stop.set()
        while thread.is_alive():
            try:
                made.get(timeout=0.05)
            except queue.Empty:
                thread.join(0.05)


def _make(items: Iterable[Item], made: queue.Queue[tuple[Any, BaseException | None]], stop: threading.Event) -> None:
    try:
        for item in items:
            made.put((item, None))
            if stop.is_set():
                return
        made.put((_END, None))
    except BaseException as error:  # handed on to the thread that asks
        made.put((_END, error))


def _taken(made: queue.Queue[tuple[Any, BaseException | None]]) -> Generator[Any]:
    while True:
        item, error = made.get()
        if error is not None:
            raise error
        if item is _END:
            return
        yield item
