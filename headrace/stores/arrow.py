"""Arrow types and schemas of the catalog's columns: one meaning of every type, in every file and table."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from headrace.catalog.definitions import Column
from headrace.dtypes import arrow_type

__all__ = ["arrow_schema", "arrow_type"]


def arrow_schema(columns: Iterable[Column]) -> pa.Schema:
    """The Arrow schema of `columns`, in their order; every field is nullable."""
    return pa.schema([pa.field(column.name, arrow_type(column.dtype)) for column in columns])
