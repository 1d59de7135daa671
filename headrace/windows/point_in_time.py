"""The point-in-time kernel: for every label row, what the events before it come to. Pure arrays, no I/O.

Events are sorted by key and time; a label's window is then one slice, its bounds found by binary search for all
windows together. Counts and sums are differences of prefix sums of integers (a float is cut into limbs, so nothing is
rounded on the way), extremes come from pieces of powers of two, and the functions that read the values themselves have
their own ways (listed.py). So a value depends on the events in its window alone, to the last bit, never on its
neighbours or on the parts in which the events came.

Events may come in parts of any size, in any order: what a part comes to merges with what is held. That is how a key
larger than memory is joined, and how only those events count that a label knew of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.dtypes import arrow_type
from headrace.windows.aggregates import out_of_range, result_array, state_fields
from headrace.windows.arrivals import known_blocks
from headrace.windows.functions import Aggregation, parse_function
from headrace.windows.listed import Entries, Given, answer, entries_of, finish, merge_entries
from headrace.windows.slice_states import SliceStates
from headrace.windows.sorted_events import SortedEvents
from headrace.windows.window import tail_us

__all__ = ["Events", "WindowJoin", "aggregate_windows"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Events:
    """n events in any order: `keys` int64 codes >= 0, `times_us`, and the columns that the functions name.

    `places` order events of one key and time: int64 arrays, the most significant first. None takes the given order,
    which says nothing of events of another part.
    """

    keys: Ints
    times_us: Ints
    columns: Mapping[str, pa.Array]
    places: tuple[Ints, ...] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def at(self, rows: Ints, keys: Ints) -> Events:
        """The events by number, under other keys."""
        chosen = pa.array(rows)
        columns = {name: column.take(chosen) for name, column in self.columns.items()}
        places = (np.arange(len(self)),) if self.places is None else self.places
        return Events(keys, self.times_us[rows], columns, tuple(place[rows] for place in places))


class WindowJoin:
    """n labels and the aggregations over the windows before them, to which events are added part by part.

    `keys` are int64 codes, -1 for a key without events. `once` promises that the events of a key come in one part,
    which spares holding what the functions of values need to merge.
    """

    def __init__(self, keys: Ints, times_us: Ints, aggregations: Sequence[Aggregation], *, once: bool = False) -> None:
        self._order = SortedEvents.of(keys + 1, times_us, ()).order
        self._keys, self._times_us = keys[self._order], times_us[self._order]
        self._aggregations, self._once = aggregations, once
        self._windows = list(dict.fromkeys((agg.window_us, agg.hop_us) for agg in aggregations))
        wanted = [(self._window(agg), field) for agg in aggregations for field in state_fields(agg)]
        self._numbers = SliceStates(wanted, len(keys))
        self._listed = [agg for agg in aggregations if not state_fields(agg)]
        self._entries: dict[str, Entries] = {}
        self._answers: dict[str, pa.Array] = {}
        self._parts = 0
        self.beyond: dict[str, int] = {}
        """How many values of a feature are null because its type or its bound cannot hold them; once `columns` ran."""

    def _window(self, agg: Aggregation) -> int:
        return self._windows.index((agg.window_us, agg.hop_us))

    def add(self, events: Events) -> None:
        """Counts a part of the events."""
        self._add(events, self._keys, self._times_us, None)

    def add_known(self, events: Events, arrival_us: Ints) -> None:
        """Counts a part of the events for those labels that lie after their arrival."""
        for rows, blocks, labels, label_blocks in known_blocks(events.keys, arrival_us, self._keys, self._times_us):
            self._add(events.at(rows, blocks), label_blocks, self._times_us[labels], labels)

    def _add(self, events: Events, keys: Ints, times_us: Ints, rows: Ints | None) -> None:
        sorted_events = SortedEvents.of(events.keys, events.times_us, events.places if self._listed else ())
        hi = sorted_events.first_at(keys, times_us)
        lo = [sorted_events.first_at(keys, tail_us(times_us, *window)) for window in self._windows]
        order = pa.array(sorted_events.order)
        columns = {name: events.columns[name].take(order) for name in self._columns()}
        self._numbers.add(columns, lo, hi, rows)
        given: dict[str, Given] = {}
        for agg in self._listed:
            if agg.column not in given:
                given[agg.column] = Given.of(columns[agg.column], _places(events, sorted_events.order))
            self._add_listed(agg, given[agg.column], lo[self._window(agg)], hi, rows)
        self._parts += 1

    def _columns(self) -> list[str]:
        return list(dict.fromkeys(agg.column for agg in self._aggregations if agg.column != "*"))

    def _add_listed(self, agg: Aggregation, given: Given, lo: Ints, hi: Ints, rows: Ints | None) -> None:
        if self._once and rows is None:
            self._answers[agg.feature] = answer(agg, given, lo, hi)
            return
        part = entries_of(agg, given, lo, hi)
        if rows is not None:
            part = Entries(rows[part.labels], part.columns, part.values)
        held = self._entries.get(agg.feature)
        self._entries[agg.feature] = part if held is None else merge_entries(agg, held, part)

    def columns(self) -> dict[str, pa.Array]:
        """Every aggregation's value for every label, as columns of the declared types."""
        if not self._parts:
            self.add(_no_events(self._aggregations))
        back = np.empty_like(self._order)
        back[self._order] = np.arange(len(self._order))
        return {agg.feature: self._column(agg).take(pa.array(back)) for agg in self._aggregations}

    def _column(self, agg: Aggregation) -> pa.Array:
        fields = state_fields(agg)
        if fields:
            state = self._numbers.state(fields, self._window(agg))
            self.beyond[agg.feature] = int(np.count_nonzero(out_of_range(agg, state)))
            return result_array(agg, state)
        column = self._answers.get(agg.feature)
        if column is None:
            column = finish(agg, self._entries[agg.feature], len(self._keys))
        self.beyond[agg.feature] = column.null_count if parse_function(agg.function).base == "count_distinct" else 0
        return column


def _places(events: Events, order: Ints) -> tuple[Ints, ...]:
    places = (np.arange(len(events)),) if events.places is None else events.places
    return tuple(column[order] for column in (events.times_us, *places))


def _no_events(aggregations: Sequence[Aggregation]) -> Events:
    none = np.empty(0, np.int64)
    columns = {agg.column: pa.nulls(0, arrow_type(agg.input_dtype)) for agg in aggregations if agg.column != "*"}
    return Events(none, none, columns)


def aggregate_windows(
    keys: Ints,
    times_us: Ints,
    columns: Mapping[str, pa.Array],
    label_keys: Ints,
    label_times_us: Ints,
    aggregations: Sequence[Aggregation],
) -> dict[str, pa.Array]:
    """Every aggregation's value for every label, as columns of the declared types.

    Events are given in position order: `keys` int64 codes >= 0, `times_us`, and the `columns` that the
    aggregations name, all of one length. `label_keys` uses the same codes, -1 for a key without events.
    """
    join = WindowJoin(label_keys, label_times_us, aggregations, once=True)
    join.add(Events(keys, times_us, columns))
    return join.columns()
