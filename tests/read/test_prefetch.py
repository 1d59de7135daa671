from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from headrace.read.prefetch import prefetched


def test_items_come_in_order_from_a_thread_of_their_own() -> None:
    makers = []

    def items() -> Iterator[int | None]:
        for i in (*range(50), None):
            makers.append(threading.current_thread())
            yield i

    assert list(prefetched(items())) == [*range(50), None]
    assert set(makers) != {threading.current_thread()} and not makers[0].is_alive()


def test_what_making_raises_is_raised_after_the_items_before() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise FileNotFoundError("swept")

    taken = prefetched(items())
    assert next(taken) == 1
    with pytest.raises(FileNotFoundError, match="swept"):
        next(taken)


def test_a_taker_that_stops_stops_the_maker() -> None:
    made = []

    def items() -> Iterator[int]:
        for i in range(10_000):
            made.append(i)
            yield i

    taken = prefetched(items(), ahead=3)
    assert next(taken) == 0
    before = threading.active_count()
    taken.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before - 1
    assert len(made) <= 6
