"""Column types in their other spellings: the DDL of the `schema` tag, and what a file's Arrow schema says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pyarrow as pa

from headrace.catalog.definitions import Column, DType
from headrace.errors import DefinitionError

__all__ = [
    "RESERVED_COLUMNS",
    "can_cast",
    "dtype_of_arrow",
    "dtype_of_ddl",
    "parse_ddl",
    "refuse_reserved",
    "refuse_same_but_case",
    "refuse_twice",
    "render_ddl",
]

RESERVED_COLUMNS = ("event_time", "arrival_time", "position", "is_repeat", "event_date")
"""Columns that the archive adds to every event."""

_DDL = {
    DType.INT32: ("int", "integer", "int32"),
    DType.INT64: ("bigint", "long", "int64"),
    DType.FLOAT32: ("float", "float32"),
    DType.FLOAT64: ("double", "float64"),
    DType.BOOL: ("boolean", "bool"),
    DType.STRING: ("string",),
    DType.TIMESTAMP: ("timestamp",),
}
_BY_DDL = {word: dtype for dtype, words in _DDL.items() for word in words}
_COLUMN = re.compile(r"(?:`(?P<quoted>[^`]+)`|(?P<name>\S+?))(?:\s+|\s*:\s*)(?P<type>\w+)")


def dtype_of_ddl(word: str, where: str) -> DType:
    """The type called `word` in DDL, in any case; `where` names the column in the DefinitionError."""
    try:
        return _BY_DDL[str(word).strip().lower()]
    except KeyError:
        known = ", ".join(words[0] for words in _DDL.values())
        raise DefinitionError(f"{where} has the type {word!r}; use one of {known}.") from None


def parse_ddl(text: str, where: str) -> tuple[Column, ...]:
    """Columns of a DDL such as `id string, amount double`; a name with a space or comma goes in backquotes.

    Raises DefinitionError naming `where` for what cannot be read, for an unknown type and for a name used twice.
    """
    columns = []
    for part in re.findall(r"(?:`[^`]*`|[^,`])+", text):
        match = _COLUMN.fullmatch(part.strip())
        if match is None:
            raise DefinitionError(
                f"The schema of {where} reads 'name type, name type, ...', got {part.strip()!r}; "
                "write it like 'id string, amount double, ts timestamp'."
            )
        name = match["quoted"] or match["name"]
        columns.append(Column(name, dtype_of_ddl(match["type"], f"Column {name!r} of {where}")))
    if not columns:
        raise DefinitionError(f"The schema of {where} is empty; write it like 'id string, ts timestamp'.")
    refuse_twice([column.name for column in columns], f"the schema of {where}")
    return tuple(columns)


def render_ddl(columns: Iterable[Column]) -> str:
    """The inverse of `parse_ddl`."""
    return ", ".join(f"{_quoted(column.name)} {_DDL[column.dtype][0]}" for column in columns)


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[^\s,:`]+", name) else f"`{name}`"


def refuse_twice(names: Sequence[str], where: str) -> None:
    """Raises DefinitionError if a name occurs twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DefinitionError(f"Names in {where} must differ, {', '.join(map(repr, twice))} occurs twice; rename one.")


def refuse_same_but_case(names: Iterable[str], where: str) -> None:
    """Raises DefinitionError if two names differ only in case: the archive's tables take them for one."""
    seen: dict[str, str] = {}
    for name in names:
        known = seen.setdefault(name.lower(), name)
        if known != name:
            raise DefinitionError(
                f"Columns of {where} must differ in more than case, {known!r} and {name!r} do not; rename one."
            )


def refuse_reserved(columns: Iterable[Column], timestamp: str, where: str) -> None:
    """Raises DefinitionError if a column bears, in any case, a name that the archive adds; the timestamp alone may be
    called `event_time`, which is what the archive means by it."""
    for column in columns:
        is_event_time = column.name == timestamp == "event_time"
        if column.name.lower() in RESERVED_COLUMNS and not is_event_time:
            raise DefinitionError(
                f"Column {column.name!r} of {where} has a name that the archive adds to every event "
                f"({', '.join(RESERVED_COLUMNS)}); rename it (only the timestamp may be called event_time)."
            )


def dtype_of_arrow(arrow: pa.DataType) -> DType | None:
    """The type that holds every value of `arrow`, or None if none does."""
    if pa.types.is_dictionary(arrow):
        return dtype_of_arrow(arrow.value_type)
    if pa.types.is_boolean(arrow):
        return DType.BOOL
    if pa.types.is_integer(arrow):
        small = arrow.bit_width < 32 or arrow == pa.int32()
        return DType.INT32 if small else None if arrow == pa.uint64() else DType.INT64
    if pa.types.is_floating(arrow):
        return DType.FLOAT64 if arrow == pa.float64() else DType.FLOAT32
    if pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow):
        return DType.STRING
    return DType.TIMESTAMP if pa.types.is_timestamp(arrow) else None


def can_cast(found: DType, declared: DType) -> bool:
    """Whether a file's column of type `found` may be read as `declared`."""
    if found.is_integer:
        return declared.is_numeric
    return declared.is_float if found.is_float else found is declared
