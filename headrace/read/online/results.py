"""The answer of the lookup, as columns; each is made when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.read.online.lookup_requests import LookupRequest
from headrace.read.online.reads import Marks
from headrace.read.online.vectors import PRESENT, FewRows, Line, ManyRows, Vector
from headrace.read.plans import LookupPlan, ViewStep
from headrace.read.tiers import Tier
from headrace.stores.keys import layout_field
from headrace.stores.markers import IMPORTS, Ready
from headrace.windows.window import tail_us

__all__ = ["LookupResult"]

Ints = NDArray[np.int64]


class LookupResult:
    """The answer, n rows, join keys first, then features; columns in parallel lists.

    `statuses` are codes (PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE), `timestamps_us` 0 where there is none,
    `t_us` the moment of each row; `details` is what full metadata adds; `out_of_range` counts, by view and feature,
    the nulls that hide a value its type or its bound cannot hold.
    """

    def __init__(
        self,
        plan: LookupPlan,
        request: LookupRequest,
        marks: Marks | None,
        times_us: Sequence[int],
        *,
        lines: Sequence[Sequence[Line]] = (),
        many: Sequence[ManyRows] = (),
        beyond: Mapping[tuple[int, int], int] | None = None,
        tiers: Sequence[Sequence[Tier]] = (),
    ) -> None:
        """`lines` holds few rows, by row and step; `many` holds many rows, by step; `beyond` says of few rows how many
        values of a step's feature, by their numbers, are out of range; `tiers` says of a degraded answer, by row and
        step, where its values come from. `marks` is None where the markers could not be read."""
        self.plan, self.request, self.lines = plan, request, lines
        self.marks, self.times_us, self._many, self._beyond = marks, times_us, many, beyond or {}
        self.on_demand: dict[str, ManyRows] = {}
        self.tiers = tiers

    def add_on_demand(self) -> None:
        """Computes what the plan's functions give. Raises DataError for one that fails."""
        for step in self.plan.on_demand:
            inputs = {feature: self.rows[name].array_of(feature) for name, feature in step.inputs}
            inputs |= {column.name: self.request.columns[column.name] for column in step.view.request}
            computed = step.function.compute(inputs)
            vectors = [Vector(computed[feature.name]) for feature in step.view.features]
            n = self.request.rows
            present, none = np.full(n, PRESENT, np.uint8), np.zeros(n, np.int64)
            self.on_demand[step.view.name] = ManyRows(step.view.features, vectors, present, none)

    @cached_property
    def _steps(self) -> dict[str, FewRows | ManyRows]:
        if self._many:
            return {step.name: rows for step, rows in zip(self.plan.steps, self._many, strict=True)}
        few = self.plan.few
        return {step.name: few.rows(i, self.lines, self._beyond) for i, step in enumerate(self.plan.steps)}

    @property
    def rows(self) -> Mapping[str, FewRows | ManyRows]:
        """The values of every step and on-demand view, by its name."""
        return {**self._steps, **self.on_demand} if self.on_demand else self._steps

    @cached_property
    def names(self) -> list[str]:
        return [*self.request.names, *(output.name for output in self.plan.outputs)]

    @cached_property
    def columns(self) -> list[pa.Array]:
        keys = [self.request.columns[name] for name in self.request.names]
        rows = self.rows
        return keys + [rows[output.step].array(output.place) for output in self.plan.outputs]

    @cached_property
    def statuses(self) -> list[NDArray[np.uint8]]:
        present = np.full(self.request.rows, PRESENT, np.uint8)
        outputs = [self.rows[output.step].statuses_of(output.place) for output in self.plan.outputs]
        return [present] * len(self.request.names) + outputs

    @cached_property
    def timestamps_us(self) -> list[Ints]:
        times_us = {name: np.asarray(rows.times_us, np.int64) for name, rows in self.rows.items()}
        none = [np.zeros(self.request.rows, np.int64)]
        return none * len(self.request.names) + [times_us[output.step] for output in self.plan.outputs]

    @cached_property
    def t_us(self) -> Ints:
        return np.array(self.times_us, np.int64)

    @property
    def out_of_range(self) -> Mapping[tuple[str, str], int]:
        counts: dict[tuple[str, str], int] = {}
        if not self._many and not self._beyond:
            return counts
        for step in self.plan.steps:
            beyond = self.rows[step.name].out_of_range
            for feature in self.plan.features_of(step.name) if beyond else ():
                if feature in beyond:
                    counts[step.view.name, feature] = counts.get((step.view.name, feature), 0) + beyond[feature]
        return counts

    @cached_property
    def details(self) -> dict[str, Any]:
        """Per view: the positions that its values hold at least, the watermark, and whether a window is warming."""
        return {"views": {step.name: self._details_of(i, step) for i, step in enumerate(self.plan.steps)}}

    def _details_of(self, number: int, step: ViewStep) -> dict[str, Any]:
        marks, t_us = self._marks_of(number), min(self.times_us)
        if marks is None:
            return {"positions": {}, "watermark_us": None, "warming": False}
        of_source = {part: mark for (name, part), mark in marks.applied.items() if name == step.view.source}
        applied = {part: mark for part, mark in of_source.items() if mark and (part != IMPORTS or mark.offset)}
        since = [mark.watermark_us for mark in applied.values() if mark.watermark_us is not None]
        return {
            "positions": {str(part): str(mark) for part, mark in applied.items()},
            "watermark_us": max(since, default=None),
            "warming": _is_warming(step, marks.ready[layout_field(step.view)], t_us),
        }

    def _marks_of(self, number: int) -> Marks | None:
        """The markers that hold for all rows of a step: those of its oldest value that was kept, else the answer's."""
        kept = [row[number] for row in self.tiers if row[number].marks is not None]
        return min(kept, key=lambda tier: tier.t_us).marks if kept else self.marks


def _is_warming(step: ViewStep, ready: Ready | None, t_us: int) -> bool:
    if ready is None or ready.complete_from_us is None:
        return False
    tails = [tail_us(t_us, agg.window_us, agg.hop_us) for agg in step.view.aggregations if agg.window_us is not None]
    return bool(tails) and min(tails) < ready.complete_from_us
