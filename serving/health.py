"""The routes that say how things stand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import cast

import redis
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from headrace.catalog.definitions import Catalog, FeatureView
from headrace.errors import UnavailableError
from headrace.stores.counters import Counted, decode_counts, sources_counts
from headrace.stores.gaps import gap_field
from headrace.stores.keys import counters_key, markers_key
from headrace.stores.markers import places, ready_field
from headrace.stores.stream import heads_async
from headrace.stores.stream_reports import ReportQuery
from serving.openapi import HEALTH, METRICS, READY, STREAMS
from serving.replies import json_response
from serving.state import ServerState, state_of

__all__ = ["router"]

router = APIRouter()

REPORT_S = 2.0
"""How long a report waits for the store: whoever asks how things stand asks again soon."""


@router.get("/health", responses=HEALTH)
async def health() -> Response:
    """200 while the process lives."""
    return json_response({"status": "ok"})


@router.get("/ready", responses=READY)
async def ready(request: Request) -> Response:
    """200 once every view can be served, else 503 with what is missing."""
    state = state_of(request)
    views = [view for view in state.catalog.views if view.online]
    held = await read_markers(state, [ready_field(view) for view in views])
    missing = [view.name for view, marker in zip(views, held, strict=True) if marker is None]
    stopped = await _stopped(state, views)
    problem = state.problem or state.unconfirmed()
    good = not missing and not stopped and problem is None
    reply = {"ready": good, "catalog_version": state.catalog.version, "missing": missing, "stopped": stopped}
    return json_response(reply | {"problem": problem}, 200 if good else 503)


async def _stopped(state: ServerState, views: list[FeatureView]) -> dict[str, str]:
    """By view, why the worker takes up no more of its events; its values stay what they are."""
    wanted = {name: [gap_field("worker", *place) for place in of] for name, of in _places(state.catalog, views).items()}
    fields = sorted({field for of in wanted.values() for field in of})
    held = dict(zip(fields, await read_markers(state, fields), strict=True))
    found = {name: next((held[field] for field in of if held[field]), None) for name, of in wanted.items()}
    return {name: text.decode() for name, text in found.items() if text}


def _places(catalog: Catalog, views: list[FeatureView]) -> dict[str, list[tuple[str, int]]]:
    """The partitions that every view is computed from."""
    every = [(source.name, partition) for source, partition in places(catalog)]
    return {view.name: [place for place in every if place[0] in (view.source, f"writes/{view.name}")] for view in views}


@router.get("/metrics", responses=METRICS, response_class=Response)
async def metrics(request: Request) -> Response:
    """What the server and the worker count, for Prometheus."""
    state = state_of(request)
    return Response(state.metrics.render(await _counts(state)), media_type=CONTENT_TYPE_LATEST)


async def _counts(state: ServerState) -> dict[Counted, int]:
    """What the worker has counted; nothing while the store does not answer."""
    asked = cast(Awaitable[dict[bytes, bytes]], state.store.hgetall(counters_key(state.catalog.project)))
    try:
        raw = await asyncio.wait_for(asked, REPORT_S)
    except (redis.RedisError, OSError, TimeoutError):
        return {}
    return decode_counts(raw)


@router.get("/streams", responses=STREAMS)
async def streams(request: Request) -> Response:
    """By source: the last event's position in the stream, in all its views and in the archive; lag and watermark.

    Equal objects mean caught up. A view's direct writes appear as `writes/VIEW` once there are any. `counts` are the
    worker's: events, repeated, late, dead, quarantined, dropped, warned.
    """
    state = state_of(request)
    query = ReportQuery(state.catalog)
    markers = await read_markers(state, query.fields)
    heads = await heads_async(state.store, state.catalog.project, query.stream_places)
    heads |= await state.topic_heads.read(state.catalog, query.topic_places)
    counts = sources_counts(await _counts(state))
    report = {name: row | {"counts": counts.get(name, {})} for name, row in query.report(markers, heads).items()}
    return json_response(report)


async def read_markers(state: ServerState, fields: list[str]) -> list[bytes | None]:
    """The markers' values, None where there is none."""
    if not fields:
        return []
    reply = state.store.hmget(markers_key(state.catalog.project), fields)
    try:
        return await asyncio.wait_for(cast(Awaitable[list[bytes | None]], reply), REPORT_S)
    except TimeoutError:
        raise UnavailableError(f"The online store did not answer within {REPORT_S:g} s; try again.") from None
