"""Moments as text: RFC 3339 in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

__all__ = ["rfc3339"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=65_536)
def rfc3339(us: int) -> str:
    """Microseconds UTC as `2013-05-01T12:00:00Z`, with six digits of a second when it is not whole.

    Raises OverflowError outside the years 1 to 9999.
    """
    return (_EPOCH + timedelta(microseconds=us)).isoformat().removesuffix("+00:00") + "Z"
