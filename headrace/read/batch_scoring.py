"""Every entity that the views of a training set know, and the moment that is the present to the archive: what batch
scoring asks for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.catalog.definitions import Catalog, Source
from headrace.compute.forgotten import living_rows
from headrace.errors import DataError, RequestError
from headrace.read.history import History, sources_of
from headrace.read.joins.spill import Space
from headrace.read.joins.view_history import scan_view_events
from headrace.read.plans import LookupPlan, ViewStep
from headrace.stores.arrow import arrow_schema
from headrace.stores.batch_files import read_batch_rows
from headrace.stores.offline_reads import open_table, table_paths

__all__ = ["known_keys", "present_us"]

DAY_US = 86_400_000_000
MERGE_ROWS = 4_000_000


def known_keys(plan: LookupPlan, history: History, until_us: int) -> pa.Table:
    """The distinct keys of `plan` that an event, a direct write or a row of a batch file at or before `until_us` has,
    in any of its views, sorted; keys with a null are none.

    Raises RequestError where views have different join keys, or none, and where a row needs request data.
    """
    _refuse_several(plan)
    schema = arrow_schema(plan.join_keys)
    found, merge_at = schema.empty_table(), MERGE_ROWS
    for step in plan.steps:
        for rows in _keys_of(plan.catalog, step, history, until_us) if step.request_keys else ():
            renamed = rows.rename_columns(step.request_keys).select(schema.names).cast(schema)
            found = pa.concat_tables([found, _distinct(renamed)])
            if found.num_rows > merge_at:
                found = _distinct(found)
                merge_at = max(MERGE_ROWS, 2 * found.num_rows)
    return _distinct(found).drop_null().sort_by([(name, "ascending") for name in schema.names])


def _distinct(rows: pa.Table) -> pa.Table:
    return rows.group_by(rows.column_names).aggregate([])


def present_us(catalog: Catalog, sources: list[Source], history: History) -> int:
    """The present: the time of day, or under `clock: event` the newest archived event's time and 1 us."""
    if catalog.clock == "wall":
        return time.time_ns() // 1_000
    newest = [found for source in sources if (found := _newest_us(source, history)) is not None]
    if not newest:
        raise DataError("Under the event clock the present is the newest archived event, there is none; say --at.")
    return max(newest) + 1


def _refuse_several(plan: LookupPlan) -> None:
    sets = {frozenset(step.request_keys) for step in plan.steps if step.request_keys}
    if plan.request:
        names = ", ".join(column.name for column in plan.request)
        raise RequestError(
            f"All entities have no request data, {plan.label} needs {names}; give a file of entities that has it "
            "(--entities FILE)."
        )
    if len(sets) != 1:
        shown = " and ".join(sorted("(" + ", ".join(sorted(keys)) + ")" for keys in sets)) or "none"
        raise RequestError(
            f"All entities are the keys of views that share their join keys, {plan.label} has {shown}; give the "
            "combinations in a file (--entities FILE)."
        )


def _keys_of(catalog: Catalog, step: ViewStep, history: History, until_us: int) -> Iterator[pa.Table]:
    """Tables of the step's join keys, as they are read."""
    view, keys = step.view, catalog.sorted_join_keys(step.view)
    names = [column.name for column in keys]
    if view.batch is not None:
        held = read_batch_rows(view, keys, history.repo, None, until_us)
        yield living_rows(catalog, view, held, history.forgotten).table.select(names)
    last_us = until_us - 1 if view.kind == "windowed" else until_us
    for source in sources_of(catalog, view):
        up_to = None if history.up_to is None else history.up_to.get(source.name, {})
        scan = scan_view_events(
            history.offline,
            catalog,
            view,
            source,
            names,
            up_to=up_to,
            since_us=None,
            until_us=last_us,
            space=Space(),
            places=False,
        )
        for rows in scan.tables(lambda rows: None):
            yield rows.select(names)


def _days(source: Source, history: History) -> list[int]:
    """The event dates of a source's table, as microseconds, in order."""
    table = open_table(history.offline.events_path(source.name))
    days = {Path(path).parent.name.rpartition("=")[2] for path in (table_paths(table) if table else [])}
    return [int(np.datetime64(day, "us").astype(np.int64)) for day in sorted(days)]


def _newest_us(source: Source, history: History) -> int | None:
    up_to = None if history.up_to is None else history.up_to.get(source.name, {})
    for day in reversed(_days(source, history)):
        bounds = {"since_us": day, "until_us": day + DAY_US - 1}
        times = history.offline.read_events(source, ["event_time"], up_to=up_to, repeats=True, **bounds)["event_time"]
        newest = pc.max(times.cast(pa.int64())).as_py()
        if newest is not None:
            return int(newest)
    return None
