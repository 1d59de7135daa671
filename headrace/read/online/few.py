"""The lookup of few rows: each is read by itself, as Python's values; arrays would cost more to set up than to fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from headrace.catalog.definitions import FeatureView
from headrace.read.online.plain_reader import PlainReader
from headrace.read.online.reads import Blobs, Marks
from headrace.read.online.vectors import FewRows, Line
from headrace.read.online.window_reader import OUT_OF_RANGE, WindowReader
from headrace.stores.codec.header import OLDEST_US, ROWS, TILES, brief_head, form_of, unpack_header

__all__ = ["FEW_ROWS", "FewReader", "Head", "Heads", "line_reader"]

FEW_ROWS = 16
"""Up to so many rows are read one by one, more as arrays."""

Heads = list[tuple[int, int]]
"""By step: how many positions the value's header has and its newest event time; before all time without a value."""

Head = tuple[bytes | None, int, int]
"""One value that counts (None: there is none), and its head as in Heads."""

_NO_HEAD = (0, OLDEST_US)


class LineReader(Protocol):
    """Reads the rows of one view; `unseen` is the row of a key without a value."""

    unseen: Line

    def line(self, blob: bytes, positions: int, t_us: int, newest_us: int) -> Line:
        """The row that `blob` shows at `t_us`."""


def line_reader(view: FeatureView) -> LineReader:
    """The reader of `view`, compiled."""
    return WindowReader(view) if view.kind == "windowed" else PlainReader(view)


class FewReader:
    """Reads rows of several views, in their order."""

    def __init__(self, views: Sequence[FeatureView]) -> None:
        self._views = views
        self._kinds = [TILES if view.kind == "windowed" else ROWS for view in views]
        self._forms = [form_of(kind) for kind in self._kinds]
        self._readers = [line_reader(view) for view in views]
        self._windowed = [i for i, view in enumerate(views) if view.kind == "windowed"]

    def heads(self, rows: Blobs, marks: Marks) -> list[Heads]:
        """The heads of every row's values. Values that do not count any more are taken out of `rows`."""
        return [self._heads(blobs, marks) for blobs in rows]

    def _heads(self, blobs: list[bytes | None], marks: Marks) -> Heads:
        heads, forms, builds = [], self._forms, marks.builds
        for i, blob in enumerate(blobs):
            if blob is None:
                heads.append(_NO_HEAD)
                continue
            form, positions, build, newest_us = brief_head(blob)
            if build != builds[i]:
                marks.refuse_newer(build, i)
                blobs[i] = None
                heads.append(_NO_HEAD)
                continue
            if form != forms[i]:
                unpack_header(blob, self._kinds[i])
            heads.append((positions, newest_us))
        return heads

    def head(self, step: int, blob: bytes | None, marks: Marks) -> Head:
        """One value, if it counts, and its head. Raises UnavailableError for one of a later build than the markers'."""
        if blob is not None:
            form, positions, build, newest_us = brief_head(blob)
            if build != marks.builds[step]:
                marks.refuse_newer(build, step)
            else:
                if form != self._forms[step]:
                    unpack_header(blob, self._kinds[step])
                return blob, positions, newest_us
        return None, *_NO_HEAD

    def line(self, step: int, head: Head, t_us: int, beyond: dict[tuple[int, int], int]) -> Line:
        """What one view shows at `t_us`; else as `lines`."""
        blob, positions, newest_us = head
        reader = self._readers[step]
        found = reader.unseen if blob is None else reader.line(blob, positions, t_us, newest_us)
        return self._without_out_of_range(step, found, beyond)

    def _without_out_of_range(self, step: int, line: Line, beyond: dict[tuple[int, int], int]) -> Line:
        status, time_us, values, whole = line
        if whole or OUT_OF_RANGE not in values:
            return line
        for place in [place for place, value in enumerate(values) if value is OUT_OF_RANGE]:
            beyond[step, place] = beyond.get((step, place), 0) + 1
        return status, time_us, [None if value is OUT_OF_RANGE else value for value in values], False

    def lines(
        self, blobs: Sequence[bytes | None], heads: Heads, t_us: int, beyond: dict[tuple[int, int], int]
    ) -> list[Line]:
        """One row: what every view shows at `t_us`, which does not precede what its values hold. `beyond` counts, by
        numbers of view and feature, nulls that hide a value."""
        found = [
            reader.unseen if blob is None else reader.line(blob, positions, t_us, newest_us)
            for reader, blob, (positions, newest_us) in zip(self._readers, blobs, heads, strict=True)
        ]
        for i in self._windowed:
            if not found[i][3]:
                found[i] = self._without_out_of_range(i, found[i], beyond)
        return found

    def rows(self, view: int, lines: Sequence[Sequence[Line]], beyond: Mapping[tuple[int, int], int]) -> FewRows:
        """All rows of one view."""
        features = self._views[view].features
        statuses, times_us, rows, _ = zip(*[row[view] for row in lines], strict=True)
        counts = {features[place].name: n for (number, place), n in beyond.items() if number == view}
        return FewRows(features, rows, statuses, times_us, counts)
