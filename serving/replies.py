"""Writing replies: values as JSON holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import orjson
import pyarrow as pa
from fastapi import Response

from headrace.moments import rfc3339

__all__ = ["Timestamps", "json_response", "plain_values", "write_moment"]

Timestamps = Literal["seconds", "rfc3339"]
"""How a JSON reply writes feature values that are timestamps."""


def json_response(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def plain_values(column: pa.Array, times: Timestamps = "seconds") -> list[Any]:
    """A column as JSON holds it; timestamps are whole seconds since 1970, cut down, as Feast writes them, or RFC 3339
    text."""
    write = write_moment(times)
    if pa.types.is_list(column.type) and pa.types.is_timestamp(column.type.value_type):
        lists = column.cast(pa.list_(pa.int64())).to_pylist()
        return [None if items is None else [write(us) for us in items] for items in lists]
    if pa.types.is_timestamp(column.type):
        return [None if us is None else write(us) for us in column.cast(pa.int64()).to_pylist()]
    values: list[Any] = column.to_pylist()
    return values


def write_moment(times: Timestamps) -> Callable[[int], str | int]:
    """What a JSON reply writes for microseconds."""
    return rfc3339 if times == "rfc3339" else _seconds


def _seconds(us: int) -> int:
    return us // 1_000_000
