"""The column types that events, entities and features may have."""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa

__all__ = ["DType", "arrow_type"]


class DType(StrEnum):
    """A type by the name that the catalog writes; `timestamp` is int64 microseconds UTC."""

    INT32 = "int32"
    INT64 = "int64"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    BOOL = "bool"
    STRING = "string"
    TIMESTAMP = "timestamp"

    @property
    def is_integer(self) -> bool:
        return self in (DType.INT32, DType.INT64)

    @property
    def is_float(self) -> bool:
        return self in (DType.FLOAT32, DType.FLOAT64)

    @property
    def is_numeric(self) -> bool:
        return self.is_integer or self.is_float


_ARROW = {
    DType.INT32: pa.int32(),
    DType.INT64: pa.int64(),
    DType.FLOAT32: pa.float32(),
    DType.FLOAT64: pa.float64(),
    DType.BOOL: pa.bool_(),
    DType.STRING: pa.string(),
    DType.TIMESTAMP: pa.timestamp("us", "UTC"),
}


def arrow_type(dtype: DType) -> pa.DataType:
    """The Arrow type that columns of `dtype` have in every table."""
    return _ARROW[dtype]
