"""What the OpenAPI description says of replies: bodies of what succeeds, and the statuses of what does not."""

from __future__ import annotations

from typing import Any

__all__ = ["HEALTH", "LOOKUP", "METRICS", "PREDICT", "PUSH", "READY", "STREAMS", "WRITE"]

Responses = dict[int | str, dict[str, Any]]

ARROW = "application/vnd.apache.arrow.stream"
_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_MOMENT: dict[str, Any] = {"type": "string", "format": "date-time"}
_WHY = {
    404: "A view, a service, a source or a model that is not there.",
    409: "`as_of` precedes what the online store holds.",
    413: "The body is too large.",
    415: "A push of another content type.",
    422: "Anything else that the caller must change; the message names the rule, the value and the remedy.",
    503: "The store is down or full, a stream's budget is used up, a view is not ready, or a model no longer fits the "
    "definitions.",
}
_ERROR: dict[str, Any] = {
    "type": "string",
    "description": "JSON text of an object with `module`, `class`, `message` (Feast's exception) and `error` (ours).",
}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _object(needed: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": needed | more, "required": list(needed)}


def _json(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _errors(*statuses: int) -> Responses:
    found: Responses = {status: _json(_ERROR, _WHY[status]) for status in statuses}
    if 503 in found:
        again = "Seconds after which the same request may work."
        found[503]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": again}}
    return found


_STATUS = {"type": "string", "enum": ["PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE"]}
_VIEW = _object(
    {
        "positions": {"type": "object", "additionalProperties": _TEXT},
        "watermark": {"anyOf": [_MOMENT, {"type": "null"}]},
        "warming": {"type": "boolean"},
        "tier": _TEXT,
        "age_s": _list({"type": ["number", "null"]}),
    }
)
_VECTORS = _object(
    {
        "metadata": _object(
            {"feature_names": _list(_TEXT)},
            t=_list(_MOMENT),
            catalog_version=_COUNT,
            views={"type": "object", "additionalProperties": _VIEW},
        ),
        "results": _list(
            _object({"values": _list({}), "statuses": _list(_STATUS), "event_timestamps": _list(_MOMENT)})
        ),
    }
)
_ACCEPTED = _object({"accepted": _COUNT, "position": {"type": "object", "additionalProperties": _TEXT}})
_SCORES = _object(
    {
        "model": _TEXT,
        "version": _COUNT,
        "predictions": _list({"type": "number", "minimum": 0, "maximum": 1}),
        "t": _list(_MOMENT),
    }
)
_PLACES: dict[str, Any] = {"type": "object", "additionalProperties": _TEXT}
_STREAM = _object(
    {"head": _PLACES, "applied": _PLACES, "archived": _PLACES, "lag": {"type": ["integer", "null"]}},
    watermark={"anyOf": [_MOMENT, {"type": "null"}]},
    counts={"type": "object", "additionalProperties": _COUNT},
)

_FOUND = _json(_VECTORS, "One result of values, statuses and event timestamps per name.")
_FOUND["content"][ARROW] = {"schema": {"type": "string", "format": "binary"}}

LOOKUP: Responses = {200: _FOUND, **_errors(404, 409, 413, 422, 503)}
PREDICT: Responses = {200: _json(_SCORES, "One probability per row."), **_errors(404, 409, 413, 422, 503)}
PUSH: Responses = {200: _json(_ACCEPTED, "The stream has the events."), **_errors(404, 413, 415, 422, 503)}
WRITE: Responses = {200: _json(_ACCEPTED, "The stream has the rows."), **_errors(404, 413, 422, 503)}
HEALTH: Responses = {200: _json(_object({"status": _TEXT}), "The process lives.")}
READY: Responses = {
    status: _json(_object({"ready": {"type": "boolean"}, "missing": _list(_TEXT)}), text)
    for status, text in ((200, "Every view can be served."), (503, "What is missing, or the store is down."))
}
STREAMS: Responses = {
    200: _json({"type": "object", "additionalProperties": _STREAM}, "By source, where everything stands."),
    **_errors(503),
}
METRICS: Responses = {200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": _TEXT}}}}
