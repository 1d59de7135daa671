"""A definition on sample events, before anything is applied: what becomes of them, and the features they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog, FeatureView, Source
from headrace.compute.events import Deduplicator, EventBatch, parse_entries
from headrace.compute.view_events import SourceEvents, ViewEvents, view_events
from headrace.dtypes import arrow_type
from headrace.errors import RequestError
from headrace.read.history import view_values
from headrace.read.joins.scans import RowScan
from headrace.read.joins.spill import Space
from headrace.stores.archive_rows import INDEX
from headrace.stores.event_scan import PLACE
from headrace.stores.stream import Entry
from headrace.stores.tombstones import Tombstones

__all__ = ["Preview", "preview", "preview_entries"]

Ints = NDArray[np.int64]
EVENT = "_event"
_MOMENT = pa.timestamp("us", "UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Preview:
    """What `preview` found.

    `rows` are the rows that count for the view, after its expectations and its transform: `_event` (which of the
    events, from 0), then the view's columns. `dead` are the events that do not: `_event`, `where` (`source` or `view`),
    `reason`. `features` holds the view's join keys and features for every key among the rows, as of `at`.
    """

    rows: pa.Table
    dead: pa.Table
    features: pa.Table
    at: datetime


def preview(
    view: Any,
    events: pa.Table | pd.DataFrame | Sequence[Mapping[str, Any]],
    *,
    at: datetime | None = None,
    entities: Sequence[Any] | None = None,
) -> Preview:
    """Run `view` (a Feast view over a PushSource, from plain Feast or headrace.define) on sample events of its source.

    The events come in this order, under the event clock: each arrives at the largest event time so far. `at` is the
    moment of the features, by default just after the last event. `entities` are needed where the view's schema does
    not name its join keys. Raises DefinitionError for what apply would refuse to compile.
    """
    from headrace.catalog.single import compile_single

    catalog = compile_single(view, entities)
    rows = events if isinstance(events, Sequence) else _records(events)
    payload = b"\n".join(orjson.dumps(dict(row), default=str, option=orjson.OPT_SERIALIZE_NUMPY) for row in rows)
    entries = [Entry(1, "ndjson", len(rows), 0, payload)] if len(rows) else []
    return preview_entries(catalog, catalog.views[0], entries, at)


def _records(events: pa.Table | pd.DataFrame) -> list[dict[str, Any]]:
    table = pa.Table.from_pandas(events, preserve_index=False) if isinstance(events, pd.DataFrame) else events
    records: list[dict[str, Any]] = table.to_pylist()
    return records


def preview_entries(
    catalog: Catalog, view: FeatureView, entries: Sequence[Entry], at: datetime | None = None
) -> Preview:
    """`preview` of a compiled view, of events as they stand in a stream. Raises RequestError for a view of a file."""
    if view.source is None:
        raise RequestError(f"A preview runs on events, view {view.name!r} reads a file; name a view of a PushSource.")
    catalog = replace(catalog, clock="event")
    source = catalog.source(view.source)
    batch = _parsed(source, entries)
    seen = view_events(catalog, view, _source_events(batch))
    numbers = {place: number for number, place in enumerate(_places(entries))}
    counted = pa.array([numbers[place] for place in zip(seen.offset.tolist(), seen.index.tolist(), strict=True)], "i8")
    rows = pa.table({EVENT: counted, **{name: _one(values) for name, values in seen.columns.items()}})
    at_us = _at_us(at, seen)
    return Preview(
        rows,
        _dead(numbers, batch, seen),
        _features(catalog, view, rows, seen, at_us),
        _EPOCH + timedelta(microseconds=at_us),
    )


def _places(entries: Sequence[Entry]) -> list[tuple[int, int]]:
    return [(entry.offset, index) for entry in entries for index in range(entry.count)]


def _parsed(source: Source, entries: Sequence[Entry]) -> EventBatch:
    given = entries or [Entry(1, "ndjson", 0, 0, b"")]
    batch = parse_entries(source, 0, given, "event", None)
    Deduplicator(source).mark(batch)
    return batch


def _source_events(batch: EventBatch) -> SourceEvents:
    once = ~batch.is_repeat
    kept = batch.table.filter(pa.array(once))
    return SourceEvents(
        {name: _one(kept[name]) for name in kept.column_names},
        batch.event_time_us[once],
        batch.arrival_us[once],
        batch.offset[once],
        batch.index[once],
        np.zeros(int(once.sum()), np.int64),
        batch.watermarks_us[once],
    )


def _one(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _dead(numbers: Mapping[tuple[int, int], int], batch: EventBatch, seen: ViewEvents) -> pa.Table:
    once = ~batch.is_repeat
    places = list(zip(batch.offset[once].tolist(), batch.index[once].tolist(), strict=True))
    found = [(numbers[letter.offset, letter.index], "source", letter.reason) for letter in batch.dead]
    found += [(numbers[places[row]], "view", reason) for row, reason in seen.dead.items()]
    schema = pa.schema([(EVENT, pa.int64()), ("where", pa.string()), ("reason", pa.string())])
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in sorted(found)], schema)


def _at_us(at: datetime | None, seen: ViewEvents) -> int:
    if at is not None:
        return ((at if at.tzinfo else at.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)
    return int(seen.event_time_us.max()) + 1 if len(seen.event_time_us) else 0


def _features(catalog: Catalog, view: FeatureView, rows: pa.Table, seen: ViewEvents, at_us: int) -> pa.Table:
    """The features of every key of `rows`, keys in the order in which they first come."""
    join_keys = [column.name for column in catalog.join_keys(view)]
    keys = rows.select(join_keys).group_by(join_keys, use_threads=False).aggregate([]).drop_null()
    columns = [_one(keys[column.name].cast(arrow_type(column.dtype))) for column in catalog.sorted_join_keys(view)]
    times = pa.array(seen.event_time_us).cast(_MOMENT)
    past = _Sample(pa.table({**dict(zip(rows.column_names, rows.columns, strict=True)), "event_time": times}))
    names = [feature.name for feature in view.features]
    alone = replace(view, batch=None)
    values = view_values(catalog, alone, names, columns, np.full(keys.num_rows, at_us), past)
    return pa.table({**{name: keys[name] for name in join_keys}, **{name: values[name] for name in names}})


@dataclass(frozen=True, slots=True)
class _Sample:
    """The past, as far as the sample events reach."""

    rows: pa.Table
    repo: Path = Path()

    @property
    def forgotten(self) -> Tombstones:
        return Tombstones(b"")

    def scan(
        self,
        catalog: Catalog,
        view: FeatureView,
        source: Source,
        columns: Sequence[str],
        since_us: int | None,
        until_us: int,
        space: Space,
        *,
        places: bool = True,
    ) -> RowScan:
        names = list(dict.fromkeys([*columns, "event_time"]))
        if source.name != view.source:  # nothing was written directly
            fields = {column.name: arrow_type(column.dtype) for column in source.columns} | {"event_time": _MOMENT}
            none = pa.schema([(name, fields[name]) for name in names]).empty_table()
            return RowScan(none.schema, 0, lambda on_read: iter(()))
        times = np.asarray(_one(self.rows["event_time"].cast(pa.int64())))
        inside = (times <= until_us) & (times >= (times if since_us is None else since_us))
        rows = self.rows.select(names)
        same = pa.array(np.zeros(rows.num_rows, np.int64))
        for name in PLACE:
            rows = rows.append_column(name, pa.array(np.arange(rows.num_rows)) if name == INDEX else same)
        kept = rows.filter(pa.array(inside))
        return RowScan(kept.schema, kept.num_rows, lambda on_read: iter((kept,)))
