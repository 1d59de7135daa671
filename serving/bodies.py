"""Reading requests: a bounded body, JSON, and a model of it; every mistake is a message."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError

from headrace.compute.columns import parse_moment
from headrace.errors import RequestError
from serving.errors import WireError

__all__ = ["parse_body", "parse_moment", "read_body", "read_json"]

Body = TypeVar("Body", bound=BaseModel)

OFF_LOOP_BYTES = 256 << 10
"""Bodies from this size on are parsed in a thread, so that the loop goes on answering."""

DRAIN_BYTES = 64 << 20


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises WireError 413 beyond `limit` bytes, once the sender has been heard out."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > DRAIN_BYTES:
            break
    if size > limit:
        raise WireError(413, f"A body may hold {limit} bytes, got {size} or more; send it in parts.")
    return b"".join(chunks)


async def read_json(request: Request, kind: type[Body], limit: int) -> Body:
    """The body as `kind`. Raises RequestError for anything else than its JSON."""
    raw = await read_body(request, limit)
    return await parse_off_loop(parse_body, kind, raw) if len(raw) >= OFF_LOOP_BYTES else parse_body(kind, raw)


async def parse_off_loop(function: Any, *args: Any) -> Any:
    return await asyncio.to_thread(function, *args)


def parse_body(kind: type[Body], raw: bytes) -> Body:
    """JSON text as `kind`; NaN counts as null, since Python's own encoder writes it."""
    try:
        return kind.model_validate(_loads(raw))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        known = ", ".join(kind.model_fields)
        raise RequestError(f"Field {where}: {first['msg']}; the body's fields are: {known}.") from None


def _loads(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return _loads_lenient(raw, error)


def _loads_lenient(raw: bytes, reason: Exception) -> Any:
    """JSON with the NaN and Infinity that Python's own encoder writes; all else is judged by the strict parser,
    which refuses lone surrogates."""
    if b"NaN" in raw or b"Infinity" in raw:
        try:
            plain = json.loads(raw, parse_constant=lambda name: None if name == "NaN" else name)
            return orjson.loads(json.dumps(plain))
        except (ValueError, RecursionError) as error:
            reason = error
    raise RequestError(f"The body must be one JSON object, got {_shown(raw)} ({reason}).")


def _shown(raw: bytes) -> str:
    text = raw[:60].decode(errors="replace")
    return repr(text) if text else "nothing"
