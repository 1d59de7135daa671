"""The archived events of a view: what its expectations and its transform leave of its source's, as the worker saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog, FeatureView, Source
from headrace.compute.expectations import NO_WATERMARK, watermarks_before
from headrace.compute.view_events import SourceEvents, needed_columns, view_events
from headrace.stores.markers import IMPORTS
from headrace.stores.offline import INDEX, OFFSET, PARTITION, OfflineStore
from headrace.stores.tombstones import load_tombstones, raised_to_floors

__all__ = ["archived_view_events"]

Ints = NDArray[np.int64]

CHUNK_EVENTS = 200_000
PLACE = (PARTITION, OFFSET, INDEX)
_MOMENT = pa.timestamp("us", "UTC")


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
    names = list(dict.fromkeys([*columns, "event_time"]))
    if source.name != view.source or (view.transform is None and not view.expectations):
        return offline.read_events(source, names, up_to=up_to, since_us=since_us, until_us=until_us)
    judged_late = any(item.rule == "max_lateness" for item in view.expectations)
    moves_time = view.transform is not None and view.transform.moves_time
    bounds = {} if judged_late or moves_time else {"since_us": since_us, "until_us": until_us}
    wanted = needed_columns(catalog, view, [name for name in names if name not in ("event_time", "arrival_time")])
    given = list(dict.fromkeys([*wanted, "event_time", "arrival_time", "is_repeat"]))
    rows = offline.read_events(source, given, up_to=up_to, repeats=judged_late, **bounds)
    before_us = _watermarks(offline, source, rows) if judged_late else np.full(rows.num_rows, NO_WATERMARK)
    once = ~np.asarray(rows["is_repeat"].combine_chunks()).astype(np.bool_)
    rows, before_us = rows.filter(pa.array(once)), before_us[once]
    starts = range(0, max(rows.num_rows, 1), CHUNK_EVENTS)
    parts = [
        _seen(catalog, view, wanted, names, rows.slice(start, CHUNK_EVENTS), before_us[start : start + CHUNK_EVENTS])
        for start in starts
    ]
    return _between(pa.concat_tables(parts), since_us, until_us)


def _seen(
    catalog: Catalog, view: FeatureView, wanted: Sequence[str], names: Sequence[str], rows: pa.Table, before_us: Ints
) -> pa.Table:
    events = SourceEvents(
        {name: rows[name].combine_chunks() for name in wanted},
        _numbers(rows["event_time"]),
        _numbers(rows["arrival_time"]),
        _numbers(rows[OFFSET]),
        _numbers(rows[INDEX]),
        _numbers(rows[PARTITION]),
        before_us,
    )
    found = view_events(catalog, view, events)
    own = {"event_time": pa.array(found.event_time_us).cast(_MOMENT)}
    if "arrival_time" in names:
        own["arrival_time"] = pa.array(events.arrival_us[found.row]).cast(_MOMENT)
    columns = {name: own[name] if name in own else found.columns[name] for name in names}
    place = {PARTITION: found.partition.astype(np.int32), OFFSET: found.offset, INDEX: found.index.astype(np.int32)}
    return pa.table({**columns, **{name: pa.array(values) for name, values in place.items()}})


def _watermarks(offline: OfflineStore, source: Source, rows: pa.Table) -> Ints:
    """What every event found of its partition's watermark (imports: none); rows in position order, with repeats."""
    times, partitions = _numbers(rows["event_time"]), _numbers(rows[PARTITION])
    offsets, before = _numbers(rows[OFFSET]), np.full(len(times), NO_WATERMARK)
    tombstones = load_tombstones(None, offline.root, "")
    for partition in np.unique(partitions[partitions != IMPORTS]).tolist():
        mine = partitions == partition
        floors = tombstones.floors(source.name, partition)
        before[mine] = raised_to_floors(watermarks_before(times[mine], None), offsets[mine], floors)
    return before


def _between(rows: pa.Table, since_us: int | None, until_us: int | None) -> pa.Table:
    times = _numbers(rows["event_time"])
    inside = np.ones(len(times), np.bool_)
    if since_us is not None:
        inside &= times >= since_us
    if until_us is not None:
        inside &= times <= until_us
    return rows if inside.all() else rows.filter(pa.array(inside))


def _numbers(column: pa.ChunkedArray) -> Ints:
    numbers: Ints = np.asarray(column.cast(pa.int64()).combine_chunks())
    return numbers
