"""The routes that append to the stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from headrace.catalog.definitions import Catalog, Column, FeatureView, Source, write_source
from headrace.compute.columns import typed_column
from headrace.dtypes import DType
from headrace.errors import RequestError
from headrace.moments import EARLIEST_US, LATEST_US, rfc3339
from headrace.stores.appends import append_batches
from headrace.stores.payloads import Batch, arrow_batches, column_batches, ndjson_batches, refuse_topic
from serving.bodies import OFF_LOOP_BYTES, parse_off_loop, read_body, read_json
from serving.errors import WireError
from serving.openapi import PUSH, WRITE
from serving.replies import json_response
from serving.routes import json_body
from serving.schemas import PushBody, WriteBody
from serving.state import ServerState, state_of

__all__ = ["router"]

router = APIRouter()

NDJSON = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
RAW_BODIES: dict[str, Callable[[Source, bytes], list[Batch]]] = {NDJSON: ndjson_batches, ARROW: arrow_batches}
JSON_TYPES = ("", "application/json", "text/json")
WAYS = ("online", "online_and_offline")

PUSH_DOC = json_body(PushBody)
PUSH_DOC["requestBody"]["content"] |= {
    NDJSON: {"schema": {"type": "string"}},
    ARROW: {"schema": {"type": "string", "format": "binary"}},
}


@router.post("/push", openapi_extra=PUSH_DOC, responses=PUSH)
async def push(request: Request, source: str | None = None) -> Response:
    """Append events to a source's stream; answers once the stream has them.

    JSON is Feast's body. NDJSON (one event a line) and an Arrow IPC stream need `?source=NAME`. The positions are
    those of the last event in each partition.
    """
    state = state_of(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in RAW_BODIES:
        return await _push_raw(state, request, source, RAW_BODIES[kind])
    if kind not in JSON_TYPES:
        raise WireError(415, f"A push is application/json, {NDJSON} or {ARROW}, got {kind!r}; state one of these.")
    body = await read_json(request, PushBody, state.settings.max_body_bytes)
    if body.to not in WAYS:
        raise RequestError(f"A push goes to {' or '.join(WAYS)} (alike), got {body.to!r}; use online.")
    target = state.catalog.source(body.push_source_name)
    refuse_topic(target)
    return await _append(state, target, column_batches(target, body.df))


async def _push_raw(
    state: ServerState, request: Request, name: str | None, split: Callable[[Source, bytes], list[Batch]]
) -> Response:
    if not name:
        raise RequestError("A push of NDJSON or Arrow must name its source; add ?source=NAME.")
    target = state.catalog.source(name)
    refuse_topic(target)
    raw = await read_body(request, state.settings.max_body_bytes)
    large = len(raw) >= OFF_LOOP_BYTES
    return await _append(state, target, await parse_off_loop(split, target, raw) if large else split(target, raw))


async def _append(state: ServerState, source: Source, batches: list[Batch]) -> Response:
    def count(batch: Batch) -> None:
        state.metrics.pushed.labels(source.name).inc(batch.count)

    budget = state.settings.stream_budget
    position = await append_batches(state.store, state.catalog, source, batches, budget, count)
    return json_response({"accepted": sum(batch.count for batch in batches), "position": position})


@router.post("/write-to-online-store", openapi_extra=json_body(WriteBody), responses=WRITE)
async def write_to_online_store(request: Request) -> Response:
    """Write rows into a plain or batch view; the newest event time of a key wins.

    Rows travel through a stream of the view's own, so training sees them too.
    """
    state = state_of(request)
    body = await read_json(request, WriteBody, state.settings.max_body_bytes)
    target = write_target(state.catalog, body.feature_view_name)
    columns = checked_rows(target, body.df)
    return await _append(state, target, column_batches(target, columns))


def write_target(catalog: Catalog, name: str) -> Source:
    """The internal source of a view's direct writes. Raises RequestError for a view that is computed."""
    if catalog.is_on_demand(name):
        raise RequestError(f"{name!r} is an on-demand view, which stores nothing; write into the views it reads.")
    view: FeatureView = catalog.view(name)
    if view.kind == "windowed":
        raise RequestError(
            f"{name!r} is computed from the events of {view.source!r} and takes no rows; push the events instead."
        )
    return write_source(catalog, view)


def checked_rows(source: Source, df: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The source's columns of `df`, in types that the stream's readers take.

    Raises RequestError for a missing column or a value of a wrong type: a row is refused before it is stored.
    """
    missing = [column.name for column in source.columns if column.name not in df and column.name != "created"]
    if missing:
        needed = ", ".join(column.name for column in source.columns)
        raise RequestError(f"Rows for {source.name!r} must have the columns {needed}; missing: {', '.join(missing)}.")
    columns = {column.name: _readable(column, df[column.name]) for column in source.columns if column.name in df}
    for column in source.columns:
        wrong = typed_column(columns.get(column.name, []), column)[1]
        if wrong:
            row, reason = next(iter(wrong.items()))
            raise RequestError(f"Rows must have the declared types; row {row}: {reason}.")
    if None in columns["event_timestamp"]:
        row = columns["event_timestamp"].index(None)
        raise RequestError(f"Every row must have an event_timestamp, row {row} has none; add it.")
    return columns


FEAST_NO_TIME = -(2**63)
"""What Feast's SDK posts for a timestamp that is null."""


def _readable(column: Column, values: list[Any]) -> list[Any]:
    """Feast's SDK posts timestamps of features as whole seconds since 1970; they become text."""
    if column.dtype is not DType.TIMESTAMP:
        return values
    return [_moment_text(column, value) if type(value) is int else value for value in values]


def _moment_text(column: Column, seconds: int) -> str | None:
    if seconds == FEAST_NO_TIME:
        return None
    if not EARLIEST_US <= seconds * 1_000_000 <= LATEST_US:
        raise RequestError(f"{column.name} must not lie outside the years 1 to 9999, got {seconds} s since 1970.")
    return rfc3339(seconds * 1_000_000)
