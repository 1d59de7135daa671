"""Expectations on a batch: vectorised checks, and what becomes of the rows that fail them.

A row leaves at the first expectation that it fails, unless that one only warns. Lateness is judged last, against the
largest event time of the rows before it that stayed: one that is late itself never raises it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.catalog.definitions import Expectation
from headrace.catalog.expectations import full_match

__all__ = [
    "NO_WATERMARK",
    "Counts",
    "Verdict",
    "expect_on_time",
    "expect_values",
    "refuse_late",
    "refuse_unexpected",
    "watermarks_before",
]

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Counts = dict[tuple[str, str, str], int]
"""How many rows failed, by (outcome, column, rule); outcomes: quarantined, dropped, warned."""

NO_WATERMARK = np.iinfo(np.int64).min
OUTCOMES = {"quarantine": "quarantined", "drop": "dropped", "warn": "warned"}
LONGEST_SHOWN = 80


@dataclass(slots=True)
class Verdict:
    """Which rows stay, why rows are quarantined, and how many failed what."""

    kept: Flags
    reasons: dict[int, str] = field(default_factory=dict)
    counts: Counts = field(default_factory=dict)

    def fail(self, expectation: Expectation, failed: Flags, shown: Callable[[int], str]) -> None:
        """Take the outcome of one expectation; `shown` says of a row what it had."""
        rows = np.flatnonzero(failed & self.kept)
        if not len(rows):
            return
        key = (OUTCOMES[expectation.action], expectation.column, expectation.text)
        self.counts[key] = self.counts.get(key, 0) + len(rows)
        if expectation.action == "warn":
            return
        self.kept[rows] = False
        if expectation.action == "quarantine":
            rule = f"{expectation.text} of {expectation.column}"
            self.reasons |= {row: f"expected {rule}, got {shown(row)}" for row in rows.tolist()}


def expect_values(expectations: Sequence[Expectation], columns: Mapping[str, pa.Array], verdict: Verdict) -> None:
    """Judge everything but lateness."""
    for item in expectations:
        if item.rule != "max_lateness":
            column = columns[item.column]
            verdict.fail(item, ~_holds(item, column), partial(_shown, column))


def expect_on_time(expectations: Sequence[Expectation], times_us: Ints, before_us: Ints, verdict: Verdict) -> None:
    """Judge lateness; `before_us` is the watermark that each row found (see `watermarks_before`)."""
    for item in expectations:
        if item.rule == "max_lateness":
            known = before_us != NO_WATERMARK
            behind_us = np.where(known, before_us, times_us) - times_us
            late = behind_us > item.arguments[0]
            verdict.fail(item, late, partial(_lateness, behind_us))


def watermarks_before(times_us: Ints, watermark_us: int | None) -> Ints:
    """The largest event time before each row: of the rows above it, and `watermark_us`; NO_WATERMARK for none."""
    start = NO_WATERMARK if watermark_us is None else watermark_us
    before: Ints = np.maximum.accumulate(np.r_[np.int64(start), times_us])[:-1]
    return before


def _holds(item: Expectation, column: pa.Array) -> Flags:
    """Where the expectation holds; null passes all but not_null."""
    if item.rule == "not_null":
        return np.asarray(column.is_valid()).astype(np.bool_)
    holds: Flags = np.asarray(_CHECKS[item.rule](column, item.arguments).fill_null(True)).astype(np.bool_)
    return holds


def _between(column: pa.Array, bounds: tuple[Any, ...]) -> pa.Array:
    return pc.and_(pc.greater_equal(column, pa.scalar(bounds[0])), pc.less_equal(column, pa.scalar(bounds[1])))


def _is_in(column: pa.Array, values: tuple[Any, ...]) -> pa.Array:
    return pc.or_(pc.is_in(column, value_set=pa.array(values).cast(column.type)), pc.is_null(column))


_CHECKS: Mapping[str, Callable[[pa.Array, tuple[Any, ...]], pa.Array]] = {
    "between": _between,
    "is_in": _is_in,
    "matches": lambda column, given: pc.match_substring_regex(column, full_match(given[0])),
    "min_length": lambda column, given: pc.greater_equal(pc.utf8_length(column), pa.scalar(given[0])),
    "max_length": lambda column, given: pc.less_equal(pc.utf8_length(column), pa.scalar(given[0])),
}


def _lateness(behind_us: Ints, row: int) -> str:
    return f"{behind_us[row] / 1e6:g} s behind the watermark"


def _shown(column: pa.Array, row: int) -> str:
    value = column[row].as_py()
    text = "null" if value is None else repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def refuse_unexpected(
    expectations: Sequence[Expectation], columns: Mapping[str, pa.Array], bad: dict[int, str]
) -> Counts:
    """Add the rows that fail to `bad`: quarantined ones with their reason, dropped ones with an empty one."""
    if not expectations:
        return {}
    verdict = _verdict_on(bad, len(next(iter(columns.values()))))
    expect_values(expectations, columns, verdict)
    _add_refused(bad, verdict)
    return verdict.counts


def refuse_late(
    expectations: Sequence[Expectation], times_us: Ints, watermark_us: int | None, bad: dict[int, str]
) -> Counts:
    """As `refuse_unexpected`, for lateness; `watermark_us` is the partition's before the first row."""
    if not any(item.rule == "max_lateness" for item in expectations):
        return {}
    verdict = _verdict_on(bad, len(times_us))
    accepted_us = np.where(verdict.kept, times_us, NO_WATERMARK)
    expect_on_time(expectations, times_us, watermarks_before(accepted_us, watermark_us), verdict)
    _add_refused(bad, verdict)
    return verdict.counts


def _verdict_on(bad: Mapping[int, str], n: int) -> Verdict:
    kept = np.ones(n, np.bool_)
    kept[list(bad)] = False
    return Verdict(kept)


def _add_refused(bad: dict[int, str], verdict: Verdict) -> None:
    for row in np.flatnonzero(~verdict.kept).tolist():
        bad.setdefault(row, verdict.reasons.get(row, ""))
