"""Each view's share of a batch: the rows that count for it, what it skips as dead letters, and how many of what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa
import redis

from headrace.catalog.definitions import Catalog, FeatureView, Source
from headrace.compute.events import EventBatch
from headrace.compute.view_events import SourceEvents, ViewEvents, view_events
from headrace.stores.counters import Counted, add_counts
from headrace.stores.keys import layout_field
from headrace.stores.letters import send_letters
from headrace.stores.online import Update
from headrace.stores.view_writes import Arrived

__all__ = ["Forgotten", "ViewShares"]


class Forgotten(Protocol):
    """What a writer asks about forgotten keys (see erase.py)."""

    def living(self, catalog: Catalog, batch: EventBatch) -> EventBatch: ...

    def without_gone_rows(self, kept: Any, update: Update) -> Update: ...

    def settle(self, written: Sequence[tuple[Any, Sequence[bytes]]]) -> bool: ...


class ViewShares:
    """Takes batches apart for the worker. `counts` is what it has counted and not yet published.

    What becomes of events is counted for the layouts that serve alone; a layout on its way out has no dead letters
    any more.
    """

    def __init__(self, store: redis.Redis, catalog: Catalog, forgotten: Forgotten | None = None) -> None:
        self.forgotten = forgotten
        self.counts: dict[Counted, int] = {}
        self._store = store
        self.follow(catalog)

    def follow(self, catalog: Catalog) -> None:
        """Go by another catalog of the same project from now on."""
        self._catalog = catalog
        self._serving = {layout_field(view) for view in catalog.views}
        self._retiring = {layout_field(layout.view) for layout in catalog.retiring}

    def of(self, batch: EventBatch, views: Sequence[FeatureView]) -> Iterator[tuple[FeatureView, Arrived]]:
        """Every view with its rows of `batch`, repeats left out; views without any are left out.

        What a view skips has been handed to the archiver when its rows come. Rows written directly into a view pass
        neither its expectations nor its transform.
        """
        once = ~batch.is_repeat
        kept = batch.table.filter(pa.array(once))
        columns = {name: kept[name].combine_chunks() for name in kept.column_names}
        times, offset, index = batch.event_time_us[once], batch.offset[once], batch.index[once]
        if not len(times):
            return
        if batch.source.name.startswith("writes/"):
            yield from ((view, Arrived(columns, times, offset, index, batch.partition, 1)) for view in views)
            return
        partition = np.full(len(times), batch.partition)
        events = SourceEvents(
            columns, times, batch.arrival_us[once], offset, index, partition, batch.watermarks_us[once]
        )
        for view in views:
            seen = view_events(self._catalog, view, events)
            self._take_outcome(view, batch, events, seen)
            if len(seen.event_time_us):
                rows = (seen.columns, seen.event_time_us, seen.offset, seen.index)
                yield view, Arrived(*rows, batch.partition, 0, seen.part)

    def count(self, view: FeatureView, outcome: str, n: int, column: str = "", rule: str = "") -> None:
        """Count rows of a view."""
        if layout_field(view) in self._serving:
            self._add(("view", view.name, outcome, column, rule), n)

    def publish_counts(self, batch: EventBatch) -> None:
        """Publish what was counted since the last time, and what `batch` was for its source."""
        late = int((batch.event_time_us < batch.watermarks_us).sum())
        seen = {"events": len(batch), "repeated": int(batch.is_repeat.sum()), "late": late, "dead": len(batch.dead)}
        for outcome, n in seen.items():
            self._add(("source", batch.source.name, outcome, "", ""), n)
        for (outcome, column, rule), n in batch.unexpected.items():
            self._add(("source", batch.source.name, outcome, column, rule), n)
        counts, self.counts = self.counts, {}
        add_counts(self._store, self._catalog.project, counts)

    def _add(self, counted: Counted, n: int) -> None:
        self.counts[counted] = self.counts.get(counted, 0) + n

    def _take_outcome(self, view: FeatureView, batch: EventBatch, events: SourceEvents, seen: ViewEvents) -> None:
        for (outcome, column, rule), n in seen.counts.items():
            self.count(view, outcome, n, column, rule)
        if seen.dead and layout_field(view) not in self._retiring:
            send_letters(self._store, self._catalog.project, _letters(view, batch.source, events, seen.dead))


def _letters(view: FeatureView, source: Source, events: SourceEvents, dead: dict[int, str]) -> pa.Table:
    """The events that `view` skips, as rows of DEAD_LETTERS."""
    rows = np.array(sorted(dead), np.int64)
    values = pa.table({c.name: events.columns[c.name].take(pa.array(rows)) for c in source.columns}).to_pylist()
    return pa.table(
        {
            "source": [source.name] * len(rows),
            "partition": pa.array(events.partition[rows], pa.int32()),
            "offset": events.offset[rows],
            "index": pa.array(events.index[rows], pa.int32()),
            "reason": [dead[row] for row in rows.tolist()],
            "payload": [orjson.dumps(value, option=orjson.OPT_UTC_Z) for value in values],
            "arrival_time": pa.array(events.arrival_us[rows]).cast(pa.timestamp("us", "UTC")),
            "view": [view.name] * len(rows),
            "layout": [layout_field(view)] * len(rows),
        }
    )
