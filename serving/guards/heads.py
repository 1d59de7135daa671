"""What the head of a request says besides what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from headrace.errors import RequestError

__all__ = ["GUARD_HEADERS", "Priority", "RequestHead", "parse_head"]

LONGEST_DEADLINE_MS = 600_000
LONGEST_ID = 128
_DEADLINE, _PRIORITY, _ID = b"x-deadline-ms", b"x-priority", b"x-request-id"
_KEY, _AUTHORIZATION = b"x-api-key", b"authorization"

GUARD_HEADERS = frozenset((_DEADLINE, _PRIORITY, _ID, _KEY, _AUTHORIZATION))
"""The headers that count here, in lower case."""


class Priority(IntEnum):
    """How much a request matters; under overload the last are refused first."""

    critical = 0
    normal = 1
    batch = 2


@dataclass(frozen=True, slots=True)
class RequestHead:
    """`deadline_s` is how many seconds the answer may take (None: the server's default), `strict` asks for an error in
    place of a degraded answer, `key` is the API key as it was sent."""

    deadline_s: float | None = None
    priority: Priority = Priority.normal
    strict: bool = False
    request_id: str | None = None
    key: bytes | None = None


def parse_head(headers: Mapping[bytes, bytes], strict: bool = False) -> RequestHead:
    """Headers by their names in lower case. Raises RequestError for a value that means nothing."""
    return RequestHead(
        _deadline_s(headers.get(_DEADLINE)),
        _priority(headers.get(_PRIORITY)),
        strict,
        _request_id(headers.get(_ID)),
        _key(headers),
    )


def _deadline_s(value: bytes | None) -> float | None:
    if value is None:
        return None
    try:
        deadline_ms = float(value)
    except ValueError:
        deadline_ms = -1.0
    if not 0 < deadline_ms <= LONGEST_DEADLINE_MS:
        raise RequestError(
            f"X-Deadline-Ms is a number of milliseconds above 0 and at most {LONGEST_DEADLINE_MS:,}, "
            f"got {_shown(value)}; state how long you can wait, or leave it out."
        )
    return deadline_ms / 1_000


def _priority(value: bytes | None) -> Priority:
    if value is None:
        return Priority.normal
    try:
        return Priority[value.decode("latin-1").strip().lower()]
    except KeyError:
        known = ", ".join(priority.name for priority in Priority)
        raise RequestError(f"X-Priority is one of {known}, got {_shown(value)}; name one, or leave it out.") from None


def _request_id(value: bytes | None) -> str | None:
    if value is None:
        return None
    text = value.decode("latin-1")
    if not 0 < len(text) <= LONGEST_ID or not text.isascii() or not text.isprintable():
        raise RequestError(
            f"X-Request-ID is 1 to {LONGEST_ID} printable ASCII characters, got {_shown(value)}; shorten or encode it."
        )
    return text


def _key(headers: Mapping[bytes, bytes]) -> bytes | None:
    key = headers.get(_KEY)
    if key is not None:
        return key
    kind, _, rest = headers.get(_AUTHORIZATION, b"").partition(b" ")
    return rest.strip() if kind.lower() == b"bearer" and rest else None


def _shown(value: bytes) -> str:
    return repr(value[:60].decode("latin-1"))
