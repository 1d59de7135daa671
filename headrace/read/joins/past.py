"""Where rows of the past come from, as joins see it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from headrace.catalog.definitions import Catalog, FeatureView, Source, write_source
from headrace.read.joins.scans import RowScan
from headrace.read.joins.spill import Space
from headrace.stores.tombstones import Tombstones

__all__ = ["Past", "sources_of"]


class Past(Protocol):
    """Where rows of the past come from."""

    @property
    def repo(self) -> Path:
        """The folder that paths of batch files are relative to."""

    @property
    def forgotten(self) -> Tombstones:
        """What was forgotten, and is no longer read from batch files."""

    def scan(
        self,
        catalog: Catalog,
        view: FeatureView,
        source: Source,
        columns: Sequence[str],
        since_us: int | None,
        until_us: int,
        space: Space,
        *,
        places: bool = True,
    ) -> RowScan:
        """What `view` counts of `source` with an event time in [since, until]: `columns` and `event_time`, and if
        `places` the position, and PART where a transform may make several rows of an event.

        Raises DataError for a time whose events are no longer kept.
        """


def sources_of(catalog: Catalog, view: FeatureView) -> list[Source]:
    """The archived sources that `view` reads: its own, and its direct writes if it takes them."""
    own = [catalog.source(view.source)] if view.source is not None else []
    return own if view.kind == "windowed" else [*own, write_source(catalog, view)]
