"""The slow truth: plain loops over raw events. Every window, merge and join must equal these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.catalog.definitions import Aggregation

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
UNSEEN = object()


@dataclass(frozen=True)
class NaiveEvent:
    """One raw event: `position` orders events, `event_id` None is never a repeat."""

    key: Any
    time_us: int
    position: tuple[int, int, int]
    values: Mapping[str, Any] = field(default_factory=dict)
    event_id: Any = None
    arrival_us: int = 0


def without_repeats(events: Iterable[NaiveEvent], horizon_us: int) -> list[NaiveEvent]:
    """Drops every event whose id came before in its partition, the latest such arrival within the horizon."""
    kept, latest = [], {}
    for event in sorted(events, key=lambda e: e.position):
        seen = latest.get((event.position[0], event.event_id))
        if event.event_id is None or seen is None or event.arrival_us - seen > horizon_us:
            kept.append(event)
        if event.event_id is not None:
            latest[event.position[0], event.event_id] = event.arrival_us
    return kept


def window_value(aggregation: Aggregation, events: Iterable[NaiveEvent], key: Any, t_us: int) -> Any:
    """What `aggregation` comes to for `key` at `t_us`, by its definition."""
    inside = [event for event in events if event.key == key and _counts(aggregation, event.time_us, t_us)]
    if aggregation.column == "*":
        return len(inside)
    given = [event for event in inside if event.values[aggregation.column] is not None]
    values = [event.values[aggregation.column] for event in given]
    if aggregation.function == "count":
        return len(values)
    if not values:
        return None
    if aggregation.function == "last":
        return max(given, key=lambda e: (e.time_us, e.position)).values[aggregation.column]
    return _NUMERIC[aggregation.function](values)


def _counts(aggregation: Aggregation, time_us: int, t_us: int) -> bool:
    if aggregation.window_us is None:
        return time_us < t_us
    start = t_us - aggregation.window_us
    return start - start % aggregation.hop_us <= time_us < t_us


def _sum(values: Sequence[Any]) -> Any:
    if isinstance(values[0], int):
        total = sum(values)
        return total if INT64_MIN <= total <= INT64_MAX else None
    return math.fsum(values)


def _mean(values: Sequence[Any]) -> float:
    return (sum(values) if isinstance(values[0], int) else math.fsum(values)) / len(values)


_NUMERIC = {"sum": _sum, "mean": _mean, "min": min, "max": max}


def magnitude(aggregation: Aggregation, events: Iterable[NaiveEvent], key: Any, t_us: int) -> float:
    """The sum of |x| over the window: what the tolerance of float aggregates is measured in."""
    inside = (event for event in events if event.key == key and _counts(aggregation, event.time_us, t_us))
    given = (event.values.get(aggregation.column) for event in inside)
    return math.fsum(abs(value) for value in given if isinstance(value, int | float))


def plain_row(events: Iterable[NaiveEvent], key: Any, t_us: int, ttl_us: int) -> Any:
    """The values of the newest event at or before t, None when it is past its TTL, UNSEEN when there is none."""
    before = [event for event in events if event.key == key and event.time_us <= t_us]
    if not before:
        return UNSEEN
    newest = max(before, key=lambda e: (e.time_us, e.position))
    return newest.values if not ttl_us or newest.time_us >= t_us - ttl_us else None


def agree(ours: Any, truth: Any, scale: float = 0.0) -> bool:
    """Exactly equal, or floats within 1e-9 of the sum of |x|."""
    if isinstance(truth, float) and isinstance(ours, float):
        return ours == truth or abs(ours - truth) <= 1e-9 * max(scale, abs(truth))
    return bool(ours == truth) and (ours is None) == (truth is None)
