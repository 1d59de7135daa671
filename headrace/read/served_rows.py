"""From answers to rows of the feature log.

The positions of a row's view are those at which its value can be recomputed exactly. By partition that is the later of
two: the marker's, which was read before the value, up to which the value holds everything; and the value's own, up to
which it holds everything of its key. Between the two the key has no events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from headrace.moments import rfc3339
from headrace.read.lookup import LookupPlan, LookupResult
from headrace.read.online.reads import Asked, Marks
from headrace.read.online.vector_batches import STATUSES
from headrace.read.plans import ViewStep
from headrace.read.tiers import Tier
from headrace.stores.codec.header import ROWS, TILES, unpack_header
from headrace.stores.markers import IMPORTS
from headrace.stores.served import SERVED

__all__ = ["Answered", "served_rows"]

Answered = tuple[str, float, LookupResult, Asked, Sequence[Any] | None, int]
"""Request id, rate, the answer, what was asked of the store and what it replied (None: nothing), and when, in
microseconds by the wall clock."""

_JSON = orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC
_DAY_US = 86_400_000_000


def served_rows(answers: Sequence[Answered]) -> pa.Table:
    """The rows of all answers, in the schema SERVED."""
    found: dict[str, list[Any]] = {name: [] for name in SERVED.names}
    for answered in answers:
        for row in range(answered[2].request.rows):
            for name, value in _row(answered, row).items():
                found[name].append(value)
    return pa.table({name: pa.array(found[name], SERVED.field(name).type) for name in SERVED.names}, schema=SERVED)


def _row(answered: Answered, row: int) -> dict[str, Any]:
    request_id, rate, result, asked, replies, served_us = answered
    plan = result.plan
    keys = {name: column[row].as_py() for name, column in result.request.columns.items()}
    values, statuses = {}, {}
    first = len(result.request.names)
    for number, output in enumerate(plan.outputs, first):
        name = f"{output.step}__{output.feature.name}"
        values[name] = result.columns[number][row].as_py()
        statuses[name] = STATUSES[int(result.statuses[number][row])]
    return {
        "event_date": served_us // _DAY_US,
        "served_at": served_us,
        "request_id": request_id,
        "row": row,
        "rate": rate,
        "catalog_version": plan.catalog.version,
        "t": int(result.t_us[row]),
        "entity_keys": _entity_keys(asked, row),
        "keys": _text(keys),
        "values": _text(values),
        "statuses": _text(statuses),
        "views": _text(_views(result, asked, replies, row)),
    }


def _text(value: Any) -> str:
    return orjson.dumps(value, option=_JSON).decode()


def _entity_keys(asked: Asked, row: int) -> list[str]:
    held = {
        keys[numbers[row]]: None
        for keys, columns in zip(asked.keys, asked.numbers, strict=True)
        for numbers in columns
        if numbers[row] >= 0
    }
    return list(held)


def _views(result: LookupResult, asked: Asked, replies: Sequence[Any] | None, row: int) -> dict[str, Any]:
    found = {}
    for number, step in enumerate(result.plan.steps):
        tier = result.tiers[row][number] if result.tiers else Tier("store", int(result.t_us[row]))
        marks = result.marks if tier.marks is None else tier.marks
        blob = _blob(result.plan, number, asked, replies, row) if tier.name == "store" else None
        positions = {} if marks is None else _applied(marks, step)
        for place, position in _own(step, blob).items():
            positions[place] = max(position, positions.get(place, position))
        found[step.name] = {
            "view": step.view.name,
            "fingerprint": step.view.fingerprint,
            "tier": tier.name,
            "t": rfc3339(tier.t_us),
            "positions": {place: f"{offset}-{index}" for place, (offset, index) in positions.items()},
        }
    return found


def _applied(marks: Marks, step: ViewStep) -> dict[str, tuple[int, int]]:
    return {
        f"{source}|{part}": (mark.offset, mark.index)
        for (source, part), mark in marks.applied.items()
        if mark is not None and source == step.view.source and (part != IMPORTS or mark.offset)
    }


def _blob(plan: LookupPlan, step: int, asked: Asked, replies: Sequence[Any] | None, row: int) -> bytes | None:
    place = plan.reads.step_places[step]
    number = asked.numbers[place.entity][place.columns][row]
    if number < 0 or not replies:
        return None
    start = 1 + sum(len(keys) for keys in asked.keys[: place.entity])
    held: Any = replies[start + number]
    found: bytes | None = held[place.field] if isinstance(held, list) else None
    return found


def _own(step: ViewStep, blob: bytes | None) -> Mapping[str, tuple[int, int]]:
    """The positions up to which a value is merged."""
    if blob is None:
        return {}
    header = unpack_header(blob, TILES if step.view.kind == "windowed" else ROWS)
    names = (step.view.source, f"writes/{step.view.name}")
    return {f"{names[stream]}|{part}": position for (stream, part), position in header.positions.items()}
