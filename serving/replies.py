"""Writing replies: Feast's columnar form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from fastapi import Response
from numpy.typing import NDArray

from headrace.moments import rfc3339
from headrace.read.lookup import LookupResult

__all__ = ["json_response", "lookup_reply", "moments", "plain_values"]

STATUSES = ("PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE")


def json_response(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def lookup_reply(result: LookupResult, catalog_version: int, full: bool) -> dict[str, Any]:
    """Names in the metadata, one object of values, statuses and event timestamps per name."""
    metadata: dict[str, Any] = {"feature_names": result.names}
    if full:
        metadata |= {"t": moments(result.t_us), "catalog_version": catalog_version, **_with_moments(result.details)}
    columns = zip(result.columns, result.statuses, result.timestamps_us, strict=True)
    results = [
        {
            "values": plain_values(values),
            "statuses": [STATUSES[code] for code in statuses.tolist()],
            "event_timestamps": moments(timestamps),
        }
        for values, statuses, timestamps in columns
    ]
    return {"metadata": metadata, "results": results}


def plain_values(column: pa.Array) -> list[Any]:
    """A column as JSON holds it; timestamps are RFC 3339 text."""
    if pa.types.is_list(column.type) and pa.types.is_timestamp(column.type.value_type):
        lists = column.cast(pa.list_(pa.int64())).to_pylist()
        return [None if items is None else [rfc3339(us) for us in items] for items in lists]
    if pa.types.is_timestamp(column.type):
        return [None if us is None else rfc3339(us) for us in column.cast(pa.int64()).to_pylist()]
    values: list[Any] = column.to_pylist()
    return values


def moments(times_us: NDArray[np.int64]) -> list[str]:
    return [rfc3339(us) for us in times_us.tolist()]


def _with_moments(details: Any) -> Any:
    """`name_us` fields as `name` fields of RFC 3339 text, at every depth."""
    if isinstance(details, dict):
        return dict(_renamed(name, value) for name, value in details.items())
    if isinstance(details, Sequence) and not isinstance(details, str):
        return [_with_moments(item) for item in details]
    return details


def _renamed(name: str, value: Any) -> tuple[str, Any]:
    if name.endswith("_us") and (value is None or isinstance(value, int)):
        return name.removesuffix("_us"), None if value is None else rfc3339(value)
    return name, _with_moments(value)
