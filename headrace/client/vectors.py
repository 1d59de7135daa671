"""What the client's calls return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike, NDArray

from headrace.errors import RequestError
from headrace.read.online.vector_batches import CATALOG_VERSION, EVENT_TIMESTAMP, METADATA, STATUS, STATUSES, VIEW, T

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FeatureVectors", "Predictions", "Pushed"]


@dataclass(frozen=True, slots=True)
class Pushed:
    """How many events the stream has taken, and by partition the position of the last one."""

    accepted: int
    position: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Predictions:
    """One probability (float64) per row, from which model, and the moment `t` each row was read at."""

    model: str
    version: int
    predictions: NDArray[np.float64]
    t: list[datetime]


class FeatureVectors:
    """One feature vector per row: the join keys in the order of the request, then the features in their declared types.

    `keys` and `features` are their names, `len` is the number of rows.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        """`batch` is what `headrace.read.online.vector_batches` describes."""
        views = {field.name: field.metadata[VIEW].decode() for field in batch.schema if VIEW in (field.metadata or {})}
        self.features = list(views)
        self.keys = batch.schema.names[: batch.schema.names.index(self.features[0])]
        self._batch = batch
        self._views = views

    def __len__(self) -> int:
        rows: int = self._batch.num_rows
        return rows

    def __repr__(self) -> str:
        return f"FeatureVectors({len(self)} rows of {', '.join(self.keys)}: {', '.join(self.features)})"

    def to_arrow(self) -> pa.Table:
        """A table of keys and features; timestamps are timestamp('us', 'UTC')."""
        names = self.keys + self.features
        return pa.table([self._batch.column(i) for i in range(len(names))], names=names)

    def to_dict(self) -> dict[str, list[Any]]:
        """Lists of Python values by name, null as None, timestamps as datetimes in UTC."""
        columns: dict[str, list[Any]] = self.to_arrow().to_pydict()
        return columns

    def to_pandas(self) -> pd.DataFrame:
        """A frame of keys and features, with pandas' types as pyarrow chooses them."""
        frame: pd.DataFrame = self.to_arrow().to_pandas()
        return frame

    def to_numpy(self, features: Sequence[str] | None = None, dtype: DTypeLike = np.float64) -> NDArray[Any]:
        """An array of (rows, features), null as NaN, booleans as 0 and 1; `features` chooses and orders.

        Raises RequestError for a feature that is neither a number nor a boolean, or is not there.
        """
        chosen = self.features if features is None else list(features)
        numbers = np.empty((len(self), len(chosen)), dtype)
        for place, name in enumerate(chosen):
            numbers[:, place] = self._numbers(name)
        return numbers

    def _numbers(self, name: str) -> NDArray[np.float64]:
        column = self._feature(name)
        kind = column.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise RequestError(
                f"An array holds numbers and booleans, {name!r} is of {kind}; choose among the features, or take "
                "to_pandas or to_arrow."
            )
        numbers: NDArray[np.float64] = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return numbers

    def _feature(self, name: str) -> pa.Array:
        if name not in self._views:
            raise RequestError(f"There is no feature {name!r} among: {', '.join(self.features)}; ask for it.")
        return self._batch.column(self._batch.schema.get_field_index(name))

    @cached_property
    def statuses(self) -> dict[str, list[str]]:
        """By feature and row: PRESENT, NULL_VALUE, NOT_FOUND or OUTSIDE_MAX_AGE."""
        return {name: self._statuses_of(name, view) for name, view in self._views.items()}

    def _statuses_of(self, name: str, view: str) -> list[str]:
        missing = self._feature(name).is_null().to_pylist()
        codes = self._batch.column(view + STATUS).to_pylist()
        return [STATUSES[1 if gone and not code else code] for gone, code in zip(missing, codes, strict=True)]

    @cached_property
    def event_timestamps(self) -> dict[str, list[datetime | None]]:
        """By feature and row: the time of the newest event behind the value, None without one."""
        times = {view: self._batch.column(view + EVENT_TIMESTAMP).to_pylist() for view in set(self._views.values())}
        return {name: times[view] for name, view in self._views.items()}

    @cached_property
    def t(self) -> list[datetime]:
        """The moment that each row's values are true at."""
        moments: list[datetime] = self._batch.column(T).to_pylist()
        return moments

    @property
    def catalog_version(self) -> int:
        """The version of the definitions that answered."""
        return int(self._batch.schema.metadata[CATALOG_VERSION])

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What `metadata="full"` adds: by view positions, watermark, warming, tier and ages; empty without it."""
        raw = self._batch.schema.metadata.get(METADATA)
        return dict(orjson.loads(raw)) if raw else {}
