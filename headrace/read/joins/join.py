"""Training rows: labels in, a stream of tables out, each label with the features that were true at its time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from headrace.catalog.definitions import Catalog, DType
from headrace.dtypes import arrow_type
from headrace.read.joins.limits import Limits
from headrace.read.joins.past import Past
from headrace.read.joins.spill import Buckets, Space
from headrace.read.joins.step_join import NUMBER, Asked, StepJoin
from headrace.read.labels import Labels, label_rows
from headrace.read.plans import LookupPlan

__all__ = ["OnProgress", "iter_training_rows"]

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is in all (rows); maybe in another thread, but
never in two at a time."""

MOST_ROWS = 262_144
"""The most rows of a table."""

Columns = Mapping[str, pa.Array]


def iter_training_rows(
    catalog: Catalog,
    plan: LookupPlan,
    labels: Labels,
    history: Past,
    *,
    memory_bytes: int,
    as_known: bool = False,
    spill_dir: Path,
    on_progress: OnProgress = lambda what, done, total: None,
    beyond: dict[str, int] | None = None,
) -> Iterator[pa.Table]:
    """The labels in their order with the features of `plan`, a table of some rows at a time: the label columns, then
    the features in the plan's order. No labels give one table without rows.

    `as_known` counts only what had arrived before a label's time. What does not fit into `memory_bytes` is spilled
    below `spill_dir`, an empty folder that the caller removes. `beyond` is given, by output name, how many values are
    null because their type or bound cannot hold them. Raises DataError for labels or files that cannot be read, and
    for a memory that is too small.
    """
    asked = _asked(labels, plan)
    if not asked.rows:
        yield _with_features(plan, labels.schema.empty_table(), 0, _no_features(plan))
        return
    limits = Limits.of(memory_bytes)
    space = Space(spill_dir, limits.hold_bytes)
    steps = [StepJoin(catalog, step, asked, history, as_known, limits, space) for step in plan.steps]
    progress = _Progress(on_progress, sum(step.work for step in steps) + asked.rows)
    range_rows = _range_rows(plan, limits, asked.rows)
    results: dict[str, Buckets] = {}
    try:
        for step in steps:
            progress.what = step.step.name
            results[step.step.name] = step.run(range_rows, progress.advance)
            _add_beyond(plan, step, beyond)
        progress.what = "rows"
        yield from _assembled(plan, labels, results, range_rows, progress)
    finally:
        for held in results.values():
            held.close()


@dataclass(slots=True)
class _Progress:
    on_progress: OnProgress
    total: int
    done: int = 0
    what: str = ""

    def advance(self, rows: int) -> None:
        self.done = min(self.done + rows, self.total)
        self.on_progress(self.what, self.done, self.total)


def _asked(labels: Labels, plan: LookupPlan) -> Asked:
    """Reads all labels once, so that what is wrong with them shows before any work is done."""
    rows, first_us, last_us = 0, np.iinfo(np.int64).max, np.iinfo(np.int64).min
    for batch in labels.batches():
        times = label_rows(batch, plan, rows).times_us
        rows += len(times)
        first_us, last_us = min(first_us, int(times.min())), max(last_us, int(times.max()))
    return Asked(labels, plan, rows, first_us, last_us)


def _range_rows(plan: LookupPlan, limits: Limits, rows: int) -> int:
    """How many rows of the result are put together at a time."""
    features = [output.feature.dtype for output in plan.outputs]
    row_bytes = 16 + sum(256 if dtype.is_list else 32 if dtype is DType.STRING else 8 for dtype in features)
    fitting = max(limits.hold_bytes // 8 // row_bytes, 1)
    return max(min(MOST_ROWS, fitting), -(-rows // (1 << 15)))


def _add_beyond(plan: LookupPlan, step: StepJoin, beyond: dict[str, int] | None) -> None:
    for output in plan.outputs if beyond is not None else ():
        if output.step == step.step.name and step.beyond.get(output.feature.name):
            assert beyond is not None
            beyond[output.name] = step.beyond[output.feature.name]


def _assembled(
    plan: LookupPlan, labels: Labels, results: Mapping[str, Buckets], range_rows: int, progress: _Progress
) -> Iterator[pa.Table]:
    """The labels again, with what the steps found for them."""
    for number, rows in enumerate(_cut(labels.batches(), range_rows)):
        found = {name: _in_order(held.table(number)) for name, held in results.items()}
        yield _with_features(plan, rows, number * range_rows, found)
        progress.advance(rows.num_rows)


def _cut(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows` but the last."""
    held: list[pa.Table] = []
    room = rows
    for batch in batches:
        table = pa.Table.from_batches([batch])
        while table.num_rows >= room:
            yield pa.concat_tables([*held, table.slice(0, room)])
            table, held, room = table.slice(room), [], rows
        if table.num_rows:
            held.append(table)
            room -= table.num_rows
    if held:
        yield pa.concat_tables(held)


def _in_order(found: pa.Table) -> dict[str, pa.Array]:
    """The features of a range of labels by the labels' numbers."""
    numbers = np.asarray(found[NUMBER].combine_chunks())
    if (numbers[1:] < numbers[:-1]).any():
        found = found.take(pa.array(np.argsort(numbers)))
    return {name: found[name].combine_chunks() for name in found.column_names if name != NUMBER}


def _no_features(plan: LookupPlan) -> dict[str, Columns]:
    schemas = {step.name: step.view.features for step in plan.steps}
    return {
        name: {item.name: pa.nulls(0, arrow_type(item.dtype)) for item in features}
        for name, features in schemas.items()
    }


def _with_features(plan: LookupPlan, table: pa.Table, first: int, found: Mapping[str, Columns]) -> pa.Table:
    """The label columns, then the features; those on demand are computed here."""
    rows, values = label_rows(table, plan, first), dict(found)
    for on_demand in plan.on_demand:
        inputs = {feature: values[name][feature] for name, feature in on_demand.inputs}
        inputs |= {column.name: rows.inputs[column.name] for column in on_demand.view.request}
        values[on_demand.view.name] = on_demand.function.compute(inputs)
    for output in plan.outputs:
        table = table.append_column(output.name, values[output.step][output.feature.name])
    return table
