"""Rows of the archive: the source's own columns, when they happened and arrived, where they stood, whether repeated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Source
from headrace.stores.arrow import arrow_schema

__all__ = ["INDEX", "MOMENT", "OFFSET", "PARTITION", "archive_schema", "event_rows"]

PARTITION, OFFSET, INDEX = "position.partition", "position.offset", "position.index"
"""The names that `read_events` gives the three parts of a position."""

MOMENT = pa.timestamp("us", "UTC")
_POSITION = pa.struct([("partition", pa.int32()), ("offset", pa.int64()), ("index", pa.int32())])
_ARCHIVE = (
    pa.field("event_time", MOMENT),
    pa.field("arrival_time", MOMENT),
    pa.field("position", _POSITION),
    pa.field("is_repeat", pa.bool_()),
    pa.field("event_date", pa.date32()),
)

Ints = NDArray[np.int64]


def event_rows(
    table: pa.Table,
    *,
    event_time_us: Ints,
    arrival_us: Ints,
    partition: int,
    offset: Ints,
    index: Ints,
    is_repeat: NDArray[np.bool_],
) -> pa.Table:
    """Parsed events as rows of the archive; `table` holds the source's columns in their declared types."""
    event_time = pa.array(event_time_us).cast(MOMENT)
    position = pa.StructArray.from_arrays(
        [
            pa.array(np.full(len(offset), partition, np.int32)),
            pa.array(offset),
            pa.array(index.astype(np.int32)),
        ],
        fields=list(_POSITION),
    )
    added: dict[str, Any] = {
        "event_time": event_time,
        "arrival_time": pa.array(arrival_us).cast(MOMENT),
        "position": position,
        "is_repeat": pa.array(is_repeat),
        "event_date": event_time.cast(pa.date32()),
    }
    own = {name: table[name] for name in table.column_names if name not in added}
    return pa.table({**own, **added})


def archive_schema(source: Source) -> pa.Schema:
    """The source's columns in their declared types, then what the archive adds."""
    own = arrow_schema(source.columns)
    return pa.schema([*own, *(field for field in _ARCHIVE if field.name not in own.names)])
