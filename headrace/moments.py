"""Moments as text: RFC 3339 in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

__all__ = ["EARLIEST_US", "LATEST_US", "rfc3339"]

EARLIEST_US = -62_135_596_800_000_000
LATEST_US = 253_402_300_799_999_999
"""The first and the last moment of the years 1 to 9999, which RFC 3339 and Python can write."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=65_536)
def rfc3339(us: int) -> str:
    """Microseconds UTC as `2013-05-01T12:00:00Z`, with six digits of a second when it is not whole.

    A moment outside the years 1 to 9999 is written as the nearest one inside.
    """
    inside_us = min(max(us, EARLIEST_US), LATEST_US)
    return (_EPOCH + timedelta(microseconds=inside_us)).isoformat().removesuffix("+00:00") + "Z"
