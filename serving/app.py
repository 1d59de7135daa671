"""The FastAPI application."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError

from serving import health, predict, pushes, routes
from serving.errors import HANDLERS, error_response
from serving.guards.middleware import GuardsMiddleware
from serving.metrics import MetricsMiddleware
from serving.state import ServerState, lifespan

__all__ = ["build_app"]

DESCRIPTION = """Feature vectors, pushes and predictions, in the wire format of Feast's feature server.

Errors are a JSON string that holds a JSON object of `module`, `class` and `message`: 404 for an unknown name,
409 for an `as_of` that the store is already past, 413 and 422 for a request to change, 503 with Retry-After for
one to repeat."""


def build_app(state: ServerState) -> FastAPI:
    """The application that answers from `state`."""
    app = FastAPI(
        title="Headrace",
        description=DESCRIPTION,
        version=version("headrace"),
        lifespan=lifespan,
        openapi_url="/openapi.json" if state.settings.docs else None,  # without it there are no /docs either
    )
    app.state.headrace = state
    for module in (routes, pushes, predict, health):
        app.include_router(module.router)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_exception_handler(RequestValidationError, on_wrong_parameter)
    app.add_middleware(GuardsMiddleware, state=state)
    app.add_middleware(MetricsMiddleware, metrics=state.metrics)
    return app


async def on_wrong_parameter(request: Request, error: Exception) -> Response:
    """A query parameter that FastAPI refused."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return error_response(422, f"Parameter {first['loc'][-1]!r}: {first['msg']}, got {first.get('input')!r}.")
