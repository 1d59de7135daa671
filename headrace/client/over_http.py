"""Requests to the server, over pooled connections."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
import pyarrow as pa

import headrace.errors
from headrace.client.arguments import ARROW, JSON
from headrace.client.connections import Connections, Reply
from headrace.client.retries import Again
from headrace.client.vectors import FeatureVectors, Predictions, Pushed
from headrace.errors import AsOfError, HeadraceError, RequestError, ServerError, UnavailableError, UnknownNameError

__all__ = ["HttpBackend"]

BUSY = (429, 502, 503, 504)
"""Statuses of a server, or of a proxy before it, that may answer the same request later."""
_BY_STATUS: dict[int, type[HeadraceError]] = {404: UnknownNameError, 409: AsOfError}
_HEADERS = {"content-type": JSON}


class HttpBackend:
    """One server. Errors that may pass are raised as Again."""

    def __init__(
        self, url: str, *, headers: Mapping[str, str], verify: bool | str, connections: int, strict: bool = False
    ) -> None:
        """Raises RequestError for what is no server's URL."""
        self._url = url
        self._paths = {full: _path(full, strict) for full in (False, True)}
        self._connections = Connections(url, headers, verify, connections)

    async def get(self, body: Mapping[str, Any], full: bool) -> FeatureVectors:
        """A lookup's answer."""
        reply = await self._post(self._paths[full], _json(body), {**_HEADERS, "accept": ARROW})
        if reply.headers.get("content-type") != ARROW:
            raise ServerError(f"{self._url} answers no Arrow, so it is no Headrace server; correct the URL.")
        with pa.ipc.open_stream(reply.content) as stream:
            return FeatureVectors(stream.read_next_batch())

    async def predict(self, body: Mapping[str, Any]) -> Predictions:
        """Scores of a model."""
        held = self._object(await self._post("/predict", _json(body), _HEADERS))
        scores = np.array(held["predictions"], np.float64)
        return Predictions(held["model"], held["version"], scores, [datetime.fromisoformat(t) for t in held["t"]])

    async def push(self, source: str, kind: str, body: bytes) -> Pushed:
        """Appends events."""
        held = self._object(await self._post(f"/push?source={quote(source, safe='')}", body, {"content-type": kind}))
        return Pushed(held["accepted"], held["position"])

    async def aclose(self) -> None:
        self._connections.close()

    def _object(self, reply: Reply) -> dict[str, Any]:
        try:
            return dict(orjson.loads(reply.content))
        except (ValueError, TypeError):
            raise ServerError(f"{self._url} answers no JSON object, so it is no Headrace server.") from None

    async def _post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        try:
            reply = await self._connections.post(path, headers, body)
        except OSError as error:
            reason = str(error) or type(error).__name__
            raise Again(UnavailableError(f"{self._url} does not answer: {reason}; see that it runs.")) from error
        if reply.status == 200:
            return reply
        raise self._failure(reply)

    def _failure(self, reply: Reply) -> Exception:
        """The exception that the server's error stands for."""
        status, retry_after_s = reply.status, _retry_after_s(reply)
        detail = _detail(reply.content)
        message = detail.get("message") or f"{self._url} answered {status}: {reply.content[:200]!r}."
        if status in BUSY:
            return Again(_unavailable(detail, message, retry_after_s), retry_after_s)
        if status >= 500 or status < 400:
            return ServerError(message)
        return _named(detail, _BY_STATUS.get(status, RequestError))(message)


def _path(full: bool, strict: bool) -> str:
    asked = [*(["metadata=full"] if full else []), *(["strict=true"] if strict else [])]
    return "/get-online-features" + ("?" + "&".join(asked) if asked else "")


def _json(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    except (TypeError, ValueError) as error:
        raise RequestError(f"A request must hold what JSON can: {error}.") from None


def _retry_after_s(reply: Reply) -> float:
    """The seconds that the server asks for; a date counts as one second."""
    text = reply.headers.get("retry-after")
    if text is None:
        return 0.0
    return float(text) if text.isdigit() else 1.0


def _detail(content: bytes) -> dict[str, str]:
    """The object that Feast's form of an error holds, empty for another body."""
    with contextlib.suppress(ValueError, TypeError):
        held = orjson.loads(content)
        held = orjson.loads(held) if isinstance(held, str) else held
        return held if isinstance(held, dict) else {}
    return {}


def _named(detail: Mapping[str, str], otherwise: type[HeadraceError]) -> type[HeadraceError]:
    """The exception of ours that the reply names."""
    found = getattr(headrace.errors, detail.get("error", ""), None)
    return found if isinstance(found, type) and issubclass(found, HeadraceError) else otherwise


def _unavailable(detail: Mapping[str, str], message: str, retry_after_s: float) -> HeadraceError:
    kind = _named(detail, UnavailableError)
    if kind is headrace.errors.StreamFullError:
        return headrace.errors.StreamFullError(message, int(retry_after_s) or 1)
    return kind(message)
