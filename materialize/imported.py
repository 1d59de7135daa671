"""The imports of a source as a partition of its log: read from the archive alone, some appends at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import redis

from headrace.catalog.definitions import FeatureView, Source
from headrace.compute.events import EventBatch
from headrace.stores.archive_rows import INDEX, OFFSET
from headrace.stores.import_log import ImportLog
from headrace.stores.markers import IMPORTS, Applied, Markers
from headrace.stores.offline import OfflineStore
from headrace.stores.orders import waiting_orders

__all__ = ["extend_back", "is_importing", "replay_imports"]

_BATCH_EVENTS = 100_000
_MOST_APPENDS = 64


def replay_imports(offline: OfflineStore, source: Source, after: Applied, upto: Applied) -> Iterator[EventBatch]:
    """The imported events in (after, upto] in position order, repeats marked; the last batch ends at `upto`.

    An append is never split, and of appends that hold few events several are read at once.
    """
    log, at, appends = ImportLog(offline, source.name), after, 1
    names = list(dict.fromkeys([*(c.name for c in source.columns), "event_time", "arrival_time", "is_repeat"]))
    while at.offset < upto.offset:
        last = min(at.offset + appends, upto.offset)
        rows = log.between(source, names, at.offset, last)
        appends = min(_MOST_APPENDS, max(1, appends * _BATCH_EVENTS // max(1, rows.num_rows)))
        at = upto if last == upto.offset else _end(at, rows, last)
        yield _batch(source, rows, at)


def _end(before: Applied, rows: pa.Table, last: int) -> Applied:
    """The place after the append at `last`, up to which `rows` reach; dead rows are counted at the end of all alone."""
    if not rows.num_rows:
        return Applied(last, 0, before.total, before.watermark_us)
    newest = int(np.asarray(rows["event_time"].cast(pa.int64())).max())
    index = int(rows[INDEX][-1].as_py()) if rows[OFFSET][-1].as_py() == last else 0
    known = newest if before.watermark_us is None else before.watermark_us
    return Applied(last, index, before.total + rows.num_rows, max(newest, known))


def _batch(source: Source, rows: pa.Table, end: Applied) -> EventBatch:
    times, arrivals = (np.asarray(rows[name].cast(pa.int64())) for name in ("event_time", "arrival_time"))
    return EventBatch(
        source,
        IMPORTS,
        rows.select([column.name for column in source.columns]),
        times,
        arrivals,
        np.asarray(rows[OFFSET]),
        np.asarray(rows[INDEX]).astype(np.int64),
        [],
        end,
        np.asarray(rows["is_repeat"].combine_chunks()).astype(np.bool_),
    )


def is_importing(store: redis.Redis, project: str, source: str) -> bool:
    """Whether an import of `source` is under way, or waits: its files may come in any order of time."""
    return any(order.order == "import" and order.source == source for order in waiting_orders(store, project))


def extend_back(markers: Markers, offline: OfflineStore, source: str, views: Iterable[FeatureView]) -> None:
    """State that `views`, which hold all imports of `source`, are complete from the earliest of them on."""
    first_us = ImportLog(offline, source).first_event_us()
    if first_us is not None:
        kept_us = offline.kept_from_us(source)
        for view in views:
            markers.extend_back(view, first_us if kept_us is None else max(first_us, kept_us))
