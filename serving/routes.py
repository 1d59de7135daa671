"""The routes that read and write features."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from headrace.errors import RequestError
from headrace.read.lookup import lookup, parse_request
from serving.bodies import parse_moment, read_json
from serving.replies import json_response, lookup_reply
from serving.schemas import LookupBody
from serving.state import now_us, state_of

__all__ = ["json_body", "router"]

router = APIRouter()


def json_body(model: Any) -> dict[str, Any]:
    """The OpenAPI entry of a handler that parses its own body."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


@router.post("/get-online-features", openapi_extra=json_body(LookupBody))
async def get_online_features(request: Request, metadata: Literal["plain", "full"] = "plain") -> Response:
    """Feature vectors, in the columnar form of Feast's feature server.

    `?metadata=full` adds to the metadata each row's moment `t`, the catalog version, and per view the applied
    positions, the watermark and whether a window is still warming.
    """
    state = state_of(request)
    body = await read_json(request, LookupBody, state.settings.max_body_bytes)
    if (body.feature_service is None) == (not body.features):
        raise RequestError("A request must name a feature_service or features, one of the two; name one.")
    plan = state.plan(body.feature_service, body.features, body.full_feature_names)
    asked = parse_request(plan, body.entities, state.settings.max_rows)
    result = await lookup(state.store, plan, asked, parse_moment(body.as_of), now_us())
    state.refuse_unconfirmed()
    state.metrics.looked_up(result)
    return json_response(lookup_reply(result, plan.catalog.version, metadata == "full"))
