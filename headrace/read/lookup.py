"""The lookup: one feature vector per row, at one moment t per row, in one round trip to the store.

The markers are read first, then every entity key's values: so a stated position is never ahead of the values.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import redis.asyncio
from numpy.typing import NDArray

from headrace.catalog.definitions import Column
from headrace.compute.columns import typed_column
from headrace.dtypes import arrow_type
from headrace.errors import AsOfError, RequestError, UnavailableError
from headrace.read.plans import LookupPlan, ViewStep, plan_features, plan_service
from headrace.read.values import PRESENT, StepValues, newest_us, step_values
from headrace.stores.codec.header import build_of
from headrace.stores.keys import entity_prefix, group_keys, layout_field, markers_key
from headrace.stores.markers import (
    IMPORTS,
    Applied,
    Ready,
    applied_field,
    build_field,
    decode_applied,
    decode_ready,
    ready_field,
)
from headrace.stores.view_writes import SPARE_MS, expiry_ms
from headrace.windows.window import tail_us

__all__ = ["LookupPlan", "LookupRequest", "LookupResult", "lookup", "parse_request", "plan_features", "plan_service"]

Ints = NDArray[np.int64]

MOST_NAMES = 10
"""How many of a request's unknown columns a message names."""


@dataclass(frozen=True, slots=True)
class LookupRequest:
    """The checked columns of a request, n rows: `columns` by name, `names` the join keys in request order."""

    rows: int
    names: tuple[str, ...]
    columns: Mapping[str, pa.Array]


@dataclass(frozen=True, slots=True)
class LookupResult:
    """The answer, n rows, join keys first, then features; columns in parallel lists.

    `statuses` are codes (PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE), `timestamps_us` 0 where there is none,
    `t_us` the moment of each row; `details` is what full metadata adds; `out_of_range` counts, by view and feature,
    the nulls that hide a value its type or its bound cannot hold.
    """

    names: list[str]
    columns: list[pa.Array]
    statuses: list[NDArray[np.uint8]]
    timestamps_us: list[Ints]
    t_us: Ints
    details: dict[str, Any]
    out_of_range: Mapping[tuple[str, str], int]


def parse_request(plan: LookupPlan, entities: Mapping[str, Sequence[Any]], max_rows: int = 1_000) -> LookupRequest:
    """The request's columns, typed. Raises RequestError for a missing or unknown column, a wrong type, no rows."""
    needed = {column.name: column for column in (*plan.join_keys, *plan.request)}
    _refuse_columns(plan, needed, entities)
    rows = _row_count(entities, max_rows)
    columns = {}
    for name, column in needed.items():
        columns[name], wrong = typed_column(entities[name], column)
        if wrong:
            row, reason = next(iter(wrong.items()))
            raise RequestError(f"Entity values must have the declared types; row {row}: {reason}.")
    keys = {column.name for column in plan.join_keys}
    return LookupRequest(rows, tuple(name for name in entities if name in keys), columns)


def _refuse_columns(plan: LookupPlan, needed: Mapping[str, Column], entities: Mapping[str, Any]) -> None:
    missing = [name for name in needed if name not in entities]
    if missing:
        raise RequestError(
            f"A request for {plan.label} must bring {', '.join(needed)}; missing: {', '.join(missing)}. "
            "Add them to entities."
        )
    unknown = [name for name in entities if name not in needed]
    if unknown:
        shown = ", ".join(map(reprlib.repr, unknown[:MOST_NAMES]))
        raise RequestError(f"A request for {plan.label} takes {', '.join(needed)}; unknown: {shown}. Leave them out.")


def _row_count(entities: Mapping[str, Sequence[Any]], max_rows: int) -> int:
    sizes = {name: len(values) for name, values in entities.items()}
    if len(set(sizes.values())) > 1:
        raise RequestError(f"Entity columns must have one length, got {sizes}; give every row a value.")
    rows = next(iter(sizes.values()), 0)
    if not 1 <= rows <= max_rows:
        raise RequestError(f"A request takes 1 to {max_rows} rows, got {rows}; split it.")
    return rows


@dataclass(frozen=True, slots=True)
class _Fetch:
    """Keys of one step: `codes` per row (-1 for a null key), and each code's place among the distinct keys."""

    step: ViewStep
    codes: Ints
    keys: list[bytes]


