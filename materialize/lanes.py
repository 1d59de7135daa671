"""One partition of one source on its way to the offline store: what is read, what waits, what is archived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.catalog.definitions import Source
from headrace.compute.events import DeadLetter, Deduplicator, EventBatch
from headrace.stores.arrow import arrow_schema
from headrace.stores.markers import Applied
from headrace.stores.offline import DEAD_LETTERS, event_rows
from materialize.log import SourceLog

__all__ = ["FLUSH_AFTER_S", "FLUSH_EVENTS", "Lane", "archive_rows", "dead_rows", "empty_rows", "longer", "open_lane"]

FLUSH_EVENTS = 50_000
FLUSH_AFTER_S = 1.0
RETRY_S = (0.2, 10.0)


@dataclass(slots=True)
class Lane:
    """One partition of one source: how far it is read (its `total` 0 where nobody knows it), what waits to be appended,
    how far it is archived: `committed` is that offset, `archived` the place with its count, None where nobody knows
    it."""

    source: Source
    partition: int
    read: Applied
    repeats: Deduplicator
    archived: Applied | None = None
    published: Applied | None = None
    pending: list[EventBatch] = field(default_factory=list)
    waiting: int = 0
    since_s: float = 0.0
    entry_size: int = 1
    delay_s: float = 0.0
    committed: int = 0

    def add(self, batch: EventBatch, entries: int, now_s: float) -> None:
        """Take a parsed batch in."""
        self.repeats.mark(batch)
        if not self.pending:
            self.since_s = now_s
        self.pending.append(batch)
        events = len(batch) + len(batch.dead)
        self.waiting += events
        self.entry_size = max(1, events // entries)
        self.read = batch.end

    @property
    def read_to(self) -> int:
        return self.read.offset

    @property
    def watermark_us(self) -> int | None:
        return self.read.watermark_us

    def is_due(self, now_s: float) -> bool:
        """Whether an append is worth its commit; after a failure, whether it is time to try again."""
        if self.delay_s:
            return now_s >= self.since_s + self.delay_s
        return bool(self.pending) and (self.waiting >= FLUSH_EVENTS or now_s >= self.since_s + FLUSH_AFTER_S)


def open_lane(past: SourceLog) -> Lane:
    """The lane of a partition, going on after what its table holds, or behind a gap that was accepted.

    Raises StreamGapError when the stream no longer has what comes next.
    """
    end = past.end()
    begin = past.continue_at(end)
    # When the store lost it nobody knows its place in the count, but that of what the stream still has.
    archived = begin if begin.total else past.streamed_end(begin)
    return Lane(past.source, past.partition, begin, past.memory(end), archived, committed=begin.offset)


def empty_rows(source: Source, partition: int) -> pa.Table:
    """No rows of the archive of `source`."""
    none = np.empty(0, np.int64)
    table = arrow_schema(source.columns).empty_table()
    batch = EventBatch(source, partition, table, none, none, none, none, [], Applied())
    return archive_rows(batch)


def longer(delay_s: float) -> float:
    """The next pause after one of `delay_s`."""
    return min(RETRY_S[1], max(RETRY_S[0], 2 * delay_s))


def archive_rows(batch: EventBatch) -> pa.Table:
    """The events of a batch as rows of the archive."""
    return event_rows(
        batch.table,
        event_time_us=batch.event_time_us,
        arrival_us=batch.arrival_us,
        partition=batch.partition,
        offset=batch.offset,
        index=batch.index,
        is_repeat=batch.is_repeat,
    )


def dead_rows(source: Source, dead: Sequence[DeadLetter]) -> pa.Table:
    """Dead letters of a source as rows of DEAD_LETTERS."""
    columns: dict[str, Any] = {
        "source": [source.name] * len(dead),
        "partition": [letter.partition for letter in dead],
        "offset": [letter.offset for letter in dead],
        "index": [letter.index for letter in dead],
        "reason": [letter.reason for letter in dead],
        "payload": [letter.payload for letter in dead],
        "arrival_time": [letter.arrival_us for letter in dead],
    }
    of_views = {name: [None] * len(dead) for name in DEAD_LETTERS.names if name not in columns}
    return pa.table(columns | of_views, schema=DEAD_LETTERS)
