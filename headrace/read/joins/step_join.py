"""One view's features for all labels of a training set, in bounded memory.

Where the labels of a last-value view fit, or all there is to join, rows are joined as they are read. Otherwise labels
and rows are put into buckets by a hash of their key, and each bucket is joined alone. A row whose key no label has is
left out before it takes any room (but for hashes that fall together).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog
from headrace.dtypes import arrow_type
from headrace.read.joins.key_hashes import key_hashes
from headrace.read.joins.limits import Limits, StepSizes
from headrace.read.joins.past import Past
from headrace.read.joins.prefetch import prefetched
from headrace.read.joins.scans import RowScan
from headrace.read.joins.spill import Buckets, Space
from headrace.read.joins.view_join import Joined, gathered, join_rows, shown_numbers
from headrace.read.joins.view_rows import RowShape, row_scans, row_shape
from headrace.read.labels import Labels, label_rows
from headrace.read.plans import LookupPlan, ViewStep

__all__ = ["NUMBER", "Advance", "Asked", "StepJoin"]

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

Advance = Callable[[int], None]
"""Called with how many more rows are done."""

NUMBER = "row.number"
_TIME = "row.time"
_TRIES = 5
AHEAD = 2
"""How many tables are read before they are asked for."""
_SEEN_BITS = (12, 26)


@dataclass(frozen=True, slots=True)
class Asked:
    """The labels of a plan: how many, and the first and the last of their times."""

    labels: Labels
    plan: LookupPlan
    rows: int
    first_us: int
    last_us: int


@dataclass(slots=True)
class StepJoin:
    """One step of a plan. `beyond` counts by feature, once it ran, the values that are beyond their range."""

    catalog: Catalog
    step: ViewStep
    asked: Asked
    history: Past
    as_known: bool
    limits: Limits
    space: Space
    beyond: dict[str, int] = field(default_factory=dict)
    _shape: RowShape = field(init=False)
    _scans: list[RowScan] = field(init=False)
    _sizes: StepSizes = field(init=False)

    def __post_init__(self) -> None:
        features = self.asked.plan.features_of(self.step.name)
        self._shape = row_shape(self.catalog, self.step.view, features, self.as_known)
        self._plan()

    def _plan(self) -> None:
        asked = self.asked
        self._scans = row_scans(self.catalog, self._shape, self.history, asked.first_us, asked.last_us, self.space)
        rows = sum(scan.rows for scan in self._scans)
        self._sizes = StepSizes.of(self._shape, rows, asked.rows, self.limits)

    @property
    def work(self) -> int:
        """How many rows it is going to do."""
        return sum(scan.rows for scan in self._scans) + self.asked.rows

    def run(self, range_rows: int, advance: Advance) -> Buckets:
        """NUMBER and the features of every label, in buckets of `range_rows` labels as they are numbered.

        Raises DataError for files that cannot be read.
        """
        missing = FileNotFoundError()
        for _ in range(_TRIES):
            results = Buckets(self._result_schema(), -(-self.asked.rows // range_rows), self.space)
            self.beyond.clear()
            try:
                for numbers, joined in self._joined(advance):
                    results.add(self._table(numbers, joined), numbers // range_rows)
            except FileNotFoundError as error:  # files were swept: there are others that hold their rows
                results.close()
                missing = error
                self._plan()
            except BaseException:
                results.close()
                raise
            else:
                return results
        raise missing

    def _result_schema(self) -> pa.Schema:
        view = self.step.view
        names = self.asked.plan.features_of(self.step.name)
        features = [pa.field(item.name, arrow_type(item.dtype)) for item in view.features if item.name in names]
        return pa.schema([pa.field(NUMBER, pa.int64()), *features])

    def _table(self, numbers: Ints, joined: Joined) -> pa.Table:
        for feature, count in joined.beyond.items():
            self.beyond[feature] = self.beyond.get(feature, 0) + count
        schema = self._result_schema()
        columns = [pa.array(numbers), *(joined.columns[name] for name in schema.names[1:])]
        return pa.Table.from_arrays(columns, schema=schema)

    def _joined(self, advance: Advance) -> Iterator[tuple[Ints, Joined]]:
        if self._sizes.is_direct:
            labels = pa.concat_tables(self._label_tables()).combine_chunks()
            yield self._join(labels, self._rows_for(labels, advance))
            advance(self.asked.rows)
            return
        labels_by_key = Buckets(self._label_schema(), self._sizes.buckets, self.space)
        rows_by_key = Buckets(self._shape.schema, self._sizes.buckets, self.space)
        try:
            seen = self._spread_labels(labels_by_key)
            self._spread_rows(rows_by_key, seen, advance)
            yield from self._by_bucket(labels_by_key, rows_by_key, advance)
        finally:
            labels_by_key.close()
            rows_by_key.close()

    def _rows_for(self, labels: pa.Table, advance: Advance) -> Iterator[pa.Table]:
        """All rows, of a file only those that the labels show, as far as it can tell without their values."""
        keys, times = self._shape.keys_of(labels), self._shape.numbers_of(labels, "time")
        for scan in self._scans:
            if scan.slim is None:
                yield from prefetched(scan.tables(advance), AHEAD)
            else:
                tables = prefetched(scan.slim.tables(advance), AHEAD)
                shown = shown_numbers(scan.slim.shape, keys, times, tables, self._sizes.chunk_rows)
                yield from prefetched(scan.slim.chosen(shown), AHEAD)

    def _join(self, labels: pa.Table, tables: Iterator[pa.Table]) -> tuple[Ints, Joined]:
        keys, times = self._shape.keys_of(labels), self._shape.numbers_of(labels, "time")
        joined = join_rows(self._shape, keys, times, tables, self._sizes.chunk_rows)
        return np.asarray(labels[NUMBER].combine_chunks()), joined

    def _label_schema(self) -> pa.Schema:
        keys = [pa.field(f"row.key{i}", arrow_type(column.dtype)) for i, column in enumerate(self._shape.keys)]
        return pa.schema([*keys, pa.field(_TIME, pa.int64()), pa.field(NUMBER, pa.int64())])

    def _label_tables(self) -> Iterator[pa.Table]:
        """The labels' keys, times and numbers."""
        first, schema = 0, self._label_schema()
        for batch in self.asked.labels.batches():
            rows = label_rows(batch, self.asked.plan, first)
            columns = [rows.inputs[name] for name in self.step.request_keys]
            columns += [pa.array(rows.times_us), pa.array(np.arange(first, first + len(rows)))]
            yield pa.Table.from_arrays(columns, schema=schema)
            first += len(rows)

    def _spread_labels(self, buckets: Buckets) -> Flags:
        """Puts the labels into buckets; returns which ends of hashes they have."""
        least, most = _SEEN_BITS
        bits = min(max((8 * self.asked.rows).bit_length(), least), most)
        seen = np.zeros(1 << bits, np.bool_)
        for table in gathered(self._label_tables(), self._sizes.gather_rows):
            hashes = key_hashes(self._shape.keys_of(table), table.num_rows)
            seen[_ends(hashes, len(seen))] = True
            buckets.add(table, _bucket_of(hashes, len(buckets)))
        return seen

    def _spread_rows(self, buckets: Buckets, seen: Flags, advance: Advance) -> None:
        tables = (table for scan in self._scans for table in scan.tables(advance))
        for table in prefetched(gathered(tables, self._sizes.gather_rows)):
            hashes = key_hashes(self._shape.keys_of(table), table.num_rows)
            known = seen[_ends(hashes, len(seen))]
            if not known.all():
                table, hashes = table.filter(pa.array(known)), hashes[known]
            buckets.add(table, _bucket_of(hashes, len(buckets)))

    def _by_bucket(self, labels: Buckets, rows: Buckets, advance: Advance) -> Iterator[tuple[Ints, Joined]]:
        """Joins the buckets, as many at a time as there are workers."""
        tasks = (
            (bucket, start, most)
            for bucket in range(len(labels))
            for most in [self._sizes.label_rows_of(self._shape, rows.rows(bucket), self.limits)]
            for start in range(0, labels.rows(bucket), most)
        )

        def task(bucket: int, start: int, most: int) -> tuple[Ints, Joined]:
            held = labels.table(bucket).slice(start, most).combine_chunks()
            return self._join(held, rows.tables(bucket, self._sizes.chunk_rows))

        with ThreadPoolExecutor(self.limits.workers) as pool:
            running: list[Future[tuple[Ints, Joined]]] = []
            try:
                for item in tasks:
                    running.append(pool.submit(task, *item))
                    if len(running) > self.limits.workers:
                        found = running.pop(0).result()
                        yield found
                        advance(len(found[0]))
                while running:
                    found = running.pop(0).result()
                    yield found
                    advance(len(found[0]))
            finally:
                for future in running:
                    future.cancel()


def _ends(hashes: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    return hashes & np.uint64(size - 1)


def _bucket_of(hashes: NDArray[np.uint64], buckets: int) -> Ints:
    return ((hashes >> np.uint64(32)) % np.uint64(buckets)).astype(np.int64)
