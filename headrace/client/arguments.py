"""What callers pass, as the wire or the lookup takes it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
import pyarrow as pa

from headrace.errors import RequestError

__all__ = [
    "ARROW",
    "JSON",
    "NDJSON",
    "Entities",
    "Rows",
    "entity_columns",
    "guard_headers",
    "lookup_body",
    "moment_text",
    "pushed_body",
]

Entities = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""Join keys and request data: columns by name (lists, arrays, series), or one mapping per row."""
Rows = Mapping[str, Any] | Sequence[Mapping[str, Any]] | Any
"""Events: columns by name, one mapping per event, an Arrow table or batch, or a pandas frame."""

JSON, NDJSON = "application/json", "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"


PRIORITIES = ("critical", "normal", "batch")


def guard_headers(api_key: str | None, priority: str) -> dict[str, str]:
    """The headers by which a server knows a caller; the key is by default HEADRACE_API_KEY. Raises RequestError for
    another priority."""
    if priority not in PRIORITIES:
        raise RequestError(f"A priority is one of {', '.join(PRIORITIES)}, got {priority!r}; name one of these.")
    key = os.environ.get("HEADRACE_API_KEY") if api_key is None else api_key
    own = {} if priority == "normal" else {"x-priority": priority}
    return {**own, "x-api-key": key} if key else own


def entity_columns(entities: Entities) -> dict[str, list[Any]]:
    """Lists by name. Raises RequestError for rows that differ in their names, and for a column that is no column."""
    if isinstance(entities, Mapping):
        return {str(name): _values(str(name), column) for name, column in entities.items()}
    rows = list(entities)
    names = list(rows[0]) if rows else []
    for number, row in enumerate(rows):
        if set(row) != set(names):
            raise RequestError(f"Rows must have the same names, row {number} has {list(row)}, the first has {names}.")
    return {name: [row[name] for row in rows] for name in names}


def _values(name: str, column: Any) -> list[Any]:
    for convert in ("to_pylist", "tolist"):
        if hasattr(column, convert):
            return list(getattr(column, convert)())
    if isinstance(column, str | bytes) or not isinstance(column, Sequence):
        raise RequestError(f"Column {name!r} must be a list of values, one per row, got {type(column).__name__}.")
    return list(column)


def lookup_body(
    asked: str | Sequence[str], entities: Entities, as_of: datetime | str | None, full_feature_names: bool
) -> dict[str, Any]:
    """The body of a lookup: a service by its name, or references `view:feature`."""
    chosen = {"feature_service": asked} if isinstance(asked, str) else {"features": list(asked)}
    body = {**chosen, "entities": entity_columns(entities), "full_feature_names": full_feature_names}
    return body if as_of is None else {**body, "as_of": moment_text(as_of)}


def moment_text(moment: datetime | str) -> str:
    """RFC 3339 text; a datetime without a zone is UTC."""
    return moment if isinstance(moment, str) else moment.isoformat()


def pushed_body(rows: Rows) -> tuple[str, bytes]:
    """The content type and the bytes of a push: Arrow for tables and frames, else NDJSON.

    Raises RequestError for values that JSON cannot hold.
    """
    if hasattr(rows, "to_arrow"):  # polars
        rows = rows.to_arrow()
    elif hasattr(rows, "__dataframe__") and not isinstance(rows, pa.Table | pa.RecordBatch):
        rows = pa.Table.from_pandas(rows, preserve_index=False)
    if isinstance(rows, pa.Table | pa.RecordBatch):
        return ARROW, _ipc(rows)
    events: Any = rows
    if isinstance(rows, Mapping):
        columns = entity_columns(rows)
        if len({len(values) for values in columns.values()}) > 1:
            sizes = {name: len(values) for name, values in columns.items()}
            raise RequestError(f"Columns must have equal lengths, got {sizes}; fill gaps with None.")
        events = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    try:
        return NDJSON, b"\n".join([orjson.dumps(dict(event), option=orjson.OPT_SERIALIZE_NUMPY) for event in events])
    except (TypeError, ValueError) as error:
        raise RequestError(f"Events must hold what JSON can: {error}.") from None


def _ipc(rows: pa.Table | pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write(rows)
    body: bytes = sink.getvalue().to_pybytes()
    return body
