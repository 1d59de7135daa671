"""What a view makes of its source's events: its expectations, then its transform. Worker and training both call this.

What becomes of an event depends on the event and on the watermark it found, never on the batch that it came in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog, FeatureView, Source, Transform
from headrace.compute.expectations import NO_WATERMARK, Counts, Verdict, expect_on_time, expect_values
from headrace.compute.frames import take
from headrace.compute.transforms import Transformed, apply_transform
from headrace.moments import EARLIEST_US, LATEST_US

__all__ = ["SourceEvents", "ViewEvents", "needed_columns", "view_events"]

Ints = NDArray[np.int64]
LONGEST_REASON = 300
TRANSFORM_FAILED = ("quarantined", "", "transform")


@dataclass(frozen=True, slots=True)
class SourceEvents:
    """Events of a view's source in position order, repeats left out, all arrays of n.

    `watermark_us` is what each found of its partition's (NO_WATERMARK for none); `columns` has at least
    `needed_columns`.
    """

    columns: Mapping[str, pa.Array]
    event_time_us: Ints
    arrival_us: Ints
    offset: Ints
    index: Ints
    partition: Ints
    watermark_us: Ints


@dataclass(frozen=True, slots=True)
class ViewEvents:
    """The rows that count for a view, in position order: `row` is the event of each (None: its own number), `part`
    its number among the rows of that event (None: all 0).

    `dead` holds, by event, why the view skips it; `counts` how many failed what.
    """

    columns: Mapping[str, pa.Array]
    event_time_us: Ints
    offset: Ints
    index: Ints
    partition: Ints
    row: Ints | None = None
    part: Ints | None = None
    dead: dict[int, str] = field(default_factory=dict)
    counts: Counts = field(default_factory=dict)


def needed_columns(catalog: Catalog, view: FeatureView, wanted: list[str]) -> list[str]:
    """The columns of its source that `view_events` must be given for the columns `wanted` of its rows."""
    if view.transform is not None:
        return [column.name for column in catalog.source(view.source or "").columns]
    return list(dict.fromkeys([*wanted, *(item.column for item in view.expectations)]))


def view_events(catalog: Catalog, view: FeatureView, events: SourceEvents) -> ViewEvents:
    """The rows that `view` counts of `events`; those it takes as they are if it has neither expectations nor a
    transform. Raises DataError if its code cannot be run here."""
    if view.transform is None and not view.expectations:
        return ViewEvents(events.columns, events.event_time_us, events.offset, events.index, events.partition)
    verdict = Verdict(np.ones(len(events.event_time_us), np.bool_))
    expect_values(view.expectations, events.columns, verdict)
    expect_on_time(view.expectations, events.event_time_us, events.watermark_us, verdict)
    kept = np.flatnonzero(verdict.kept)
    if view.transform is None:
        columns = events.columns if verdict.kept.all() else take(dict(events.columns), kept)
        return _result(events, columns, events.event_time_us[kept], kept, None, verdict)
    source = catalog.source(view.source or "")
    given = take({column.name: events.columns[column.name] for column in source.columns}, kept)
    done = apply_transform(view.transform, given, f"the transform of view {view.name!r}")
    done.row = kept[done.row]
    failed = {int(kept[row]): _reason(error) for row, error in done.failed.items()}
    times = _event_times(catalog, view.transform, source, events, done, failed)
    if failed:
        verdict.reasons |= failed
        verdict.counts[TRANSFORM_FAILED] = len(failed)
    return _result(events, done.columns, times, done.row, done.part, verdict)


def _result(
    events: SourceEvents,
    columns: Mapping[str, pa.Array],
    times_us: Ints,
    row: Ints,
    part: Ints | None,
    verdict: Verdict,
) -> ViewEvents:
    offset, index, partition = events.offset[row], events.index[row], events.partition[row]
    return ViewEvents(columns, times_us, offset, index, partition, row, part, verdict.reasons, verdict.counts)


def _event_times(
    catalog: Catalog,
    transform: Transform,
    source: Source,
    events: SourceEvents,
    done: Transformed,
    failed: dict[int, str],
) -> Ints:
    """The rows' event times; an event with a row of no possible time is added to `failed`, its rows taken out."""
    column = done.columns[source.timestamp]
    times: Ints = np.asarray(column.cast(pa.int64()).fill_null(NO_WATERMARK))
    name = f"the transform gives {source.timestamp!r}"
    wrong = {f"{name} as null": times == NO_WATERMARK}
    wrong[f"{name} outside the years 1 to 9999"] = (times < EARLIEST_US) | (times > LATEST_US)
    if not transform.moves_time:
        wrong[f"{name} another value, and does not name it in its code"] = times != events.event_time_us[done.row]
    elif catalog.clock == "wall":
        latest = events.arrival_us[done.row] + source.max_future_us
        wrong[f"{name} over {source.max_future_us / 1e6:g} s after the arrival"] = times > latest
    for reason, rows in wrong.items():
        for event in np.unique(done.row[rows]).tolist():
            failed.setdefault(event, reason)
    good = ~np.isin(done.row, list(failed))
    if not good.all():
        done.keep(good)
        times = times[good]
    return times


def _reason(error: Exception) -> str:
    text = f"transform: {type(error).__name__}: {error}"
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."
