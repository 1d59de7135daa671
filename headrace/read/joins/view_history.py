"""The archive as a view sees it: the events of its source that its expectations and its transform let it count.

The same function as in the worker, given what the worker saw: the events of a source without its repeats, and for
`max_lateness` the watermark that each event found, which repeats had raised too. That and a transform that moves the
event time need the whole archive, whatever the interval asked for: what a watermark was, and where rows went, lies in
events outside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog, FeatureView, Source
from headrace.compute.expectations import NO_WATERMARK
from headrace.compute.view_events import SourceEvents, needed_columns, view_events
from headrace.dtypes import arrow_type
from headrace.read.joins.position_slices import with_watermarks
from headrace.read.joins.scans import PART, OnRead, RowScan
from headrace.read.joins.spill import Space
from headrace.stores.archive_rows import INDEX, OFFSET, PARTITION, archive_schema
from headrace.stores.event_scan import EventScan, plan_events
from headrace.stores.offline import OfflineStore

__all__ = ["archived_view_events", "scan_view_events"]

Ints = NDArray[np.int64]
Bounds = tuple[int | None, int | None]

_MOMENT = pa.timestamp("us", "UTC")
_PLACE_FIELDS = [pa.field(PARTITION, pa.int32()), pa.field(OFFSET, pa.int64()), pa.field(INDEX, pa.int32())]


def archived_view_events(
    offline: OfflineStore,
    catalog: Catalog,
    view: FeatureView,
    source: Source,
    columns: Sequence[str],
    *,
    up_to: Mapping[int, int] | None = None,
    since_us: int | None = None,
    until_us: int | None = None,
) -> pa.Table:
    """The rows that `view` counts of the archived events of `source`, in position order: `columns` (the view's own,
    `event_time`, `arrival_time`), then the position, as `OfflineStore.read_events` gives them; repeats left out.
    """
    scan = scan_view_events(
        offline, catalog, view, source, columns, up_to=up_to, since_us=since_us, until_us=until_us, space=Space()
    )
    rows = pa.concat_tables([scan.schema.empty_table(), *scan.tables(lambda rows: None)])
    own = [PART] if PART in scan.schema.names else []
    order = [rows[name].to_numpy() for name in (*own, INDEX, OFFSET, PARTITION)]
    return rows.drop_columns(own).take(pa.array(np.lexsort(order)))


def scan_view_events(
    offline: OfflineStore,
    catalog: Catalog,
    view: FeatureView,
    source: Source,
    columns: Sequence[str],
    *,
    up_to: Mapping[int, int] | None,
    since_us: int | None,
    until_us: int | None,
    space: Space,
    places: bool = True,
) -> RowScan:
    """The same rows as they are read: `columns` and `event_time`, the position if `places`, and PART where a transform
    may make several of an event. What must be sorted and does not fit lies in `space`."""
    path = offline.events_path(source.name)
    names = list(dict.fromkeys([*columns, "event_time"]))
    if source.name != view.source or (view.transform is None and not view.expectations):
        scan = plan_events(path, source, names, places=places, up_to=up_to, since_us=since_us, until_us=until_us)
        return RowScan(scan.schema, scan.rows, scan.tables)
    judged_late = any(item.rule == "max_lateness" for item in view.expectations)
    moves_time = view.transform is not None and view.transform.moves_time
    whole = judged_late or moves_time
    wanted = needed_columns(catalog, view, [name for name in names if name not in ("event_time", "arrival_time")])
    scan = plan_events(
        path,
        source,
        [*wanted, "event_time", "arrival_time", "is_repeat"],
        up_to=up_to,
        since_us=None if whole else since_us,
        until_us=None if whole else until_us,
        repeats=judged_late,
    )
    seen = _Seen(catalog, view, source, tuple(wanted), tuple(names), (since_us, until_us))

    def tables(on_read: OnRead) -> Iterator[pa.Table]:
        given = with_watermarks(offline.root, source, scan, space, on_read) if judged_late else _unjudged(scan, on_read)
        for rows, before_us in given:
            yield seen.rows(rows, before_us)

    return RowScan(seen.schema, scan.rows, tables)


def _unjudged(scan: EventScan, on_read: OnRead) -> Iterator[tuple[pa.Table, Ints]]:
    for rows in scan.tables(on_read):
        yield rows, np.full(rows.num_rows, NO_WATERMARK)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a view makes of rows of the archive."""

    catalog: Catalog
    view: FeatureView
    source: Source
    wanted: tuple[str, ...]
    names: tuple[str, ...]
    bounds_us: Bounds

    @property
    def schema(self) -> pa.Schema:
        held = archive_schema(self.source)
        made = self.view.transform.columns if self.view.transform is not None else ()
        types = {field.name: field.type for field in held} | {item.name: arrow_type(item.dtype) for item in made}
        own = [pa.field(name, _MOMENT if name == "event_time" else types[name]) for name in self.names]
        return pa.schema([*own, *_PLACE_FIELDS, pa.field(PART, pa.int64())])

    def rows(self, rows: pa.Table, before_us: Ints) -> pa.Table:
        """The rows that count, repeats left out."""
        once = ~np.asarray(rows["is_repeat"].combine_chunks()).astype(np.bool_)
        if not once.all():
            rows, before_us = rows.filter(pa.array(once)), before_us[once]
        events = SourceEvents(
            {name: rows[name].combine_chunks() for name in self.wanted},
            _numbers(rows["event_time"]),
            _numbers(rows["arrival_time"]),
            _numbers(rows[OFFSET]),
            _numbers(rows[INDEX]),
            _numbers(rows[PARTITION]),
            before_us,
        )
        found = view_events(self.catalog, self.view, events)
        n = len(found.event_time_us)
        row = np.arange(n) if found.row is None else found.row
        own = {"event_time": found.event_time_us}
        if "arrival_time" in self.names:
            own["arrival_time"] = events.arrival_us[row]
        columns = [pa.array(own[name]) if name in own else found.columns[name] for name in self.names]
        place = [
            found.partition,
            found.offset,
            found.index,
            np.zeros(n, np.int64) if found.part is None else found.part,
        ]
        columns += [pa.array(values) for values in place]
        cast = [values.cast(field.type) for values, field in zip(columns, self.schema, strict=True)]
        return _between(pa.Table.from_arrays(cast, schema=self.schema), found.event_time_us, self.bounds_us)


def _between(rows: pa.Table, times_us: Ints, bounds_us: Bounds) -> pa.Table:
    since_us, until_us = bounds_us
    inside = np.ones(len(times_us), np.bool_)
    if since_us is not None:
        inside &= times_us >= since_us
    if until_us is not None:
        inside &= times_us <= until_us
    return rows if inside.all() else rows.filter(pa.array(inside))


def _numbers(column: pa.ChunkedArray) -> Ints:
    numbers: Ints = np.asarray(column.cast(pa.int64()).combine_chunks())
    return numbers
