from __future__ import annotations

import asyncio
import socket
import time

from serving.guards.deadlines import Deadlines


class Waiting:
    def __init__(self, told: list[int], number: int) -> None:
        self.is_settled, self._told, self._number = False, told, number

    def expire(self) -> None:
        self.is_settled = True
        self._told.append(self._number)


def test_what_is_not_settled_expires_in_the_order_of_the_deadlines() -> None:
    told: list[int] = []

    async def play() -> None:
        deadlines, now_s = Deadlines(), time.monotonic()
        held = [Waiting(told, number) for number in range(4)]
        for waiting, after_s in zip(held, (0.06, 0.02, 0.04, 0.01), strict=True):
            deadlines.watch(waiting, now_s + after_s)
        held[3].is_settled = True
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
        waiting, (ours, theirs) = Waiting(told, 0), socket.socketpair()
        loop.add_reader(ours, lambda: setattr(waiting, "is_settled", True))
        deadlines.watch(waiting, time.monotonic() + 0.02)
        theirs.send(b"the reply")
        time.sleep(0.1)  # nobody can look meanwhile
        await asyncio.sleep(0.1)
        loop.remove_reader(ours)
        ours.close()
        theirs.close()

    asyncio.run(play())
    assert told == []
