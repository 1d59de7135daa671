"""Reading the tables of the offline store: which files a question needs, and the rows in position order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from deltalake import DeltaTable

from headrace.catalog.definitions import Source
from headrace.stores.archive_rows import INDEX, MOMENT, OFFSET, PARTITION, archive_schema

__all__ = ["event_files", "open_table", "read_events", "read_files", "table_paths"]

NOWHERE: Mapping[int, int] = {}
_TRIES = 5
_YEARS_US = (-62_135_596_800_000_000, 253_402_300_799_999_999)


def open_table(path: Path) -> DeltaTable | None:
    """The Delta table at `path` as it is now, None where there is none."""
    return DeltaTable(str(path)) if (path / "_delta_log").is_dir() and DeltaTable.is_deltatable(str(path)) else None


def table_paths(table: DeltaTable) -> list[str]:
    """The files of `table`."""
    return [unquote(uri) for uri in table.file_uris()]


def read_events(
    path: Path,
    source: Source,
    columns: Sequence[str],
    *,
    up_to: Mapping[int, int] | None = None,
    since_us: int | None = None,
    until_us: int | None = None,
    arrived_since_us: int | None = None,
    repeats: bool = False,
    after: Mapping[int, int] = NOWHERE,
    among: tuple[str, pa.Array] | None = None,
) -> pa.Table:
    """The events of the table at `path` in position order: `columns` (the source's own, `event_time`,
    `arrival_time`), then the position as PARTITION, OFFSET, INDEX.

    `up_to` keeps, by partition, events at or below an offset (a partition it does not name has none);
    `since_us` and `until_us` bound the event time, both included, `arrived_since_us` the arrival time; repeats
    come only when asked for. `after` leaves out, by partition, events at or below an offset, `among` keeps those with
    one of these values in this column.
    """
    schema = archive_schema(source)
    wanted: dict[str, Any] = {name: pads.field(name) for name in columns}
    for name in (PARTITION, OFFSET, INDEX):
        wanted[name] = pads.field(*name.split("."))
    terms = [
        None if repeats else ~pads.field("is_repeat"),
        _bound("event_time", ">=", since_us),
        _bound("event_time", "<=", until_us),
        _bound("arrival_time", ">=", arrived_since_us),
        None if up_to is None else _at_or_below(up_to),
        ~_at_or_below(after) if after else None,
        None if among is None else pads.field(among[0]).isin(among[1]),
    ]
    empty = schema.empty_table().flatten().select(list(wanted))
    rows = read_files(lambda: event_files(open_table(path), since_us, until_us), schema, wanted, _all_of(terms))
    return empty if rows is None else _in_position_order(rows.combine_chunks())


def read_files(
    list_files: Callable[[], list[str]], schema: pa.Schema, columns: Any = None, condition: Any = None
) -> pa.Table | None:
    """The rows of the Parquet files that `list_files` names, None for no file. Files that are swept away meanwhile are
    named and read again."""
    missing = FileNotFoundError()
    for _ in range(_TRIES):
        files = list_files()
        try:
            return pads.dataset(files, schema=schema, format="parquet").to_table(columns, condition) if files else None
        except FileNotFoundError as error:
            missing = error
    raise missing


def event_files(table: DeltaTable | None, since_us: int | None, until_us: int | None) -> list[str]:
    """Paths of the table's files whose dates meet the interval."""
    first, last = _date(since_us, "0001-01-01"), _date(until_us, "9999-12-31")
    return [path for path in (table_paths(table) if table else []) if first <= _date_of(path) <= last]


def _date(time_us: int | None, otherwise: str) -> str:
    """The day of a time in ISO form, `otherwise` for none and for times outside the years 1 to 9999."""
    if time_us is None or not _YEARS_US[0] <= time_us <= _YEARS_US[1]:
        return otherwise
    return str(np.datetime64(time_us, "us").astype("datetime64[D]"))


def _date_of(path: str) -> str:
    """The day of a file: its folder is called `event_date=2024-05-01`."""
    return Path(path).parent.name.rpartition("=")[2]


def _bound(name: str, sign: Literal[">=", "<="], time_us: int | None) -> pads.Expression | None:
    if time_us is None:
        return None
    time, field = pa.scalar(time_us).cast(MOMENT), pads.field(name)
    return field >= time if sign == ">=" else field <= time


def _all_of(terms: Sequence[pads.Expression | None]) -> pads.Expression | None:
    condition = None
    for term in terms:
        if term is not None:
            condition = term if condition is None else condition & term
    return condition


def _at_or_below(up_to: Mapping[int, int]) -> pads.Expression:
    condition = pads.scalar(False)
    for partition, offset in up_to.items():
        inside = (pads.field("position", "partition") == partition) & (pads.field("position", "offset") <= offset)
        condition = condition | inside
    return condition


def _in_position_order(rows: pa.Table) -> pa.Table:
    keys = [rows[name].to_numpy() for name in (INDEX, OFFSET, PARTITION)]
    return rows.take(np.lexsort(keys))
