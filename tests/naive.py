"""The slow truth: plain loops over raw events. Every window, merge and join must equal these."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
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
    base, n = split_name(aggregation.function)
    if base in ("count", "count_distinct", "approx_count_distinct"):
        return _counted(base, n, values)
    if not values:
        return None
    if base in ("first", "last", "first_n", "last_n"):
        ordered = [e.values[aggregation.column] for e in sorted(given, key=lambda e: (e.time_us, e.position))]
        chosen = ordered[-n:] if base.startswith("last") else ordered[:n]
        return chosen if base.endswith("_n") else chosen[0]
    if base == "approx_percentile":
        return dd_percentile(values, n)
    return _NUMERIC[base](values)


def is_out_of_range(aggregation: Aggregation, events: Iterable[NaiveEvent], key: Any, t_us: int) -> bool:
    """Whether the value is null though the window holds what would make one."""
    inside = [event for event in events if event.key == key and _counts(aggregation, event.time_us, t_us)]
    base, _ = split_name(aggregation.function)
    given = [event for event in inside if aggregation.column == "*" or event.values[aggregation.column] is not None]
    enough = 2 if base in ("var", "std") else 1
    return len(given) >= enough and window_value(aggregation, inside, key, t_us) is None


def split_name(name: str) -> tuple[str, int]:
    """`last_5` is (last_n, 5), `approx_p95` is (approx_percentile, 95), `sum` is (sum, 1)."""
    head, _, number = name.rpartition("_")
    if head in ("first", "last") and number.isdigit():
        return f"{head}_n", int(number)
    if name.startswith("approx_p") and name[8:].isdigit():
        return "approx_percentile", int(name[8:])
    if head == "count_distinct":
        return head, int(number)
    return name, 1000 if name == "count_distinct" else 1


def _counted(base: str, bound: int, values: Sequence[Any]) -> Any:
    if base == "count":
        return len(values)
    if base == "approx_count_distinct":
        return hll_count(set(values))
    return len(set(values)) if len(set(values)) <= bound else None


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


def _variance(values: Sequence[Any]) -> float | None:
    if len(values) < 2:
        return None
    exact = [Fraction(value) for value in values]
    centre = sum(exact) / len(exact)
    return float(sum((value - centre) ** 2 for value in exact) / (len(exact) - 1))


def _deviation(values: Sequence[Any]) -> float | None:
    variance = _variance(values)
    return None if variance is None else math.sqrt(variance)


_NUMERIC = {"sum": _sum, "mean": _mean, "min": min, "max": max, "var": _variance, "std": _deviation}


def dd_percentile(values: Sequence[Any], percent: int) -> float:
    """The percentile of a DDSketch with 1 % accuracy, value by value: the middle of the bucket at the rank."""
    gamma = 1.01 / 0.99
    middles = []
    for value in sorted(values, key=float):
        size = abs(float(value))
        if size < 2.2250738585072014e-308:
            middles.append(0.0)
            continue
        upper = 1.0
        if size > 1:
            while size > upper:
                upper = min(upper * gamma, sys.float_info.max)
        else:
            while size <= upper / gamma:
                upper /= gamma
        middles.append(math.copysign(upper * (2 / (gamma + 1)), value))
    return middles[percent * (len(values) - 1) // 100]


def hll_count(values: set[Any]) -> int:
    """A HyperLogLog of 2048 registers with Ertl's estimator, value by value."""
    ranks = [0] * 2048
    for value in values:
        mixed = _mix(_bits(value))
        rest = (mixed << 11) & (2**64 - 1)
        register = mixed >> 53
        ranks[register] = max(ranks[register], min(64 - rest.bit_length() + 1, 54))
    counts = [ranks.count(rank) for rank in range(55)]
    total = 2048 * _tau(1 - counts[54] / 2048)
    for rank in range(53, 0, -1):
        total = 0.5 * (total + counts[rank])
    total += 2048 * _sigma(counts[0] / 2048)
    return round(2048 * 2048 / (2 * math.log(2)) / total)


def _bits(value: Any) -> int:
    if isinstance(value, str):
        return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "little")
    if isinstance(value, float):
        return int.from_bytes(struct.pack("<d", value + 0.0), "little")
    return int(value) % 2**64


def _mix(bits: int) -> int:
    wrap = 2**64
    mixed = (bits + 0x9E3779B97F4A7C15) % wrap
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % wrap
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % wrap
    return mixed ^ (mixed >> 31)


def _sigma(x: float) -> float:
    if x == 1.0:
        return math.inf
    y, z, before = 1.0, x, -1.0
    while z != before:
        x, before = x * x, z
        z, y = z + x * y, y + y
    return z


def _tau(x: float) -> float:
    if x in (0.0, 1.0):
        return 0.0
    y, z, before = 1.0, 1 - x, -1.0
    while z != before:
        x, before, y = math.sqrt(x), z, 0.5 * y
        z -= (1 - x) ** 2 * y
    return z / 3


def magnitude(aggregation: Aggregation, events: Iterable[NaiveEvent], key: Any, t_us: int) -> float:
    """What the tolerance of float aggregates is measured in: the sum of |x| over the window, for a variance the
    sum of x^2 / n, for a deviation what that comes to at its value."""
    inside = (event for event in events if event.key == key and _counts(aggregation, event.time_us, t_us))
    given = [event.values.get(aggregation.column) for event in inside]
    sizes = [abs(float(value)) for value in given if isinstance(value, int | float)]
    base, _ = split_name(aggregation.function)
    if base not in ("var", "std") or len(sizes) < 2:
        return math.fsum(sizes)
    squares = math.fsum(size * size for size in sizes) / len(sizes)
    variance = window_value(dataclasses.replace(aggregation, function="var"), events, key, t_us)
    return squares if base == "var" else squares / max(math.sqrt(variance), 3.2e-5 * math.sqrt(squares), 1e-300)


def known_at(events: Iterable[NaiveEvent], t_us: int) -> list[NaiveEvent]:
    """The events that had arrived before t."""
    return [event for event in events if event.arrival_us < t_us]


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
