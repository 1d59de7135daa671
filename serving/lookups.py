"""A lookup between the wire and the store, alike for the ASGI route and the fast lane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from headrace.errors import RequestError
from headrace.read.lookup import LookupRequest, LookupResult, answer, fetch, parse_request
from headrace.read.online.reads import Asked
from serving.bodies import parse_body, parse_moment
from serving.plans import ServedPlan
from serving.schemas import LookupBody
from serving.state import ServerState, now_us

__all__ = ["LookupCall", "Question", "parse_question"]

_FIELDS = frozenset(("entities", "feature_service", "features", "full_feature_names", "as_of"))
_LISTS, _TEXTS = frozenset((list,)), frozenset((str,))


class Question(NamedTuple):
    """The fields of a request's body that count."""

    entities: Mapping[str, Sequence[Any]]
    feature_service: str | None
    features: Sequence[str]
    full_feature_names: bool
    as_of: str | None


def parse_question(raw: bytes) -> Question:
    """A body's question. Raises RequestError for anything else than the JSON of a LookupBody."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if type(body) is dict and body.keys() <= _FIELDS:
        question = Question(
            body.get("entities", ()),
            body.get("feature_service"),
            body.get("features", []),
            body.get("full_feature_names", False),
            body.get("as_of"),
        )
        if _is_plain(question):
            return question
    found = parse_body(LookupBody, raw)
    return Question(found.entities, found.feature_service, found.features, found.full_feature_names, found.as_of)


def _is_plain(question: Question) -> bool:
    """Whether every field has just the type that LookupBody declares, so that it need not be asked."""
    entities, service, features, full, as_of = question
    return (
        type(entities) is dict
        and _LISTS.issuperset(map(type, entities.values()))
        and (service is None or type(service) is str)
        and type(features) is list
        and _TEXTS.issuperset(map(type, features))
        and type(full) is bool
        and (as_of is None or type(as_of) is str)
    )


class LookupCall:
    """One request under way: what to ask the store for, and what to make of its replies."""

    __slots__ = ("_as_of_us", "_asked", "_now_us", "_request", "_state", "served")

    def __init__(self, state: ServerState, question: Question) -> None:
        """Raises RequestError (UnknownNameError, ...) for what the catalog cannot answer."""
        entities, service, features, full_names, as_of = question
        if (service is None) == (not features):
            raise RequestError("A request must name a feature_service or features, one of the two; name one.")
        self._state = state
        self.served: ServedPlan = state.plans.of(service, features, full_names)
        self._request: LookupRequest = parse_request(self.served.plan, entities, state.settings.max_rows)
        self._as_of_us = parse_moment(as_of)
        self._now_us = now_us()
        self._asked: Asked = self.served.plan.reads.ask(self._request)

    def pack(self) -> tuple[bytes, int]:
        """The commands, and how many replies they get; 0 where nothing need be asked."""
        return self.served.plan.reads.pack(self._asked)

    async def fetch(self) -> Sequence[Any]:
        """The replies."""
        return await fetch(self._state.reads, self.served.plan, self._asked)

    def result(self, replies: Sequence[Any]) -> LookupResult:
        """The answer, counted. Raises UnavailableError, AsOfError."""
        plan = self.served.plan
        found = answer(plan, self._request, self._asked, replies, self._as_of_us, self._now_us)
        self._state.refuse_unconfirmed()
        self._state.metrics.looked_up(found)
        return found
