"""A lookup between the wire and the store, alike for the ASGI route and the fast lane."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from headrace.errors import DeadlineError, RequestError, UnavailableError
from headrace.read.lookup import LookupRequest, LookupResult, answer, parse_request
from headrace.read.online.degraded import degraded_answer
from headrace.read.online.reads import Asked
from serving.bodies import parse_body, parse_moment
from serving.guards.heads import RequestHead
from serving.plans import ServedPlan
from serving.schemas import LookupBody
from serving.state import ServerState, now_us

__all__ = ["ROUTE", "USUAL_HEAD", "LookupCall", "OnAnswered", "Question", "parse_question"]

ROUTE = "/get-online-features"
USUAL_HEAD = RequestHead()
OnAnswered = Callable[[Any], None]
"""Gets a LookupResult, or an exception in its place."""

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


def _nobody(_: Any) -> None:
    """In the place of who was told already."""


class LookupCall:
    """One request under way: what to ask the store for, and what to make of its replies, or of their absence."""

    __slots__ = (
        "_as_of_us",
        "_asked",
        "_deadline_s",
        "_now_us",
        "_number",
        "_on_done",
        "_request",
        "_request_id",
        "_state",
        "_strict",
        "is_settled",
        "served",
    )

    def __init__(self, state: ServerState, question: Question, head: RequestHead = USUAL_HEAD) -> None:
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
        self._deadline_s = head.deadline_s or state.deadline_s
        self._request_id = head.request_id
        self._number = -1
        self._strict, self.is_settled = head.strict or not state.settings.degrade, False

    def start(self, on_done: OnAnswered, since_s: float) -> None:
        """Asks the store. `on_done` is called once, maybe at once: with the answer, or with the exception that there is
        none for. `since_s` of time.monotonic() is when the request came."""
        state, self._on_done = self._state, on_done
        packed, replies = self.served.plan.reads.pack(self._asked)
        if not replies:
            self._take([])
        elif not state.breaker.is_open or state.breaker.allows(time.monotonic()):
            self._number = state.deadlines.watch(self, since_s + self._deadline_s)
            state.ask(self.served.plan, self._asked, packed, replies, self._take_replies)
        else:
            self._fall_back(None, UnavailableError("The online store does not answer; try again."))

    async def answer(self) -> LookupResult:
        """The answer, for callers that wait. Raises UnavailableError, AsOfError, DataError."""
        found: asyncio.Future[LookupResult] = asyncio.get_running_loop().create_future()

        def on_done(answered: LookupResult | Exception) -> None:
            if found.done():
                return
            if isinstance(answered, Exception):
                found.set_exception(answered)
            else:
                found.set_result(answered)

        self.start(on_done, time.monotonic())
        return await found

    def expire(self) -> None:
        """The deadline has come before the store's replies."""
        state = self._state
        state.guards.late.labels(ROUTE).inc()
        if self._deadline_s >= state.deadline_s:  # who waits for less than usual says nothing about the store
            state.breaker.failed(time.monotonic())
        waited = f"The online store did not answer within {self._deadline_s * 1e3:g} ms; try again."
        self._fall_back(None, DeadlineError(waited))

    def _take_replies(self, replies: Any) -> None:
        if isinstance(replies, Exception):
            self._state.breaker.failed(time.monotonic())
            if not self.is_settled:
                self._fall_back(None, replies)
            return
        self._state.breaker.succeeded()
        if not self.is_settled:
            self._take(replies)

    def _take(self, replies: Sequence[Any]) -> None:
        plan, state = self.served.plan, self._state
        try:
            found = answer(plan, self._request, self._asked, replies, self._as_of_us, self._now_us)
            state.refuse_unconfirmed()
        except UnavailableError as error:
            self._fall_back(replies, error)
        except Exception as error:
            self._settle(error)
        else:
            if self._as_of_us is None and replies:
                state.degraded.kept.keep(plan.reads, self._asked, replies, found, self._now_us)
            self._settle(found, replies)

    def _fall_back(self, replies: Sequence[Any] | None, reason: Exception) -> None:
        """Answers by tiers, unless the caller or its moment forbids it."""
        plan, state = self.served.plan, self._state
        if self._strict or self._as_of_us is not None:
            self._settle(reason)
            return
        try:
            unconfirmed = state.unconfirmed() is not None
            held = None if unconfirmed else replies
            found = degraded_answer(plan, self._request, self._asked, held, state.degraded, reason, self._now_us)
        except Exception as error:
            self._settle(error)
        else:
            self._settle(found, held)

    def _settle(self, answered: LookupResult | Exception, replies: Sequence[Any] | None = None) -> None:
        self.is_settled = True
        if self._number >= 0:
            self._state.deadlines.settle(self._number)
        if isinstance(answered, LookupResult):
            self._state.metrics.looked_up(answered)
            if answered.tiers:
                self._state.guards.count_degraded(answered)
            if self.served.log_rate:
                self._log(answered, replies)
        on_done, self._on_done = self._on_done, _nobody  # else this call and its caller would hold each other
        on_done(answered)

    def _log(self, answered: LookupResult, replies: Sequence[Any] | None) -> None:
        served, offer = self.served, self._state.feature_log.offer
        offer(served.service, served.log_rate, self._request_id, answered, self._asked, replies, self._now_us)
