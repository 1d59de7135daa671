"""From exceptions to HTTP: the status, and the body that Feast's SDK turns into its own exception again.

The body is a JSON string that holds a JSON object of `module`, `class` and `message`, as Feast's server writes it, and
of `error`, the name of our exception.
"""

from __future__ import annotations

import orjson
import redis
from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from headrace.errors import (
    AsOfError,
    DataError,
    HeadraceError,
    RequestError,
    StoreLostError,
    StreamFullError,
    UnavailableError,
    UnknownNameError,
)
from headrace.telemetry import get_logger

__all__ = ["CLIENT_GONE", "HANDLERS", "WireError", "error_response", "failure_response"]

RETRY_AFTER_S = 1
CLIENT_GONE = 499
"""The status that nginx logs for a caller who closed the connection; HTTP has none of its own."""

log = get_logger()


class WireError(HeadraceError):
    """A request that HTTP itself refuses: the wrong content type, a body too large."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


_STATUS: list[tuple[type[HeadraceError], int]] = [
    (UnknownNameError, 404),
    (AsOfError, 409),
    (RequestError, 422),
    (DataError, 422),  # an on-demand view that fails on these rows
    (UnavailableError, 503),
    (StoreLostError, 503),
]
_FEAST_CLASSES = {
    "There is no feature service": "FeatureServiceNotFoundException",
    "There is no feature view": "FeatureViewNotFoundException",
    "There is no on-demand feature view": "OnDemandFeatureViewNotFoundException",
    "There is no source": "DataSourceObjectNotFoundException",
}


def error_response(
    status: int, message: str, headers: dict[str, str] | None = None, kind: type[Exception] | None = None
) -> Response:
    """A reply of Feast's error form; what of the message UTF-8 cannot hold is written as an escape. `kind` is added as
    `error`, for our own client."""
    message = message.encode(errors="backslashreplace").decode()
    detail = {"module": "feast.errors", "class": _feast_class(status, message), "message": message}
    if kind is not None:
        detail["error"] = kind.__name__
    body = orjson.dumps(orjson.dumps(detail).decode())
    return Response(body, status, headers=headers, media_type="application/json")


def _feast_class(status: int, message: str) -> str:
    """The exception of feast.errors that stands nearest."""
    if status != 404:
        return "FeastError"
    found = (name for start, name in _FEAST_CLASSES.items() if message.startswith(start))
    return next(found, "FeastObjectNotFoundException")


def failure_response(error: Exception, path: str) -> Response:
    """The reply to a request for `path` that failed. What we raised on purpose tells the caller the message; a store
    that is down, full or restarting is 503; anything else is a defect of ours: the log has the trace, the caller a
    plain 500."""
    if isinstance(error, WireError):
        return error_response(error.status, str(error))
    if isinstance(error, redis.RedisError):
        log.warning("the online store failed", path=path, error=repr(error))
        message = "The online store does not answer; try again."
        return error_response(503, message, {"Retry-After": str(RETRY_AFTER_S)})
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), None)
    if status is None:
        log.error("a request failed", path=path, exc_info=error)
        return error_response(500, "The server failed on this request; its log says why.")
    retry_s = error.retry_after_s if isinstance(error, StreamFullError) else RETRY_AFTER_S
    return error_response(status, str(error), {"Retry-After": str(retry_s)} if status == 503 else None, type(error))


async def on_failure(request: Request, error: Exception) -> Response:
    return failure_response(error, request.url.path)


async def on_http_error(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}; see /docs for what there is."
    return error_response(error.status_code, message, dict(error.headers or {}))


async def on_gone(request: Request, error: Exception) -> Response:
    """The caller went away before its body had come; nobody reads this, only the metrics count it."""
    return Response(status_code=CLIENT_GONE)


HANDLERS = {
    HeadraceError: on_failure,
    redis.RedisError: on_failure,
    HTTPException: on_http_error,
    ClientDisconnect: on_gone,
    Exception: on_failure,
}
