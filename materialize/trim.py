"""Trimming: takes out of the streams what both consumers have had for long enough.

Up to where is written down before it is done: a consumer that finds nothing where it stands can tell that it was here.
The newest entry always stays, for the running totals stand in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.catalog.definitions import Source
from headrace.stores.layout_markers import store_time_us
from headrace.stores.markers import Applied, Markers
from headrace.stores.stream import EventStream, arrival_us, offset_at

__all__ = ["Trimmer"]


class Trimmer:
    """Keeps the streams of one project short; only the archiver, of which there is one, has one."""

    def __init__(self, stream: EventStream, markers: Markers, keep_s: float) -> None:
        self._stream = stream
        self._markers = markers
        self._keep_us = int(keep_s * 1_000_000)

    def step(self, archived: Mapping[tuple[str, int], tuple[Source, Applied]]) -> int:
        """Trims every partition behind its marker of the worker and behind its place in `archived`; returns how many
        entries went. What arrived at most the source's dedup horizon, or the time to keep, before that place stays;
        before the present, where both have all."""
        applied = self._markers.applied("source", archived)
        published = self._markers.applied("archived", archived)
        done = 0
        for place, (source, in_table) in archived.items():
            marks = (applied[place], published[place], in_table)
            done += self._trim(source, place[1], min((mark.offset if mark else 0) for mark in marks))
        return done

    def _trim(self, source: Source, partition: int, behind: int) -> int:
        newest = self._stream.head(source.name, partition) if behind else None
        if newest is None:
            return 0
        behind = min(behind, newest.offset)  # of a stream that lost its end the newest entry stays: it has the count
        # Nothing may ever come after what both have: pushes that the budget refuses wait for this to go on.
        reached_us = store_time_us(self._stream.store) if newest.offset == behind else arrival_us(behind)
        keep_us = max(source.dedup_horizon_us, self._keep_us)
        upto = min(offset_at(reached_us - keep_us), behind) - 1
        last = self._stream.last_upto(source.name, partition, upto) if upto > 0 else None
        if last is None:
            return 0
        self._markers.raise_applied(
            "trimmed", source.name, partition, Applied(last.offset, last.count - 1, last.total, None)
        )
        return self._stream.trim(source.name, partition, last.offset)
