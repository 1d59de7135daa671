"""What a view showed at past moments: its values for label rows, from the archive and its batch source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog, FeatureView, Source
from headrace.dtypes import arrow_type
from headrace.errors import DataError
from headrace.moments import rfc3339
from headrace.read.joins.past import Past, sources_of
from headrace.read.joins.scans import RowScan
from headrace.read.joins.spill import Space
from headrace.read.joins.view_history import archived_view_events, scan_view_events
from headrace.read.joins.view_join import join_rows
from headrace.read.joins.view_rows import row_scans, row_shape
from headrace.stores.offline import OfflineStore
from headrace.stores.tombstones import Tombstones, load_tombstones

__all__ = ["History", "Past", "sources_of", "view_values"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class History:
    """Where the past lies: the archive, the repo of the batch files, and how far to read the archive.

    `up_to` holds offsets by source and partition (a source or partition that it does not name had nothing);
    None reads all.
    """

    offline: OfflineStore
    repo: Path
    up_to: Mapping[str, Mapping[int, int]] | None = None

    @property
    def forgotten(self) -> Tombstones:
        return load_tombstones(None, self.offline.root, "")

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
        """See Past. Raises DataError for a time whose events retention has deleted."""
        self._refuse_deleted(view, source, since_us)
        return scan_view_events(
            self.offline,
            catalog,
            view,
            source,
            columns,
            up_to=self._limit(source),
            since_us=since_us,
            until_us=until_us,
            space=space,
            places=places,
        )

    def events(
        self,
        catalog: Catalog,
        view: FeatureView,
        source: Source,
        columns: Sequence[str],
        since_us: int | None,
        until_us: int,
    ) -> pa.Table:
        """What `view` counts of `source` with an event time in [since, until], in position order: `columns` and
        `event_time`, then the position.

        Raises DataError for a time whose events retention has deleted.
        """
        self._refuse_deleted(view, source, since_us)
        bounds = {"since_us": since_us, "until_us": until_us}
        return archived_view_events(self.offline, catalog, view, source, columns, up_to=self._limit(source), **bounds)

    def _limit(self, source: Source) -> Mapping[int, int] | None:
        return None if self.up_to is None else self.up_to.get(source.name, {})

    def _refuse_deleted(self, view: FeatureView, source: Source, since_us: int | None) -> None:
        kept_us = self.offline.kept_from_us(source.name)
        if kept_us is not None and (since_us is None or since_us < kept_us):
            raise DataError(_no_longer_kept(view, source, kept_us, since_us))


def view_values(
    catalog: Catalog,
    view: FeatureView,
    features: Sequence[str],
    keys: Sequence[pa.Array[Any]],
    times_us: Ints,
    history: Past,
) -> dict[str, pa.Array]:
    """`features` of `view` as they were at `times_us`, n rows each, in their declared types.

    `keys` are the labels' join keys in the order of `catalog.sorted_join_keys(view)`.
    """
    if not len(times_us):
        return {f.name: pa.nulls(0, arrow_type(f.dtype)) for f in view.features if f.name in features}
    shape = row_shape(catalog, view, features, as_known=False)
    scans = row_scans(catalog, shape, history, int(times_us.min()), int(times_us.max()), Space())
    tables = (table for scan in scans for table in scan.tables(lambda rows: None))
    return join_rows(shape, keys, times_us, tables).columns


def _no_longer_kept(view: FeatureView, source: Source, kept_us: int, since_us: int | None) -> str:
    asked = "all of them" if since_us is None else f"those since {rfc3339(since_us)}"
    return (
        f"Retention has left the events of {source.name!r} from {rfc3339(kept_us)} on, view {view.name!r} needs "
        f"{asked} for these rows; leave out the rows that look back further."
    )
