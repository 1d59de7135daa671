"""Label rows: what to predict, for whom and as of when; the rows that a training set is built on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.dtypes import DType, arrow_type
from headrace.errors import DataError
from headrace.read.plans import LookupPlan
from headrace.stores.tables import as_declared

__all__ = ["BATCH_ROWS", "TIMESTAMP", "LabelRows", "Labels", "TableLabels", "label_rows", "needed_text", "refuse_unfit"]

TIMESTAMP = "event_timestamp"
"""The label column that says as of when; without a zone it is UTC."""

BATCH_ROWS = 65_536
"""The most rows of a batch of labels."""

Ints = NDArray[np.int64]


class Labels(Protocol):
    """n label rows in their order, read as often as one likes; never all in memory unless they came so."""

    @property
    def schema(self) -> pa.Schema:
        """The columns as given."""

    @property
    def num_rows(self) -> int:
        """How many rows there are."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows in order, at most BATCH_ROWS at a time, none of the batches empty. Raises DataError for rows that
        cannot be read."""


@dataclass(frozen=True, slots=True)
class TableLabels:
    """Labels of a table in memory."""

    table: pa.Table

    @property
    def schema(self) -> pa.Schema:
        return self.table.schema

    @property
    def num_rows(self) -> int:
        return int(self.table.num_rows)

    def batches(self) -> Iterator[pa.RecordBatch]:
        return (batch for batch in self.table.to_batches(max_chunksize=BATCH_ROWS) if batch.num_rows)


@dataclass(frozen=True, slots=True)
class LabelRows:
    """n label rows: `table` as given, `times_us` int64, and the columns that features need (join keys and request
    data) in their declared types."""

    table: pa.Table
    times_us: Ints
    inputs: Mapping[str, pa.Array]

    def __len__(self) -> int:
        return len(self.times_us)


def label_rows(rows: pa.RecordBatch | pa.Table, plan: LookupPlan, first_row: int = 0) -> LabelRows:
    """Rows of labels for which `refuse_unfit` found nothing, `first_row` being the number of the first.

    Raises DataError for a missing time, and for a value of another type.
    """
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_batches([rows])
    needed = (*plan.join_keys, *plan.request)
    if not table.num_rows:  # a file of no rows may have any types
        return LabelRows(table, np.empty(0, np.int64), {c.name: pa.nulls(0, arrow_type(c.dtype)) for c in needed})
    times = as_declared(table[TIMESTAMP], DType.TIMESTAMP, f"Label column {TIMESTAMP!r}")
    if times.null_count:
        row = first_row + int(np.flatnonzero(np.asarray(times.is_null()))[0])
        raise DataError(f"Every label row needs a time, but {TIMESTAMP} is null in row {row}; fill or drop it.")
    inputs = {c.name: as_declared(table[c.name], c.dtype, f"Label column {c.name!r}") for c in needed}
    return LabelRows(table, np.asarray(times.cast(pa.int64())), inputs)


def needed_text(plan: LookupPlan) -> list[str]:
    """Label columns that a file without types must not take for numbers or times."""
    return [column.name for column in (*plan.join_keys, *plan.request) if column.dtype is DType.STRING]


def refuse_unfit(schema: pa.Schema, plan: LookupPlan) -> None:
    """Raises DataError unless labels of `schema` fit `plan`: a missing column, two of a name, one that a feature has
    too, a type that no value of which can be taken."""
    names = schema.names
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"Label columns must differ in name, but {min(twice)!r} occurs twice; rename one.")
    needed = [column.name for column in (*plan.join_keys, *plan.request)]
    for name in (TIMESTAMP, *needed):
        if name not in names:
            raise DataError(
                f"Labels for {plan.label} need the columns {', '.join([TIMESTAMP, *needed])}, but {name!r} is missing; "
                f"they have: {', '.join(names)}."
            )
    for output in plan.outputs:
        if output.name in names:
            raise DataError(
                f"A feature and a label column are both called {output.name!r}; "
                "rename the column, or use --full-feature-names (full_feature_names=True)."
            )