async def lookup(
    store: redis.asyncio.Redis, plan: LookupPlan, request: LookupRequest, as_of_us: int | None, now_us: int
) -> LookupResult:
    """The feature vectors of `request`, as of `as_of_us` or, if None, of the catalog's clock.

    Raises UnavailableError when a view is not ready, AsOfError when the store already holds later events.
    """
    fetches = [_fetch(plan, step, request) for step in plan.steps]
    applied, ready, blobs = await _read(store, plan, fetches)
    _refuse_unready(plan, ready)
    t_us = np.full(request.rows, _clock_us(plan, applied, as_of_us, now_us), np.int64)
    rows = [_rows_of(fetch, held) for fetch, held in zip(fetches, blobs, strict=True)]
    _refuse_expired(plan, rows, as_of_us, now_us)
    t_us = _moved_past(plan, rows, t_us, as_of_us)
    values = {step.name: step_values(step.view, held, t_us) for step, held in zip(plan.steps, rows, strict=True)}
    _add_on_demand(plan, request, values)
    return _result(plan, request, values, t_us, _details(plan, applied, ready, t_us))


def _fetch(plan: LookupPlan, step: ViewStep, request: LookupRequest) -> _Fetch:
    prefix = entity_prefix(plan.catalog.project, step.view.entities)
    return _Fetch(step, *group_keys(prefix, [request.columns[name] for name in step.request_keys]))


async def _read(
    store: redis.asyncio.Redis, plan: LookupPlan, fetches: Sequence[_Fetch]
) -> tuple[dict[tuple[str, int], Applied | None], dict[str, Ready | None], list[list[bytes | None]]]:
    """Markers, then one HMGET per distinct key, in one round trip."""
    places = _places(plan)
    views = list(dict.fromkeys(step.view for step in plan.steps))
    fields: dict[bytes, dict[str, None]] = {}
    for fetch in fetches:
        for key in fetch.keys:
            fields.setdefault(key, {})[layout_field(fetch.step.view)] = None
    pipe = store.pipeline(transaction=False)
    marks = [applied_field("source", *place) for place in places]
    marks += [field(view) for field in (ready_field, build_field) for view in views]
    if marks:
        pipe.hmget(markers_key(plan.catalog.project), marks)
    for key, wanted in fields.items():
        pipe.hmget(key, list(wanted))  # type: ignore[arg-type]
    replies = await pipe.execute()
    raw = replies.pop(0) if marks else []
    applied = dict(zip(places, map(decode_applied, raw[: len(places)]), strict=True))
    ready = dict(zip((view.name for view in views), map(decode_ready, raw[len(places) :]), strict=False))
    builds = dict(zip((layout_field(view) for view in views), raw[len(places) + len(views) :], strict=False))
    held = {}
    for (key, wanted), reply in zip(fields.items(), replies, strict=True):
        for field, blob in zip(wanted, reply, strict=True):
            held[key, field] = _current(blob, builds[field])
    return applied, ready, [[held[key, layout_field(fetch.step.view)] for key in fetch.keys] for fetch in fetches]


def _current(blob: bytes | None, build: bytes | None) -> bytes | None:
    """`blob`, or None for one that a store left behind which lost its markers. Raises UnavailableError for one that
    was built after the markers were read."""
    if blob is None or build is None:
        return None
    found = build_of(blob)
    if found > int(build):
        raise UnavailableError("The store lost this view and builds it anew at this moment; try again.")
    return blob if found == int(build) else None


def _places(plan: LookupPlan) -> list[tuple[str, int]]:
    names = dict.fromkeys(step.view.source for step in plan.steps if step.view.source is not None)
    return [(name, part) for name in names for part in (IMPORTS, *range(plan.catalog.source(name).partitions))]


def _refuse_unready(plan: LookupPlan, ready: Mapping[str, Ready | None]) -> None:
    for step in plan.steps:
        if step.view.kind == "windowed" and ready[step.view.name] is None:
            raise UnavailableError(
                f"View {step.view.name!r} is not ready: its layout is still being built; "
                "see that a worker runs, then try again."
            )


def _clock_us(
    plan: LookupPlan, applied: Mapping[tuple[str, int], Applied | None], as_of_us: int | None, now_us: int
) -> int:
    if as_of_us is not None:
        return as_of_us
    if plan.catalog.clock == "wall":
        return now_us
    marks = [mark.watermark_us for mark in applied.values() if mark is not None and mark.watermark_us is not None]
    return max(marks, default=-1) + 1


def _rows_of(fetch: _Fetch, held: Sequence[bytes | None]) -> list[bytes | None]:
    return [None if code < 0 else held[code] for code in fetch.codes.tolist()]


