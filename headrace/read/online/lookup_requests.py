"""What a caller asks of the lookup: columns of join keys and request data, checked against the plan."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from headrace.catalog.definitions import Column
from headrace.compute.columns import typed_column
from headrace.dtypes import DType, arrow_type
from headrace.errors import RequestError

if TYPE_CHECKING:
    from headrace.read.plans import LookupPlan

__all__ = ["LookupRequest", "parse_request"]

MOST_NAMES = 10
"""How many of a request's unknown columns a message names."""

_INTEGER = {int, type(None)}
_TEXT = {str, type(None)}
_BOUND = {DType.INT32: 2**31, DType.INT64: 2**63}


class _Columns(Mapping[str, pa.Array]):
    """Columns that were checked as plain values; each becomes an array when it is asked for."""

    def __init__(self) -> None:
        self.lists: dict[str, list[Any]] = {}
        self._types: dict[str, DType] = {}
        self._arrays: dict[str, pa.Array] = {}

    def add(self, column: Column, values: Sequence[Any], array: pa.Array | None) -> None:
        """`values` as they are where `array` is None: they have the column's type."""
        if array is None:
            self.lists[column.name] = list(values)
            self._types[column.name] = column.dtype
        else:
            self._arrays[column.name] = array

    def __getitem__(self, name: str) -> pa.Array:
        if name not in self._arrays:
            self._arrays[name] = pa.array(self.lists[name], arrow_type(self._types[name]))
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.lists, *self._arrays]))

    def __len__(self) -> int:
        return len({*self.lists, *self._arrays})


@dataclass(slots=True)
class LookupRequest:
    """The checked columns of a request, n rows: `columns` by name, `names` the join keys in request order."""

    rows: int
    names: tuple[str, ...]
    columns: Mapping[str, pa.Array]

    def values(self, name: str) -> list[Any]:
        """One column as Python's values, null as None."""
        held = self.columns
        if isinstance(held, _Columns) and name in held.lists:
            return held.lists[name]
        plain: list[Any] = held[name].to_pylist()
        return plain


def parse_request(plan: LookupPlan, entities: Mapping[str, Sequence[Any]], max_rows: int = 1_000) -> LookupRequest:
    """The request's columns, typed. Raises RequestError for a missing or unknown column, a wrong type, no rows."""
    needed = plan.needed
    if entities.keys() != needed.keys():
        _refuse_columns(plan, entities)
    sizes = set(map(len, entities.values()))
    rows = sizes.pop() if len(sizes) == 1 else 0
    if not 1 <= rows <= max_rows:
        _refuse_rows(entities, max_rows)
    columns = _Columns()
    for name, column in needed.items():
        values = entities[name]
        columns.add(column, values, None if _has_type(values, column.dtype) else _typed(values, column))
    names = tuple(entities)
    return LookupRequest(rows, names if not plan.request else _keys_of(plan, names), columns)


def _keys_of(plan: LookupPlan, names: Sequence[str]) -> tuple[str, ...]:
    keys = {column.name for column in plan.join_keys}
    return tuple(name for name in names if name in keys)


def _has_type(values: Sequence[Any], dtype: DType) -> bool:
    """Whether all of them are what a column of integers or strings holds, and null; False may mean unknown."""
    kinds = set(map(type, values))
    if dtype is DType.STRING:
        return kinds <= _TEXT and _is_unicode("".join(filter(None, values)))
    bound = _BOUND.get(dtype)
    if bound is None or not kinds <= _INTEGER:
        return False
    known = values if type(None) not in kinds else [value for value in values if value is not None]
    return not known or (-bound <= min(known) and max(known) < bound)


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold it: not half a surrogate pair."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _typed(values: Sequence[Any], column: Column) -> pa.Array:
    array, wrong = typed_column(values, column)
    if wrong:
        row, reason = next(iter(wrong.items()))
        raise RequestError(f"Entity values must have the declared types; row {row}: {reason}.")
    return array


def _refuse_columns(plan: LookupPlan, entities: Mapping[str, Any]) -> None:
    missing = [name for name in plan.needed if name not in entities]
    if missing:
        raise RequestError(
            f"A request for {plan.label} must bring {', '.join(plan.needed)}; missing: {', '.join(missing)}. "
            "Add them to entities."
        )
    unknown = [name for name in entities if name not in plan.needed]
    shown = ", ".join(map(reprlib.repr, unknown[:MOST_NAMES]))
    raise RequestError(f"A request for {plan.label} takes {', '.join(plan.needed)}; unknown: {shown}. Leave them out.")


def _refuse_rows(entities: Mapping[str, Sequence[Any]], max_rows: int) -> None:
    sizes = {name: len(values) for name, values in entities.items()}
    if len(set(sizes.values())) > 1:
        raise RequestError(f"Entity columns must have one length, got {sizes}; give every row a value.")
    rows = next(iter(sizes.values()), 0)
    raise RequestError(f"A request takes 1 to {max_rows} rows, got {rows}; split it.")
