"""Label rows that nobody wrote down: every entity of a list at every moment of a grid, or at one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.dtypes import DType, arrow_type
from headrace.errors import DataError, RequestError
from headrace.moments import EARLIEST_US, LATEST_US
from headrace.read.labels import BATCH_ROWS, TIMESTAMP
from headrace.windows.window import parse_duration_us

__all__ = ["Grid", "GridLabels", "Times", "grid", "moment_us"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Times:
    """`count` moments, `every_us` apart."""

    first_us: int
    every_us: int = 1
    count: int = 1

    @property
    def last_us(self) -> int:
        return self.first_us + (self.count - 1) * self.every_us


@dataclass(frozen=True, slots=True)
class Grid:
    """Which entities (None: all that the features' views know) at which moments (None: at the present)."""

    entities: Any
    times: Times | None


def grid(
    entities: Any = None,
    *,
    at: str | datetime | None = None,
    every: str | None = None,
    start: str | datetime | None = None,
    end: str | datetime | None = None,
) -> Grid:
    """Labels for `training_set` that are a list of entities (a table, a frame or a path; None: every key that the
    features' views know) at one moment, or at each from `start` on, `every` (`1h`) apart, before `end`.

    Without any time it is the present: the time of day, or, under `clock: event`, the newest archived event's time and
    1 us. Times are datetimes or RFC 3339, without a zone UTC. Rows go by moment, then in the list's order.
    Raises RequestError for times that make no grid.
    """
    if every is None and start is None and end is None:
        return Grid(entities, None if at is None else Times(moment_us(at, "at")))
    if at is not None or every is None or start is None or end is None:
        raise RequestError(
            "Times are one moment (--at), or a grid that needs all of --every, --from and --to (every, start, end); "
            "give one or the other."
        )
    first_us, end_us, every_us = moment_us(start, "from"), moment_us(end, "to"), parse_duration_us(every)
    if first_us >= end_us or not every_us:
        raise RequestError(
            f"A grid steps from a moment to a later one, got {start} to {end} every {every}; correct it."
        )
    return Grid(entities, Times(first_us, every_us, -((first_us - end_us) // every_us)))


def moment_us(value: str | datetime, what: str) -> int:
    """Microseconds UTC of a datetime or a text in RFC 3339, without a zone UTC. Raises RequestError for another."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise RequestError(f"A moment is written 2024-05-01T12:00:00Z, got {value!r} for {what}; correct it.") from None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


class GridLabels:
    """Labels of entities x times: row i is entity i modulo their number, at moment i divided by it."""

    def __init__(self, entities: pa.Table, times: Times) -> None:
        if TIMESTAMP in entities.column_names:
            raise DataError(
                f"An entity list has no {TIMESTAMP}, the grid gives it; drop the column, or take the rows as --labels."
            )
        if not EARLIEST_US <= times.first_us <= times.last_us <= LATEST_US:
            raise RequestError("A grid lies in the years 1 to 9999; correct its times.")
        self._entities, self._times = entities.combine_chunks(), times
        self.schema: pa.Schema = entities.schema.append(pa.field(TIMESTAMP, arrow_type(DType.TIMESTAMP)))
        self.num_rows: int = entities.num_rows * times.count

    def batches(self) -> Iterator[pa.RecordBatch]:
        for start in range(0, self.num_rows, BATCH_ROWS):
            rows: Ints = np.arange(start, min(start + BATCH_ROWS, self.num_rows))
            moment, entity = np.divmod(rows, self._entities.num_rows)
            times = pa.array(self._times.first_us + moment * self._times.every_us).cast(arrow_type(DType.TIMESTAMP))
            held = self._entities.take(pa.array(entity)).append_column(self.schema.field(TIMESTAMP), times)
            yield from held.combine_chunks().to_batches()
