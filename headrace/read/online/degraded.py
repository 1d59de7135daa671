"""Answers without the store, or without a part of it: by tiers.

Each view of each row comes from the first that has it: the store (where it answered, and the view is ready); the value
that this process answered last, at the moment it was answered for, up to the view's declared age; the declared
defaults; null. What came from where is stated (see docs/overload.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.errors import UnavailableError
from headrace.read.online.few import Head
from headrace.read.online.kept import Kept, KeptValues
from headrace.read.online.lookup_requests import LookupRequest
from headrace.read.online.reads import Asked, Marks
from headrace.read.online.results import LookupResult
from headrace.read.online.vectors import Line
from headrace.read.plans import LookupPlan
from headrace.read.tiers import Tier, default_line

__all__ = ["Degraded", "degraded_answer", "refuse_past"]


@dataclass(frozen=True, slots=True)
class Degraded:
    """What a degraded answer may fall back to: values kept, and for how long where a view does not say."""

    kept: KeptValues
    max_age_us: int


def degraded_answer(
    plan: LookupPlan,
    request: LookupRequest,
    asked: Asked,
    replies: Sequence[Any] | None,
    fallback: Degraded,
    reason: Exception,
    now_us: int,
) -> LookupResult:
    """The answer to `request` at the present by what there is: `replies` as of `plan.reads.pack(asked)`, an exception
    in the place of each that is missing, or None.

    Raises UnavailableError, `reason` if it is one, for a view that is not ready and has no tier to fall to.
    """
    marks = plan.reads.marks_of(replies) if replies and isinstance(replies[0], list) else None
    rows = _Rows(plan, asked, replies, marks, fallback, now_us)
    for step, view in enumerate([step.view for step in plan.steps]):
        unready = marks is not None and view.name in marks.unready
        if unready and not view.defaults and not rows.have_kept(step):
            raise reason if isinstance(reason, UnavailableError) else UnavailableError(str(reason))
    found = [rows.row(row) for row in range(request.rows)]
    times_us = [t_us for t_us, _, _ in found]
    lines, tiers = [lines for _, lines, _ in found], [tiers for _, _, tiers in found]
    result = LookupResult(plan, request, marks, times_us, lines=lines, beyond=rows.beyond, tiers=tiers)
    result.add_on_demand()
    return result


class _Rows:
    """The rows of one degraded answer."""

    def __init__(
        self,
        plan: LookupPlan,
        asked: Asked,
        replies: Sequence[Any] | None,
        marks: Marks | None,
        fallback: Degraded,
        now_us: int,
    ) -> None:
        self._plan, self._asked, self._marks, self._now_us = plan, asked, marks, now_us
        self._fallback = fallback
        self._held: list[list[Any]] = []
        start = 1
        for keys in asked.keys:
            self._held.append([None] * len(keys) if marks is None else list((replies or ())[start : start + len(keys)]))
            start += len(keys)
        self.beyond: dict[tuple[int, int], int] = {}
        event_us = marks.watermark_us + 1 if marks is not None else now_us
        self._t_us = now_us if plan.catalog.clock == "wall" else event_us

    def have_kept(self, step: int) -> bool:
        """Whether any row has a value of the view that was kept."""
        return any(self._kept(step, row) is not None for row in range(self._asked.rows))

    def row(self, row: int) -> tuple[int, list[Line], list[Tier]]:
        """The moment of a row, and what each view shows."""
        heads = [self._head(step, row) for step in range(len(self._plan.steps))]
        t_us = self._t_us
        for head, late in zip(heads, self._plan.lates, strict=True):
            if head is not None and head[2] >= t_us + late:
                t_us = head[2] + 1
        lines, tiers = [], []
        for step, head in enumerate(heads):
            line, tier = self._shown(step, row, head, t_us)
            lines.append(line)
            tiers.append(tier)
        return t_us, lines, tiers

    def _shown(self, step: int, row: int, head: Head | None, t_us: int) -> tuple[Line, Tier]:
        if head is not None:
            return self._plan.few.line(step, head, t_us, self.beyond), Tier("store", t_us)
        kept = self._kept(step, row)
        if kept is not None:
            blob = kept.held[self._plan.reads.step_places[step].field]
            found = self._plan.few.head(step, blob, kept.marks)
            return self._plan.few.line(step, found, kept.t_us, self.beyond), Tier("cache", kept.t_us, kept.marks)
        line = default_line(self._plan.steps[step].view)
        return line, Tier("default" if any(value is not None for value in line[2]) else "null", t_us)

    def _head(self, step: int, row: int) -> Head | None:
        """The head of a value that the store has answered with, None where it has not."""
        marks, view = self._marks, self._plan.steps[step].view
        if marks is None or view.name in marks.unready:
            return None
        place = self._plan.reads.step_places[step]
        number = self._asked.numbers[place.entity][place.columns][row]
        if number < 0:
            return self._plan.few.head(step, None, marks)
        held = self._held[place.entity][number]
        if not isinstance(held, list):
            return None
        try:
            return self._plan.few.head(step, held[place.field], marks)
        except UnavailableError:  # built anew at this moment
            return None

    def _kept(self, step: int, row: int) -> Kept | None:
        place = self._plan.reads.step_places[step]
        number = self._asked.numbers[place.entity][place.columns][row]
        if number < 0:
            return None
        kept = self._fallback.kept.find(self._plan.reads, place.entity, self._asked.keys[place.entity][number])
        if kept is None:
            return None
        view = self._plan.steps[step].view
        age_us = self._fallback.max_age_us if view.max_staleness_us is None else view.max_staleness_us
        return kept if self._now_us - kept.kept_us <= age_us else None


def refuse_past(as_of_us: int | None, reason: Exception) -> None:
    """Raises UnavailableError for a request of a moment of its own: no other moment's values may stand in for it."""
    if as_of_us is not None:
        raise UnavailableError(f"A request with as_of has no degraded answer ({reason}); try again.") from None
