"""How a join shares out the memory that it may take."""

from __future__ import annotations

import os
from dataclasses import dataclass

from headrace.errors import DataError
from headrace.read.joins.view_rows import RowShape
from headrace.stores.parquet_scan import BATCH_ROWS
from headrace.windows.aggregates import state_fields
from headrace.windows.listed import most_entries

__all__ = ["Limits", "StepSizes"]

RESERVED_BYTES = 300_000_000
"""What the interpreter, the libraries and their buffers take, whatever is joined."""
TARGET_ROWS = 500_000
"""So many events are joined fastest: their arrays fit the processor's caches, and are made again in place."""
MOST_BUCKETS = 1_024
ENTRY_BYTES = 40


@dataclass(frozen=True, slots=True)
class Limits:
    """`hold_bytes` for rows that wait, `work_bytes` for each of the `workers` that join some of them."""

    hold_bytes: int
    work_bytes: int
    workers: int

    @classmethod
    def of(cls, memory_bytes: int) -> Limits:
        own = memory_bytes - min(RESERVED_BYTES, memory_bytes // 2)
        workers = min(os.cpu_count() or 1, 4)
        return cls(own * 2 // 5, own * 2 // 5 // workers, workers)


@dataclass(frozen=True, slots=True)
class StepSizes:
    """How the join of `labels` labels with `rows` rows is cut.

    Rows and labels are put into `buckets` by their key, one is joined by each worker at a time: about `chunk_rows` rows
    for `label_rows` labels. `is_direct` says that there is but one, for which rows need not wait.
    """

    buckets: int
    chunk_rows: int
    label_rows: int
    is_direct: bool
    gather_rows: int

    @classmethod
    def of(cls, shape: RowShape, rows: int, labels: int, limits: Limits) -> StepSizes:
        """Raises DataError where not even what is read at a time fits."""
        work_bytes = limits.work_bytes
        least_bytes = 3 * min(rows, BATCH_ROWS) * shape.row_bytes
        if least_bytes > work_bytes:
            raise DataError(
                f"{min(rows, BATCH_ROWS):,} rows that view {shape.view.name!r} reads at a time take about "
                f"{least_bytes / 1e6:,.1f} MB, of the memory {work_bytes / 1e6:,.1f} MB are left for them; allow more "
                "memory (--memory), or ask for fewer features at a time."
            )
        event_bytes, label_bytes = _event_bytes(shape), _label_bytes(shape)
        gather_rows = max(min(TARGET_ROWS // 4, limits.hold_bytes // 8 // shape.row_bytes), 1)
        if _is_direct(shape, rows, labels * label_bytes, limits.work_bytes * limits.workers):
            chunk_rows = max(min(work_bytes // 4 // shape.row_bytes, max(BATCH_ROWS, 2 * labels)), 1)
            direct_rows = chunk_rows if shape.view.kind != "windowed" else max(rows, 1)
            return cls(1, direct_rows, max(labels, 1), True, gather_rows)
        chunk_rows = max(work_bytes * 7 // 10 // event_bytes, 1)
        label_rows = max(work_bytes * 3 // 10 // label_bytes, 1)
        buckets = max(-(-rows // min(TARGET_ROWS, chunk_rows)), -(-labels // label_rows), 1)
        return cls(min(buckets, MOST_BUCKETS), chunk_rows, label_rows, False, gather_rows)

    def label_rows_of(self, shape: RowShape, bucket_rows: int, limits: Limits) -> int:
        """How many labels are joined with a bucket of so many rows at a time: fewer where what functions of values keep
        of one chunk waits for the next."""
        if bucket_rows <= self.chunk_rows and not shape.as_known:
            return self.label_rows
        return max(min(self.label_rows, limits.work_bytes * 3 // 10 // (_label_bytes(shape) + _kept_bytes(shape))), 1)


def _is_direct(shape: RowShape, rows: int, label_bytes: int, work_bytes: int) -> bool:
    if shape.as_known and _kept_bytes(shape):
        return False
    if shape.view.kind != "windowed":
        return label_bytes <= work_bytes // 2
    return rows <= TARGET_ROWS and rows * _event_bytes(shape) + label_bytes <= work_bytes


def _event_bytes(shape: RowShape) -> int:
    """What the join of an event takes: as read (in the next chunk too), as seen, as sorted, and the arrays between."""
    known = 64 if shape.as_known else 0
    return 4 * shape.row_bytes + 64 + 32 * len(shape.values) + known


def _label_bytes(shape: RowShape) -> int:
    windows = len({(agg.window_us, agg.hop_us) for agg in shape.aggregations})
    numeric = sum(64 for agg in shape.aggregations if state_fields(agg))
    listed = sum(16 * min(most_entries(agg), 64) for agg in shape.aggregations if not state_fields(agg))
    return 96 + 16 * windows + numeric + listed + 2 * shape.row_bytes


def _kept_bytes(shape: RowShape) -> int:
    listed = (agg for agg in shape.aggregations if not state_fields(agg))
    return sum(ENTRY_BYTES * most_entries(agg) for agg in listed)
