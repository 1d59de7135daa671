"""The lookup: one feature vector per row, at one moment t per row, in one round trip to the store.

`plan.reads.ask`, `fetch` and `answer` are its parts, for callers that make the trip themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import redis.asyncio

from headrace.errors import AsOfError
from headrace.read.online.few import FEW_ROWS, Heads
from headrace.read.online.lookup_requests import LookupRequest, parse_request
from headrace.read.online.reads import Asked, Marks
from headrace.read.online.results import LookupResult
from headrace.read.plans import LookupPlan, plan_features, plan_service
from headrace.stores.multiplexed import SharedConnection
from headrace.stores.view_writes import SPARE_MS, expiry_ms

__all__ = [
    "LookupPlan",
    "LookupRequest",
    "LookupResult",
    "answer",
    "fetch",
    "lookup",
    "parse_request",
    "plan_features",
    "plan_service",
]


async def lookup(
    store: redis.asyncio.Redis | SharedConnection,
    plan: LookupPlan,
    request: LookupRequest,
    as_of_us: int | None,
    now_us: int,
) -> LookupResult:
    """The feature vectors of `request`, as of `as_of_us` or, if None, of the catalog's clock.

    Raises UnavailableError when a view is not ready, AsOfError when the store already holds later events.
    """
    asked = plan.reads.ask(request)
    replies = await fetch(store, plan, asked)
    return answer(plan, request, asked, replies, as_of_us, now_us)


async def fetch(store: redis.asyncio.Redis | SharedConnection, plan: LookupPlan, asked: Asked) -> Sequence[Any]:
    """The replies to what `plan.reads.ask` gave, in one round trip."""
    if isinstance(store, SharedConnection):
        packed, count = plan.reads.pack(asked)
        return await store.request(packed, count) if count else []
    pipe = store.pipeline(transaction=False)
    for key, fields in plan.reads.commands(asked):
        pipe.hmget(key, list(fields))
    replies: list[Any] = await pipe.execute()
    return replies


def answer(
    plan: LookupPlan,
    request: LookupRequest,
    asked: Asked,
    replies: Sequence[Any],
    as_of_us: int | None,
    now_us: int,
) -> LookupResult:
    """The feature vectors that the replies to `plan.reads.pack(asked)` hold; else as `lookup`."""
    marks = plan.reads.marks_of(replies)
    moment = _Moment(plan, marks, as_of_us, now_us)
    many = request.rows > FEW_ROWS
    result = (_answer_many if many else _answer_few)(plan, request, asked, replies, moment)
    result.add_on_demand()
    return result


def _answer_few(
    plan: LookupPlan, request: LookupRequest, asked: Asked, replies: Sequence[Any], moment: _Moment
) -> LookupResult:
    reader, rows = plan.few, plan.reads.rows_of(asked, replies)
    heads = reader.heads(rows, moment.marks)
    moment.marks.refuse_unready()
    if moment.is_old:
        moment.refuse_expired(list(zip(*rows, strict=True)))
    times_us = [moment.past(of_row, row) for row, of_row in enumerate(heads)]
    beyond: dict[tuple[int, int], int] = {}
    lines = [reader.lines(*row, beyond) for row in zip(rows, heads, times_us, strict=True)]
    return LookupResult(plan, request, moment.marks, times_us, lines=lines, beyond=beyond)


def _answer_many(
    plan: LookupPlan, request: LookupRequest, asked: Asked, replies: Sequence[Any], moment: _Moment
) -> LookupResult:
    steps = plan.reads.steps_of(asked, replies)
    heads = plan.many.heads(steps, moment.marks)
    moment.marks.refuse_unready()
    if moment.is_old:
        moment.refuse_expired(steps)
    times_us = [moment.t_us] * request.rows
    if any(newest.max() >= moment.t_us for newest, _ in heads):
        by_row = zip(*[newest.tolist() for newest, _ in heads], strict=True)
        times_us = [moment.past([(0, time_us) for time_us in of_row], row) for row, of_row in enumerate(by_row)]
    rows = plan.many.rows(steps, heads, np.array(times_us, np.int64))
    return LookupResult(plan, request, moment.marks, times_us, many=rows)


class _Moment:
    """The moment of a request, before what its values hold moves it."""

    def __init__(self, plan: LookupPlan, marks: Marks, as_of_us: int | None, now_us: int) -> None:
        self.plan, self.marks = plan, marks
        self._as_of_us, self._now_us = as_of_us, now_us
        if as_of_us is not None:
            self.t_us = as_of_us
        else:
            self.t_us = now_us if plan.catalog.clock == "wall" else marks.watermark_us + 1

    @property
    def is_old(self) -> bool:
        """Whether a value may have expired that counted then: keys outlive what they hold by a day."""
        old = self._as_of_us is not None and self._as_of_us < self._now_us - SPARE_MS * 1_000
        return old and self.plan.catalog.clock != "event"

    def refuse_expired(self, steps: Sequence[Sequence[bytes | None]]) -> None:
        """Raises AsOfError where a value may have expired."""
        for step, held in zip(self.plan.steps, steps, strict=True):
            if None in held and expiry_ms(self.plan.catalog, step.view):
                raise AsOfError(
                    f"as_of may lie a day back, got {(self._now_us - self.t_us) / 1e6:.0f} s: view {step.view.name!r} "
                    "forgets keys that nothing happens to; ask the offline store (headrace dataset)."
                )

    def past(self, heads: Heads, row: int) -> int:
        """t of a row, moved just past the newest event where a value already holds one that t must not precede. Raises
        AsOfError for one that must not move."""
        moved = t_us = self.t_us
        for (_, time_us), late in zip(heads, self.plan.lates, strict=True):
            if time_us >= t_us + late and time_us >= moved:
                moved = time_us + 1
        if moved > t_us and self._as_of_us is not None:
            raise AsOfError(
                f"as_of must not precede what the store holds, but row {row} holds an event "
                f"{(moved - 1 - t_us) / 1e6:.6f} s after it; ask the offline store (headrace dataset)."
            )
        return moved
