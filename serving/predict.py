"""The route that scores: features by the same lookup, then the champion of a model."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import APIRouter, Request, Response

from headrace.errors import DataError, RequestError, UnavailableError, UnknownNameError
from headrace.read.lookup import LookupResult, lookup, parse_request
from headrace.read.model_fit import misfit
from headrace.stores.models import Champions, Model
from serving.bodies import parse_moment, read_json
from serving.replies import json_response, moments
from serving.routes import json_body
from serving.schemas import PredictBody
from serving.state import ServerState, now_us, state_of

__all__ = ["router"]

router = APIRouter()


@router.post("/predict", openapi_extra=json_body(PredictBody))
async def predict(request: Request) -> Response:
    """The probability that the model's label is true, one per row, and the moment `t` it was read at."""
    state = state_of(request)
    body = await read_json(request, PredictBody, state.settings.max_body_bytes)
    model = await asyncio.to_thread(find_model, state, body.model, body.feature_service)
    result = await _features(state, model, body)
    columns = dict(zip(result.names, result.columns, strict=True))
    scores = await asyncio.to_thread(model.predict_proba, columns)
    state.metrics.predictions.labels(model.manifest.name).inc(len(scores))
    reply = {"model": model.manifest.name, "version": model.manifest.version, "predictions": scores.tolist()}
    return json_response({**reply, "t": moments(result.t_us)})


async def _features(state: ServerState, model: Model, body: PredictBody) -> LookupResult:
    problem = misfit(model.manifest, state.catalog)
    if problem is not None:
        raise UnavailableError(f"{problem}.")
    plan = state.plan(model.manifest.service, [], True)
    asked = parse_request(plan, body.entities, state.settings.max_rows)
    result = await lookup(state.store, plan, asked, parse_moment(body.as_of), now_us())
    state.refuse_unconfirmed()
    state.metrics.looked_up(result)
    return result


def find_model(state: ServerState, name: str | None, service: str | None) -> Model:
    """The champion called `name`; without a name the one that reads `service`, or the only one there is."""
    if name is None:
        return _only_model(state, service)
    model = _load(state.champions, name)
    if service is not None and service != model.manifest.service:
        raise RequestError(f"Model {name!r} reads {model.manifest.service!r}, not {service!r}; leave one of them out.")
    return model


def _only_model(state: ServerState, service: str | None) -> Model:
    models = [_load(state.champions, name) for name in _names(state.settings.data_dir)]
    fitting = [model for model in models if service in (None, model.manifest.service)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(model.manifest.name for model in fitting)
    if fitting:
        raise RequestError(f"A request must say which model it means, there are: {names}; name one as model.")
    raise UnknownNameError(f"There is no model{f' of {service!r}' if service else ''} yet; run headrace train.")


def _names(data_dir: Path) -> list[str]:
    return sorted(path.parent.name for path in data_dir.glob("models/*/champion"))


def _load(champions: Champions, name: str) -> Model:
    try:
        return champions.get(name)
    except DataError as error:
        raise UnavailableError(str(error)) from error
