"""Where the values of an answer come from, if not from the store."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson

from headrace.catalog.definitions import FeatureView
from headrace.compute.columns import parse_moment
from headrace.dtypes import DType

if TYPE_CHECKING:
    from headrace.read.online.reads import Marks

__all__ = ["Tier", "TierName", "default_line"]

TierName = Literal["store", "cache", "default", "null"]


class Tier(NamedTuple):
    """Where one view of one row comes from, the moment that its values are of, and the markers that went with them
    where they are not the answer's own."""

    name: TierName
    t_us: int
    marks: Marks | None = None


@lru_cache(maxsize=1_024)
def default_line(view: FeatureView) -> Any:
    """The row of the view's declared defaults, null where there is none: as of `read.online.vectors.Line`."""
    declared = {name: orjson.loads(text) for name, text in view.defaults}
    values = [_stored(declared.get(feature.name), feature.dtype) for feature in view.features]
    return 0, 0, values, None not in values


def _stored(value: Any, dtype: DType) -> Any:
    """As a value is read from the store: timestamps as microseconds."""
    if value is None:
        return None
    if dtype is DType.TIMESTAMP:
        return parse_moment(value)
    return float(value) if dtype in (DType.FLOAT32, DType.FLOAT64) else value
