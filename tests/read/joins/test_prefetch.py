from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from headrace.read.joins.prefetch import prefetched


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
    taken.close()
    assert threading.active_count() == before - 1
    assert len(made) <= 6


def test_what_runs_ahead_hands_on_errors_and_stops_when_it_is_left() -> None:
    made: list[int] = []

    def numbers(last: int) -> Iterator[int]:
        for number in range(last):
            made.append(number)
            yield number
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"), closing(prefetched(numbers(5))) as items:
        assert [item for item, _ in zip(items, range(5), strict=False)] == [0, 1, 2, 3, 4]
        next(iter(items))
    made.clear()
    before = threading.active_count()
    with closing(prefetched(numbers(10**9))) as items:
        assert next(iter(items)) == 0
        while len(made) < 3:
            time.sleep(0.001)
    assert threading.active_count() == before and len(made) < 10