def _refuse_expired(
    plan: LookupPlan, rows: Sequence[Sequence[bytes | None]], as_of_us: int | None, now_us: int
) -> None:
    """Raises AsOfError where a value may have expired that counted at `as_of`: keys outlive what they hold by a day."""
    if as_of_us is None or plan.catalog.clock == "event" or as_of_us >= now_us - SPARE_MS * 1_000:
        return
    for step, held in zip(plan.steps, rows, strict=True):
        if None in held and expiry_ms(plan.catalog, step.view):
            raise AsOfError(
                f"as_of may lie a day back, got {(now_us - as_of_us) / 1e6:.0f} s: view {step.view.name!r} forgets "
                "keys that nothing happens to; ask the offline store (headrace dataset)."
            )


def _moved_past(plan: LookupPlan, rows: Sequence[Sequence[bytes | None]], t_us: Ints, as_of_us: int | None) -> Ints:
    """t, moved just past the newest event where a value already holds one that t must not precede."""
    moved = t_us
    for step, held in zip(plan.steps, rows, strict=True):
        newest = newest_us(step.view, held)
        ahead = newest >= t_us if step.view.kind == "windowed" else newest > t_us
        moved = np.where(ahead, np.maximum(moved, newest + 1), moved)
    if as_of_us is not None and (moved > t_us).any():
        row = int(np.flatnonzero(moved > t_us)[0])
        raise AsOfError(
            f"as_of must not precede what the store holds, but row {row} holds an event "
            f"{(int(moved[row]) - 1 - as_of_us) / 1e6:.6f} s after it; ask the offline store (headrace dataset)."
        )
    return moved


def _add_on_demand(plan: LookupPlan, request: LookupRequest, values: dict[str, StepValues]) -> None:
    for step in plan.on_demand:
        inputs = {feature: values[name].columns[feature] for name, feature in step.inputs}
        inputs |= {column.name: request.columns[column.name] for column in step.view.request}
        computed = step.function.compute(inputs)
        none = np.zeros(request.rows, np.int64)
        present = np.full(request.rows, PRESENT, np.uint8)
        values[step.view.name] = StepValues(computed, present, none)


def _result(
    plan: LookupPlan, request: LookupRequest, values: Mapping[str, StepValues], t_us: Ints, details: dict[str, Any]
) -> LookupResult:
    none = np.zeros(request.rows, np.int64)
    present = np.full(request.rows, PRESENT, np.uint8)
    names = [*request.names, *(output.name for output in plan.outputs)]
    columns = [request.columns[name] for name in request.names]
    statuses, timestamps = [present] * len(columns), [none] * len(columns)
    for output in plan.outputs:
        step = values[output.step]
        column = step.columns[output.feature.name]
        columns.append(column.cast(arrow_type(output.feature.dtype)))
        statuses.append(step.statuses_of(column))
        timestamps.append(step.timestamps_us)
    return LookupResult(names, columns, statuses, timestamps, t_us, details, _out_of_range(plan, values))


def _out_of_range(plan: LookupPlan, values: Mapping[str, StepValues]) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for step in plan.steps:
        beyond = values[step.name].out_of_range
        for feature in plan.features_of(step.name) if beyond else ():
            if feature in beyond:
                counts[step.view.name, feature] = counts.get((step.view.name, feature), 0) + beyond[feature]
    return counts


def _details(
    plan: LookupPlan,
    applied: Mapping[tuple[str, int], Applied | None],
    ready: Mapping[str, Ready | None],
    t_us: Ints,
) -> dict[str, Any]:
    """Per view: the positions that its values hold at least, the watermark, and whether a window is warming."""
    views = {}
    for step in plan.steps:
        held = {part: mark for (name, part), mark in applied.items() if name == step.view.source and mark is not None}
        marks = {part: mark for part, mark in held.items() if part != IMPORTS or mark.offset}
        since = [mark.watermark_us for mark in marks.values() if mark.watermark_us is not None]
        views[step.name] = {
            "positions": {str(part): str(mark) for part, mark in marks.items()},
            "watermark_us": max(since, default=None),
            "warming": _is_warming(step, ready[step.view.name], int(t_us.min())),
        }
    return {"views": views}


def _is_warming(step: ViewStep, ready: Ready | None, t_us: int) -> bool:
    if ready is None or ready.complete_from_us is None:
        return False
    tails = [tail_us(t_us, agg.window_us, agg.hop_us) for agg in step.view.aggregations if agg.window_us is not None]
    return bool(tails) and min(tails) < ready.complete_from_us
