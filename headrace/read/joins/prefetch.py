"""Items made in a thread of their own, a few ahead of the one who takes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

__all__ = ["prefetched"]

T = TypeVar("T")

_WAIT_S = 0.1


def prefetched(items: Iterable[T], ahead: int = 2) -> Generator[T]:
    """The same items in the same order; what making them raises is raised here. When the taker stops (closes the
    generator), so does the thread, before this returns."""
    made: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(item: tuple[T] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return made.put(item, timeout=_WAIT_S)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put((item,))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    maker = threading.Thread(target=make, name="prefetch", daemon=True)
    maker.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        stopped.set()
        maker.join()
