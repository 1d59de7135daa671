"""Which events a label knew of: those that had arrived before its time, as parts that have every event or none.

A label knows the first m events of its key in the order of arrival. Any m is a sum of powers of two, so these are a few
blocks of 2^k events that begin at a multiple of 2^k: with the blocks in place of the keys, the labels of one k are
joined with whole blocks by event time alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from headrace.windows.sorted_events import SortedEvents

__all__ = ["known_blocks"]

Ints = NDArray[np.int64]


def known_blocks(
    keys: Ints, arrival_us: Ints, label_keys: Ints, label_times_us: Ints
) -> Iterator[tuple[Ints, Ints, Ints, Ints]]:
    """(events, their blocks, labels, their blocks), numbers as given: every label once with each block of events that
    it knew, those that arrived before its time."""
    by_arrival = SortedEvents.of(keys, arrival_us, ())
    begin = by_arrival.first_of(label_keys)
    known = by_arrival.first_at(label_keys, label_times_us) - begin
    known[label_keys < 0] = 0
    for level in range(int(known.max(initial=0)).bit_length()):
        labels = np.flatnonzero(known >> level & 1)
        if len(labels):
            start = begin[labels] + (known[labels] >> (level + 1) << (level + 1))
            starts, blocks = np.unique(start, return_inverse=True)
            events = (starts[:, None] + np.arange(1 << level)).ravel()
            yield by_arrival.order[events], np.repeat(np.arange(len(starts)), 1 << level), labels, blocks
