"""The routes that say how things stand."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import cast

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from headrace.stores.keys import markers_key
from headrace.stores.markers import ready_field
from headrace.stores.stream import heads_async
from headrace.stores.stream_reports import ReportQuery
from serving.replies import json_response
from serving.state import ServerState, state_of

__all__ = ["router"]

router = APIRouter()


@router.get("/health")
async def health() -> Response:
    """200 while the process lives."""
    return json_response({"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 once every view can be served, else 503 with what is missing."""
    state = state_of(request)
    views = [view for view in state.catalog.views if view.online]
    markers = await read_markers(state, [ready_field(view) for view in views])
    missing = [view.name for view, marker in zip(views, markers, strict=True) if marker is None]
    good = not missing and state.problem is None
    reply = {"ready": good, "catalog_version": state.catalog.version, "missing": missing, "problem": state.problem}
    return json_response(reply, 200 if good else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """What the server counts, for Prometheus."""
    return Response(state_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/streams")
async def streams(request: Request) -> Response:
    """By source: the last event's position in the stream, in all its views and in the archive; lag and watermark.

    Equal objects mean caught up. A view's direct writes appear as `writes/VIEW` once there are any.
    """
    state = state_of(request)
    query = ReportQuery(state.catalog)
    markers = await read_markers(state, query.fields)
    heads = await heads_async(state.store, state.catalog.project, query.places)
    return json_response(query.report(markers, heads))


async def read_markers(state: ServerState, fields: list[str]) -> list[bytes | None]:
    """The markers' values, None where there is none."""
    if not fields:
        return []
    reply = state.store.hmget(markers_key(state.catalog.project), fields)
    return await cast(Awaitable[list[bytes | None]], reply)
