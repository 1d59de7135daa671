"""The guards before FastAPI: what a request's head says, and whether it may come in."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from fastapi import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.errors import RequestError
from serving.errors import error_response, failure_response
from serving.guards.access import OPEN_PATHS, AccessError, scope_of
from serving.guards.heads import RequestHead, parse_head

if TYPE_CHECKING:
    from serving.state import ServerState

__all__ = ["GuardsMiddleware", "head_of", "refusal"]

FREE = frozenset(("/health", "/ready", "/metrics", "/streams"))
"""Paths that are answered whatever the load."""
RETRY_AFTER_S = 1
_HEAD = "headrace.head"


def head_of(scope: MutableMapping[str, Any]) -> RequestHead:
    """What the head of a request says; the guards have read it."""
    found: RequestHead = scope[_HEAD]
    return found


def refusal(state: ServerState, head: RequestHead, path: str) -> Response | None:
    """The reply to a request that may not come in, or not now; None for one that may."""
    if path not in OPEN_PATHS and not state.access.is_open:
        try:
            state.access.check(head.key, scope_of(path))
        except AccessError as error:
            return _refused(state, head, error)
    if path in FREE:
        return None
    reason = state.admission.refuses(head.priority)
    if reason is None:
        return None
    state.guards.shed.labels(head.priority.name, reason).inc()
    message = f"The server has more requests than it can answer, and {head.priority.name} ones wait; try again later."
    return error_response(429, message, {"Retry-After": str(RETRY_AFTER_S)})


def _refused(state: ServerState, head: RequestHead, error: AccessError) -> Response:
    if error.status == 429:
        state.guards.shed.labels(head.priority.name, error.reason).inc()
        return error_response(429, str(error), {"Retry-After": str(math.ceil(error.retry_s))})
    state.guards.refused.labels(error.reason).inc()
    headers = {"WWW-Authenticate": 'Bearer realm="headrace"'} if error.status == 401 else None
    return error_response(error.status, str(error), headers)


class GuardsMiddleware:
    """Reads every head, and refuses what there is no room for."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            scope[_HEAD] = parse_head({name.lower(): value for name, value in scope["headers"]})
        except RequestError as error:
            await failure_response(error, scope["path"])(scope, receive, send)
            return
        refused = refusal(self._state, scope[_HEAD], scope["path"])
        if refused is not None:
            await refused(scope, receive, send)
            return
        if scope["path"] in FREE:
            await self._app(scope, receive, send)
            return
        self._state.admission.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._state.admission.leave()
