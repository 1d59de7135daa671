"""The route that scores: features by the same lookup, then the champion of a model."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from headrace.read.lookup import LookupResult, lookup, parse_request
from headrace.read.online.full_metadata import moments
from headrace.read.served_models import find_model
from headrace.stores.models import Model
from serving.bodies import parse_moment, read_json
from serving.openapi import PREDICT
from serving.replies import json_response
from serving.routes import json_body
from serving.schemas import PredictBody
from serving.state import ServerState, now_us, state_of

__all__ = ["router"]

router = APIRouter()


@router.post("/predict", openapi_extra=json_body(PredictBody), responses=PREDICT)
async def predict(request: Request) -> Response:
    """The probability that the model's label is true, one per row, and the moment `t` it was read at."""
    state = state_of(request)
    body = await read_json(request, PredictBody, state.settings.max_body_bytes)
    asked = (state.champions, state.settings.data_dir, state.catalog, body.model, body.feature_service)
    model = await asyncio.to_thread(find_model, *asked)
    result = await _features(state, model, body)
    columns = dict(zip(result.names, result.columns, strict=True))
    scores = await asyncio.to_thread(model.predict_proba, columns)
    state.metrics.predictions.labels(model.manifest.name).inc(len(scores))
    reply = {"model": model.manifest.name, "version": model.manifest.version, "predictions": scores.tolist()}
    return json_response({**reply, "t": moments(result.t_us)})


async def _features(state: ServerState, model: Model, body: PredictBody) -> LookupResult:
    plan = state.plans.of(model.manifest.service, [], True).plan
    asked = parse_request(plan, body.entities, state.settings.max_rows)
    result = await lookup(state.reads, plan, asked, parse_moment(body.as_of), now_us())
    state.refuse_unconfirmed()
    state.metrics.looked_up(result)
    return result
