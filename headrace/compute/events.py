"""From stream entries to typed columns: parse, check and mark repeats, the same for worker, archiver and rebuild.

What an event becomes is a function of the log alone: its entry, its place and what stood before it. An event that
cannot be typed becomes a dead letter with its reason; the events around it go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Source
from headrace.compute.columns import typed_column
from headrace.compute.expectations import Counts, refuse_late, refuse_unexpected, watermarks_before
from headrace.errors import DataError
from headrace.stores.markers import Applied
from headrace.stores.stream import Entry, arrival_us

__all__ = ["DeadLetter", "Deduplicator", "EventBatch", "parse_entries"]

Ints = NDArray[np.int64]

EARLIEST_US = -62_135_596_800_000_000
LATEST_US = 253_402_300_799_999_999


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that no view will see, kept with its reason."""

    partition: int
    offset: int
    index: int
    reason: str
    payload: bytes
    arrival_us: int


@dataclass(slots=True)
class EventBatch:
    """The good events of some entries of one partition in position order, n rows, and the dead letters.

    `table` has the source's columns; the arrays are int64 microseconds or positions; `end` is the place of the
    last event of the entries, good or dead. `before_us` is the watermark before the entries, `unexpected` counts the
    rows that failed the source's expectations.
    """

    source: Source
    partition: int
    table: pa.Table
    event_time_us: Ints
    arrival_us: Ints
    offset: Ints
    index: Ints
    dead: list[DeadLetter]
    end: Applied
    is_repeat: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    before_us: int | None = None
    unexpected: Counts = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.event_time_us)

    @property
    def watermark_us(self) -> int | None:
        return self.end.watermark_us

    @property
    def watermarks_us(self) -> Ints:
        """The watermark that each event found (see `watermarks_before`)."""
        return watermarks_before(self.event_time_us, self.before_us)


@dataclass(slots=True)
class _Rows:
    """Raw rows of entries: values by column, where each came from, and rows that are no object at all."""

    offset: list[int] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    raw: list[Any] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)


def parse_entries(
    source: Source, partition: int, entries: Sequence[Entry], clock: str, watermark_us: int | None
) -> EventBatch:
    """The events of `entries` (at least one, in order), typed by the source's schema.

    `watermark_us` is the partition's before these entries. Under the event clock an event arrives at the running
    maximum of event time. `is_repeat` is all false until a Deduplicator marks the batch.
    """
    rows = _raw_rows(source, entries)
    arrays, bad = {}, dict(rows.bad)
    for column in source.columns:
        arrays[column.name], wrong = typed_column(rows.columns[column.name], column)
        bad = wrong | bad
    times = _event_times(source, arrays, bad)
    unexpected = refuse_unexpected(source.expectations, arrays, bad)
    offset, index = np.array(rows.offset, np.int64), np.array(rows.index, np.int64)
    arrivals = _arrivals(offset, times, bad, clock, watermark_us)
    if clock == "wall":
        _refuse_future(source, times, arrivals, bad)
    unexpected |= refuse_late(source.expectations, times, watermark_us, bad)
    good = np.ones(len(times), np.bool_)
    good[list(bad)] = False
    table = pa.table(arrays, schema=_schema(source, arrays)).filter(pa.array(good))
    dead = [
        DeadLetter(partition, rows.offset[i], rows.index[i], bad[i], _payload(rows.raw[i]), int(arrivals[i]))
        for i in sorted(bad)
        if bad[i]  # one without a reason is dropped
    ]
    seen = [int(times[good].max())] if good.any() else []
    marks = seen + ([] if watermark_us is None else [watermark_us])
    end = Applied(entries[-1].offset, entries[-1].count - 1, entries[-1].total, max(marks, default=None))
    batch = EventBatch(source, partition, table, times[good], arrivals[good], offset[good], index[good], dead, end)
    batch.is_repeat = np.zeros(len(batch), np.bool_)
    batch.before_us, batch.unexpected = watermark_us, unexpected
    return batch


def _schema(source: Source, arrays: dict[str, pa.Array]) -> pa.Schema:
    return pa.schema([(column.name, arrays[column.name].type) for column in source.columns])


def _raw_rows(source: Source, entries: Sequence[Entry]) -> _Rows:
    rows = _Rows(columns={column.name: [] for column in source.columns})
    for entry in entries:
        before = len(rows.raw)
        try:
            _READERS[entry.format](rows, entry)
        except (DataError, pa.ArrowException, ValueError, TypeError, AttributeError, KeyError) as error:
            _add_unreadable(rows, entry, before, str(error))
        for name, version in source.added:
            if 0 < entry.catalog < version:
                rows.columns[name][before:] = [None] * (len(rows.raw) - before)
    return rows


def _add_unreadable(rows: _Rows, entry: Entry, before: int, error: str) -> None:
    """An entry that cannot be taken apart: all of its events are dead, the first carries the payload."""
    for values in rows.columns.values():
        values[before:] = [None] * entry.count
    rows.raw[before:] = [entry.payload, *[b""] * (entry.count - 1)]
    rows.offset[before:], rows.index[before:] = [entry.offset] * entry.count, range(entry.count)
    reason = f"the entry cannot be read: {error[:200]}"
    rows.bad = {row: why for row, why in rows.bad.items() if row < before}
    rows.bad |= dict.fromkeys(range(before, before + entry.count), reason)


def _add_places(rows: _Rows, entry: Entry, n: int) -> None:
    rows.offset.extend([entry.offset] * n)
    rows.index.extend(range(n))


