"""Label rows: what to predict, for whom and as of when; the rows that a training set is built on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from headrace.dtypes import DType, arrow_type
from headrace.errors import DataError
from headrace.read.plans import LookupPlan
from headrace.stores.tables import as_declared, file_format_of, read_file

__all__ = ["TIMESTAMP", "LabelRows", "read_labels"]

TIMESTAMP = "event_timestamp"
"""The label column that says as of when; without a zone it is UTC."""


@dataclass(frozen=True, slots=True)
class LabelRows:
    """n label rows: `table` as given, `times_us` int64, and the columns that features need (join keys and request
    data) in their declared types."""

    table: pa.Table
    times_us: NDArray[np.int64]
    inputs: Mapping[str, pa.Array]

    def __len__(self) -> int:
        return len(self.times_us)


def read_labels(labels: pa.Table | pd.DataFrame | str | Path, plan: LookupPlan) -> LabelRows:
    """Label rows for `plan`, from a table, a DataFrame, or a Parquet or CSV file.

    Raises DataError for a missing column, a missing time, a value of another type, and a name that a feature has too.
    """
    needed = (*plan.join_keys, *plan.request)
    table = _table(labels, [column.name for column in needed if column.dtype is DType.STRING])
    _refuse_columns(table, plan, [column.name for column in needed])
    if not table.num_rows:  # a file of no rows may have any types
        return LabelRows(table, np.empty(0, np.int64), {c.name: pa.nulls(0, arrow_type(c.dtype)) for c in needed})
    times = as_declared(table[TIMESTAMP], DType.TIMESTAMP, f"Label column {TIMESTAMP!r}")
    if times.null_count:
        row = int(np.flatnonzero(np.asarray(times.is_null()))[0])
        raise DataError(f"Every label row needs a time, but {TIMESTAMP} is null in row {row}; fill or drop it.")
    inputs = {c.name: as_declared(table[c.name], c.dtype, f"Label column {c.name!r}") for c in needed}
    return LabelRows(table, np.asarray(times.cast(pa.int64())), inputs)


def _table(labels: Any, text: list[str]) -> pa.Table:
    if isinstance(labels, pa.Table):
        return labels
    if isinstance(labels, pd.DataFrame):
        try:
            return pa.Table.from_pandas(labels, preserve_index=False).replace_schema_metadata(None)
        except pa.ArrowException as error:
            raise DataError(f"Labels must have columns of one type each: {error}.") from None
    if isinstance(labels, str | Path):
        return read_file(Path(labels), file_format_of(Path(labels)), text=text)
    raise DataError(f"Labels are an Arrow table, a pandas DataFrame or a path, got {type(labels).__name__}.")


def _refuse_columns(table: pa.Table, plan: LookupPlan, needed: list[str]) -> None:
    names = table.column_names
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"Label columns must differ in name, but {min(twice)!r} occurs twice; rename one.")
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
