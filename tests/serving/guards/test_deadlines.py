from __future__ import annotations

import asyncio
import socket
import time

from serving.guards.deadlines import Deadlines


class Waiting:
    def __init__(self, told: list[int], number: int) -> None:
        self._told, self._number = told, number

    def expire(self) -> None:
        self._told.append(self._number)


def test_what_is_not_settled_expires_in_the_order_of_the_deadlines() -> None:
    told: list[int] = []

    async def play() -> None:
        deadlines, now_s = Deadlines(), time.monotonic()
        moments = [now_s + after_s for after_s in (0.06, 0.02, 0.04, 0.01)]
        numbers = [deadlines.watch(Waiting(told, i), at_s) for i, at_s in enumerate(moments)]
        deadlines.settle(numbers[3])
        await asyncio.sleep(0.2)

    asyncio.run(play())
    assert told == [1, 2, 0]


def test_one_that_fails_keeps_the_others_from_nothing() -> None:
    told: list[int] = []

    class Failing(Waiting):
        def expire(self) -> None:
            raise ValueError("no")

    async def play() -> None:
        deadlines, now_s = Deadlines(), time.monotonic()
        deadlines.watch(Failing(told, 0), now_s)
        deadlines.watch(Waiting(told, 1), now_s)
        await asyncio.sleep(0.1)

    asyncio.run(play())
    assert told == [1]


def test_what_came_while_the_loop_was_held_up_is_read_before_anything_expires() -> None:
    told: list[int] = []

    async def play() -> None:
        deadlines, loop = Deadlines(), asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        number = deadlines.watch(Waiting(told, 0), time.monotonic() + 0.02)
        loop.add_reader(ours, lambda: deadlines.settle(number))
        theirs.send(b"the reply")
        time.sleep(0.1)  # nobody can look meanwhile
        await asyncio.sleep(0.1)
        loop.remove_reader(ours)
        ours.close()
        theirs.close()

    asyncio.run(play())
    assert told == []
