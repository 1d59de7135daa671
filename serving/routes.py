"""The routes that read and write features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from serving.arrow_replies import arrow_response, wants_arrow
from serving.bodies import OFF_LOOP_BYTES, parse_off_loop, read_body
from serving.guards.middleware import head_of
from serving.lookups import LookupCall, Question, parse_question
from serving.openapi import LOOKUP
from serving.replies import Timestamps
from serving.schemas import LookupBody
from serving.state import state_of

__all__ = ["json_body", "router"]

router = APIRouter()


def json_body(model: Any) -> dict[str, Any]:
    """The OpenAPI entry of a handler that parses its own body."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


@router.post("/get-online-features", openapi_extra=json_body(LookupBody), responses=LOOKUP)
async def get_online_features(
    request: Request,
    metadata: Literal["plain", "full"] = "plain",
    timestamps: Timestamps = "seconds",
    strict: bool = False,
) -> Response:
    """Feature vectors, in the columnar form of Feast's feature server.

    Features that are timestamps are whole seconds since 1970, as Feast's server writes them; `?timestamps=rfc3339`
    asks for text with microseconds. `?metadata=full` adds to the metadata each row's moment `t`, the catalog version,
    and per view the applied positions, the watermark, whether a window is still warming, the tier that answered and
    each row's age in seconds. What the store cannot tell in time comes from the values answered last, from the declared
    defaults, or is null; `?strict=true` asks for a 503 then. `Accept: application/vnd.apache.arrow.stream` asks for one
    Arrow record batch.
    """
    state = state_of(request)
    head = replace(head_of(request.scope), strict=strict)
    call = LookupCall(state, await _question(request, state.settings.max_body_bytes), head)
    result = await call.answer()
    if wants_arrow(request.headers.get("accept", "")):
        return arrow_response(result, metadata == "full")
    return Response(call.served.write(result, metadata == "full", timestamps), media_type="application/json")


async def _question(request: Request, limit: int) -> Question:
    raw = await read_body(request, limit)
    return await parse_off_loop(parse_question, raw) if len(raw) >= OFF_LOOP_BYTES else parse_question(raw)
