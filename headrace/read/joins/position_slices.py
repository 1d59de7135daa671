"""Events in the order of their positions, a slice of it in memory at a time, and the watermarks that they found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Source
from headrace.compute.expectations import NO_WATERMARK, watermarks_before
from headrace.read.joins.scans import OnRead
from headrace.read.joins.spill import Buckets, Space
from headrace.stores.archive_rows import INDEX, OFFSET, PARTITION
from headrace.stores.event_scan import EventScan
from headrace.stores.markers import IMPORTS
from headrace.stores.tombstones import load_tombstones, raised_to_floors

__all__ = ["with_watermarks"]

Ints = NDArray[np.int64]

_ROW_BYTES = 256
_SAMPLES = 64
"""How many positions of a slice are looked at to find its bounds."""
_MOST_SLICES = 4_096


def with_watermarks(
    root: Path, source: Source, scan: EventScan, space: Space, on_read: OnRead
) -> Iterator[tuple[pa.Table, Ints]]:
    """The events of `scan` (all of the log, repeats among them) in position order, and what each found of its
    partition's watermark; imports: none. `root` is where the tombstones lie."""
    tombstones, marks = load_tombstones(None, root, ""), dict[int, int]()
    for rows in _in_position_order(scan, space, on_read):
        times, partitions, offsets = (_numbers(rows[name]) for name in ("event_time", PARTITION, OFFSET))
        before = np.full(len(times), NO_WATERMARK)
        for partition in np.unique(partitions[partitions != IMPORTS]).tolist():
            mine = partitions == partition
            held = marks.get(partition)
            found = watermarks_before(times[mine], held)
            before[mine] = raised_to_floors(found, offsets[mine], tombstones.floors(source.name, partition))
            marks[partition] = max(int(times[mine].max()), NO_WATERMARK if held is None else held)
        yield rows, before


def _in_position_order(scan: EventScan, space: Space, on_read: OnRead) -> Iterator[pa.Table]:
    bounds = _bounds(scan, space)
    slices = Buckets(scan.schema, len(bounds) + 1, space)
    try:
        for table in scan.tables(on_read):
            slices.add(table, bounds.slice_of(_numbers(table[PARTITION]), _numbers(table[OFFSET])))
        for number in range(len(slices)):
            if slices.rows(number):
                rows = slices.table(number)
                order = np.lexsort([_numbers(rows[name]) for name in (INDEX, OFFSET, PARTITION)])
                yield rows.take(pa.array(order))
    finally:
        slices.close()


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Where a slice begins, in order of (partition, offset); an entry is in one slice."""

    partition: Ints
    offset: Ints

    def __len__(self) -> int:
        return len(self.partition)

    def slice_of(self, partitions: Ints, offsets: Ints) -> Ints:
        number = np.searchsorted(self.partition, partitions, side="left")
        for partition in np.unique(partitions).tolist():
            mine = partitions == partition
            number[mine] += np.searchsorted(self.offset[self.partition == partition], offsets[mine], side="right")
        return number


def _bounds(scan: EventScan, space: Space) -> _Bounds:
    none = np.empty(0, np.int64)
    limit_bytes = space.limit_bytes
    if limit_bytes is None or scan.rows * _ROW_BYTES <= limit_bytes // 2:
        return _Bounds(none, none)
    slices = min(-(-scan.rows * _ROW_BYTES // (limit_bytes // 4)), _MOST_SLICES)
    step = max(1, scan.rows // (slices * _SAMPLES))
    places = pa.schema([field for field in scan.schema if field.name in (PARTITION, OFFSET, INDEX)])
    files = tuple(replace(file, columns=_only(file.columns)) for file in scan.files)
    sampled: list[tuple[Ints, Ints]] = [(none, none)]
    for table in replace(scan, schema=places, files=files, since_us=None, until_us=None).tables(lambda rows: None):
        sampled.append((_numbers(table[PARTITION])[::step], _numbers(table[OFFSET])[::step]))
    partitions, offsets = (np.concatenate(part) for part in zip(*sampled, strict=True))
    order = np.lexsort((offsets, partitions))
    chosen = order[np.linspace(0, len(order), slices, endpoint=False).astype(np.int64)[1:]]
    pairs = np.unique(np.stack([partitions[chosen], offsets[chosen]]), axis=1)
    return _Bounds(pairs[0], pairs[1])


def _only(columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in columns if name in (PARTITION, OFFSET, INDEX, "is_repeat"))


def _numbers(column: pa.ChunkedArray) -> Ints:
    numbers: Ints = np.asarray(column.cast(pa.int64()).combine_chunks())
    return numbers
