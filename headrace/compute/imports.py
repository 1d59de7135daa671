"""Rows of files to typed events: held to the rules of pushed ones, in columns where the files have columns.

Two rules differ, since an import has no arrival of its own: an event arrives when it happened, so none is late; and
of two rows of one id that happened at most the horizon apart, before or after, the later in position is a repeat.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.catalog.definitions import Column, Source
from headrace.compute.columns import typed_column
from headrace.compute.events import DeadLetter, EventBatch, event_times
from headrace.compute.expectations import Counts, refuse_unexpected
from headrace.dtypes import DType, arrow_type
from headrace.errors import DataError
from headrace.moments import EARLIEST_US, LATEST_US
from headrace.stores.import_files import ImportFile
from headrace.stores.import_rows import ImportRows, plain_values, read_chunks
from headrace.stores.markers import IMPORTS, Applied
from headrace.stores.tables import as_declared

__all__ = ["import_batch", "mark_repeats", "near_ids", "refuse_unusable"]

Ints = NDArray[np.int64]
Bounds = tuple[int | None, int | None]

SAMPLE_ROWS = 1_000
TOO_OLD = "older than the archive keeps"


def import_batch(
    source: Source, offset: int, rows: ImportRows, before: Applied, imported_us: int, bounds_us: Bounds
) -> EventBatch:
    """The events of `rows` as one append at `offset`, which comes after `before`.

    Of the times in `bounds_us` (None is no bound) an event before the first is left out and counted, one after the
    second is dead; a dead letter arrives at `imported_us`. `is_repeat` is all false until `mark_repeats`.
    """
    n = len(rows.number)
    arrays: dict[str, pa.Array] = {}
    bad: dict[int, str] = {}
    for column in source.columns:
        arrays[column.name], wrong = _typed(rows.columns.get(column.name), column, n)
        bad = wrong | bad
    times = event_times(source, arrays, bad)
    unexpected = refuse_unexpected(source.expectations, arrays, bad)
    unexpected |= _refuse_outside(source, times, bounds_us, bad)
    good = np.ones(n, np.bool_)
    good[list(bad)] = False
    table = pa.table(arrays).filter(pa.array(good))
    dead = [
        DeadLetter(IMPORTS, offset, int(rows.number[i]), bad[i], rows.payload(i), imported_us)
        for i in sorted(bad)
        if bad[i]  # one without a reason is dropped
    ]
    dead += [DeadLetter(IMPORTS, offset, row.number, row.reason, row.payload, imported_us) for row in rows.bad]
    kept = times[good]
    marks = [*([int(kept.max())] if len(kept) else []), *([] if before.watermark_us is None else [before.watermark_us])]
    end = Applied(offset, rows.end - 1, before.total + n + len(rows.bad), max(marks, default=None))
    batch = EventBatch(source, IMPORTS, table, kept, kept, np.full(len(kept), offset), rows.number[good], dead, end)
    batch.is_repeat, batch.unexpected = np.zeros(len(kept), np.bool_), unexpected
    return batch


def _refuse_outside(source: Source, times: Ints, bounds_us: Bounds, bad: dict[int, str]) -> Counts:
    first, last = bounds_us
    if last is not None:
        for i in np.flatnonzero(times > last).tolist():
            bad.setdefault(i, f"event time is over {source.max_future_us / 1e6:.0f} s after the import")
    old = [] if first is None else [i for i in np.flatnonzero(times < first).tolist() if i not in bad]
    bad |= dict.fromkeys(old, "")
    return {("dropped", source.timestamp, TOO_OLD): len(old)} if old else {}


def _typed(values: Any, column: Column, n: int) -> tuple[pa.Array, dict[int, str]]:
    """As `typed_column`, of an Arrow array at once where every value fits."""
    if values is None:
        return pa.nulls(n, arrow_type(column.dtype)), {}
    if isinstance(values, list):
        return typed_column(values, column)
    try:
        array = as_declared(values, column.dtype, column.name)
    except DataError:
        array = None
    if array is not None and _is_sound(array, column.dtype):
        return array, {}
    return typed_column(plain_values(values), column)


def _is_sound(array: pa.Array, dtype: DType) -> bool:
    """Whether no value is an infinity or a time outside the years 1 to 9999."""
    if dtype.is_float:
        return not pc.any(pc.is_inf(array)).as_py()
    if dtype is DType.TIMESTAMP:
        times_us = np.asarray(array.cast(pa.int64()).fill_null(0))
        return bool(((times_us >= EARLIEST_US) & (times_us <= LATEST_US)).all())
    return True


def near_ids(batch: EventBatch) -> tuple[pa.Array, int, int] | None:
    """What earlier imported events can make repeats in `batch`: their ids, and the first and last event time; None
    where there can be none."""
    if batch.source.event_id is None or not len(batch):
        return None
    ids = pc.unique(batch.table[batch.source.event_id].combine_chunks()).drop_null()
    horizon_us = batch.source.dedup_horizon_us
    first, last = int(batch.event_time_us.min()) - horizon_us, int(batch.event_time_us.max()) + horizon_us
    return (ids, first, last) if len(ids) else None


def mark_repeats(batch: EventBatch, earlier: Mapping[Any, Sequence[int]]) -> None:
    """Sets `batch.is_repeat`; `earlier` has the event times by id of imported events before it (see `near_ids`)."""
    if batch.source.event_id is None or not len(batch):
        return
    ids = batch.table[batch.source.event_id].combine_chunks()
    horizon_us = batch.source.dedup_horizon_us
    seen: dict[Any, list[int]] = defaultdict(list)
    for event_id, times in earlier.items():
        seen[event_id] = sorted(times)
    rows = _suspects(ids, list(earlier))
    for row, event_id in zip(rows.tolist(), ids.take(pa.array(rows)).to_pylist(), strict=True):
        time_us = int(batch.event_time_us[row])
        batch.is_repeat[row] = _has_near(seen[event_id], time_us, horizon_us)
        insort(seen[event_id], time_us)


def _suspects(ids: pa.Array, earlier: list[Any]) -> Ints:
    """The rows whose id another row of the batch has too, or an earlier event."""
    codes = pc.dictionary_encode(ids)
    numbers = np.asarray(codes.indices.fill_null(-1)).astype(np.int64)
    counts = np.bincount(numbers[numbers >= 0], minlength=len(codes.dictionary))
    known = np.asarray(pc.is_in(codes.dictionary, value_set=pa.array(earlier, codes.dictionary.type)))
    wanted = (counts > 1) | known.astype(np.bool_)
    return np.flatnonzero((numbers >= 0) & np.append(wanted, False)[numbers])


def _has_near(times: Sequence[int], time_us: int, horizon_us: int) -> bool:
    """Whether one of the sorted `times` is at most the horizon away."""
    at = bisect_left(times, time_us)
    return any(abs(time_us - other) <= horizon_us for other in times[max(at - 1, 0) : at + 1])


def refuse_unusable(source: Source, file: ImportFile, renamed: Mapping[str, str]) -> None:
    """Raises DataError for a file of which none of the first rows has values of its columns' types."""
    for rows in read_chunks(source, file, renamed, 0, SAMPLE_ROWS):
        batch = import_batch(replace(source, expectations=()), 1, rows, Applied(), 0, (None, None))
        if batch.dead and not len(batch):
            raise DataError(
                f"An import begins with rows that fit {source.name!r}, of the first {len(batch.dead):,} of {file.path} "
                f"none does, such as: {batch.dead[0].reason}; correct the file, its format or the columns (--map)."
            )
        return