def _read_ndjson(rows: _Rows, entry: Entry) -> None:
    lines = [line for line in entry.payload.split(b"\n") if line.strip()]
    try:
        parsed = [orjson.loads(line) for line in lines]
    except orjson.JSONDecodeError:
        parsed = [_loads_or_none(line) for line in lines]
    base = len(rows.raw)
    for i, row in enumerate(parsed):
        if type(row) is not dict:
            rows.bad[base + i] = "not a JSON object"
            parsed[i] = {}
    for name, values in rows.columns.items():
        values.extend([row.get(name) for row in parsed])
    rows.raw.extend(lines)
    _add_places(rows, entry, len(lines))


def _loads_or_none(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def _read_columns(rows: _Rows, entry: Entry) -> None:
    _extend_columns(rows, entry, orjson.loads(entry.payload))


def _read_arrow(rows: _Rows, entry: Entry) -> None:
    with pa.ipc.open_stream(entry.payload) as reader:
        _extend_columns(rows, entry, reader.read_all().to_pydict())


def _extend_columns(rows: _Rows, entry: Entry, columns: dict[str, list[Any]]) -> None:
    wrong = {name: len(values) for name, values in columns.items() if len(values) != entry.count}
    if wrong:
        raise DataError(f"Entry {entry.offset} states {entry.count} events, its columns hold {wrong}.")
    for name, values in rows.columns.items():
        values.extend(columns.get(name) or [None] * entry.count)
    rows.raw.extend(_ColumnRow(columns, i) for i in range(entry.count))
    _add_places(rows, entry, entry.count)


@dataclass(frozen=True, slots=True)
class _ColumnRow:
    """One row of columns, written out only when it is a dead letter."""

    columns: dict[str, list[Any]]
    row: int


_READERS = {"ndjson": _read_ndjson, "columns": _read_columns, "arrow": _read_arrow}


def _payload(raw: bytes | _ColumnRow) -> bytes:
    if isinstance(raw, bytes):
        return raw
    return orjson.dumps({name: values[raw.row] for name, values in raw.columns.items()}, default=str)


def _event_times(source: Source, arrays: dict[str, pa.Array], bad: dict[int, str]) -> Ints:
    column = arrays[source.timestamp]
    times: Ints = np.asarray(column.cast(pa.int64()).fill_null(0))
    for i in np.flatnonzero(np.asarray(column.is_null())).tolist():
        bad.setdefault(i, f"no event time: {source.timestamp} is null or missing")
    for i in np.flatnonzero((times < EARLIEST_US) | (times > LATEST_US)).tolist():
        bad.setdefault(i, f"{source.timestamp} lies outside the years 1 to 9999")
    return times


def _arrivals(offset: Ints, times: Ints, bad: dict[int, str], clock: str, watermark_us: int | None) -> Ints:
    if clock == "wall":
        return arrival_us(offset)
    before = np.iinfo(np.int64).min if watermark_us is None else watermark_us
    good = times.copy()
    good[list(bad)] = before
    running: Ints = np.maximum.accumulate(np.maximum(good, before)) if len(good) else good
    return np.where(running == np.iinfo(np.int64).min, times, running)


def _refuse_future(source: Source, times: Ints, arrivals: Ints, bad: dict[int, str]) -> None:
    for i in np.flatnonzero(times > arrivals + source.max_future_us).tolist():
        ahead_s = (int(times[i]) - int(arrivals[i])) / 1e6
        bad.setdefault(i, f"event time is {ahead_s:.0f} s after arrival, at most {source.max_future_us / 1e6:.0f} s")


class Deduplicator:
    """Marks repeats: the same id at an earlier position of the partition, at most the horizon before.

    Its memory is never stored: on start, feed it the log from one horizon before. It keeps two generations of ids,
    each at least a horizon long; arrivals only rise within a partition.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._young: dict[Any, int] = {}
        self._old: dict[Any, int] = {}
        self._since_us: int | None = None

    def remember(self, ids: Sequence[Any], arrivals_us: Sequence[int]) -> None:
        """Events of the log before the first batch, in position order; None is no id."""
        if arrivals_us:
            self._since_us = arrivals_us[0]
        self._young.update((i, at) for i, at in zip(ids, arrivals_us, strict=True) if i is not None)

    def mark(self, batch: EventBatch) -> None:
        """Sets `batch.is_repeat`; batches of one partition come in order, each once."""
        if self._source.event_id is None or not len(batch):
            return
        ids, arrivals = batch.table[self._source.event_id].to_pylist(), batch.arrival_us.tolist()
        self._turn(arrivals[0])
        distinct = set(ids)
        new = self._young.keys().isdisjoint(distinct) and self._old.keys().isdisjoint(distinct)
        if new and len(distinct) == len(ids) and None not in distinct:
            self._young.update(zip(ids, arrivals, strict=True))
        else:
            self._mark_one_by_one(batch, ids, arrivals)

    def _mark_one_by_one(self, batch: EventBatch, ids: Sequence[Any], arrivals: Sequence[int]) -> None:
        horizon, young, old = self._source.dedup_horizon_us, self._young, self._old
        for i, (event_id, arrival) in enumerate(zip(ids, arrivals, strict=True)):
            if event_id is not None:
                seen = young.get(event_id, old.get(event_id))
                batch.is_repeat[i] = seen is not None and arrival - seen <= horizon
                young[event_id] = arrival

    def _turn(self, now_us: int) -> None:
        """Begins a new generation when the young one is a horizon long: the old one has then left it."""
        if self._since_us is None:
            self._since_us = now_us
        elif now_us - self._since_us > self._source.dedup_horizon_us:
            self._old, self._young, self._since_us = self._young, {}, now_us
