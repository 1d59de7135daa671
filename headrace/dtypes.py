"""The types that columns and features may have."""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa

__all__ = ["DType", "arrow_type"]


class DType(StrEnum):
    """A type by the name that the catalog writes; `timestamp` is int64 microseconds UTC.

    Columns, join keys and rows have the plain types; lists are what `last_n` and `first_n` give.
    """

    INT32 = "int32"
    INT64 = "int64"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    BOOL = "bool"
    STRING = "string"
    TIMESTAMP = "timestamp"
    INT32_LIST = "list<int32>"
    INT64_LIST = "list<int64>"
    FLOAT32_LIST = "list<float32>"
    FLOAT64_LIST = "list<float64>"
    BOOL_LIST = "list<bool>"
    STRING_LIST = "list<string>"
    TIMESTAMP_LIST = "list<timestamp>"

    @property
    def is_integer(self) -> bool:
        return self in (DType.INT32, DType.INT64)

    @property
    def is_float(self) -> bool:
        return self in (DType.FLOAT32, DType.FLOAT64)

    @property
    def is_numeric(self) -> bool:
        return self.is_integer or self.is_float

    @property
    def is_list(self) -> bool:
        return self.value.startswith("list<")

    @property
    def item(self) -> DType:
        """The type of a list's items."""
        return DType(self.value.removeprefix("list<").removesuffix(">"))

    @property
    def list_type(self) -> DType:
        """The list of this plain type."""
        return DType(f"list<{self.value}>")


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
    return pa.list_(_ARROW[dtype.item]) if dtype.is_list else _ARROW[dtype]
