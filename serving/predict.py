"""The route that scores: features by the same lookup, then the champion of a model."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fastapi import APIRouter, Request, Response

from headrace.read.lookup import LookupResult
from headrace.read.online.full_metadata import moments
from headrace.read.served_models import find_model
from headrace.stores.models import Model
from serving.bodies import read_json
from serving.guards.heads import RequestHead
from serving.guards.middleware import head_of
from serving.lookups import LookupCall, Question
from serving.openapi import PREDICT
from serving.replies import json_response
from serving.routes import json_body
from serving.schemas import PredictBody
from serving.state import ServerState, state_of

__all__ = ["router"]

router = APIRouter()


@router.post("/predict", openapi_extra=json_body(PredictBody), responses=PREDICT)
async def predict(request: Request, strict: bool = False) -> Response:
    """The probability that the model's label is true, one per row, and the moment `t` it was read at.

    `degraded` says whether some features did not come from the store; `?strict=true` asks for a 503 then.
    """
    state = state_of(request)
    body = await read_json(request, PredictBody, state.settings.max_body_bytes)
    asked = (state.champions, state.settings.data_dir, state.catalog, body.model, body.feature_service)
    model = await asyncio.to_thread(find_model, *asked)
    result = await _features(state, model, body, replace(head_of(request.scope), strict=strict))
    columns = dict(zip(result.names, result.columns, strict=True))
    scores = await asyncio.to_thread(model.predict_proba, columns)
    state.metrics.predictions.labels(model.manifest.name).inc(len(scores))
    reply = {"model": model.manifest.name, "version": model.manifest.version, "predictions": scores.tolist()}
    return json_response({**reply, "t": moments(result.t_us), "degraded": is_degraded(result)})


def is_degraded(result: LookupResult) -> bool:
    return any(tier.name != "store" for row in result.tiers for tier in row)


async def _features(state: ServerState, model: Model, body: PredictBody, head: RequestHead) -> LookupResult:
    question = Question(body.entities, model.manifest.service, [], True, body.as_of)
    return await LookupCall(state, question, head).answer()
