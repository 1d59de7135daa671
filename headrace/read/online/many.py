"""The lookup of many rows: each view is read at once, as arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.catalog.definitions import FeatureView
from headrace.read.online.reads import Blobs, Marks
from headrace.read.online.values import view_reader
from headrace.read.online.vectors import ManyRows
from headrace.stores.codec.header import OLDEST_US, ROWS, TILES, Stacked, brief_head, form_of, stack, unpack_header

__all__ = ["ManyReader"]

Ints = NDArray[np.int64]
Head = tuple[Ints, Stacked | None]
"""Of one view's values: the newest event time in each, before all time without one; and all as arrays, if alike."""


class ManyReader:
    """Reads rows of several views, in their order."""

    def __init__(self, views: Sequence[FeatureView]) -> None:
        self._kinds = [TILES if view.kind == "windowed" else ROWS for view in views]
        self._readers = [view_reader(view) for view in views]

    def heads(self, steps: Blobs, marks: Marks) -> list[Head]:
        """The heads of every view's values. Values that do not count any more are taken out of `steps`."""
        found: list[Head] = []
        for i, (kind, held) in enumerate(zip(self._kinds, steps, strict=True)):
            stacked = stack(held, kind, marks.builds[i])
            found.append((_newest_us(held, i, kind, marks), None) if stacked is None else (stacked.newest_us, stacked))
        return found

    def rows(self, steps: Blobs, heads: Sequence[Head], t_us: Ints) -> list[ManyRows]:
        """What every view shows at the rows' `t_us`, none of which precedes what its values hold."""
        held = zip(self._readers, steps, heads, strict=True)
        return [reader.read(blobs, t_us, *head) for reader, blobs, head in held]


def _newest_us(held: list[bytes | None], step: int, kind: int, marks: Marks) -> Ints:
    times_us = np.full(len(held), OLDEST_US, np.int64)
    for row, blob in enumerate(held):
        if blob is None:
            continue
        form, _, build, newest_us = brief_head(blob)
        if build != marks.builds[step]:
            marks.refuse_newer(build, step)
            held[row] = None
            continue
        if form != form_of(kind):
            unpack_header(blob, kind)
        times_us[row] = newest_us
    return times_us
