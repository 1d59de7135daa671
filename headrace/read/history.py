"""What a view showed at past moments: its values for label rows, from the archive and its batch source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Aggregation, Catalog, Column, FeatureView, Source, write_source
from headrace.compute.forgotten import living_rows
from headrace.dtypes import arrow_type
from headrace.errors import DataError
from headrace.moments import rfc3339
from headrace.read.key_codes import KeyCodes
from headrace.read.view_history import archived_view_events
from headrace.stores.batch_files import read_batch_rows
from headrace.stores.offline import OfflineStore
from headrace.stores.tombstones import Tombstones, load_tombstones
from headrace.windows.point_in_time import aggregate_windows, latest_rows
from headrace.windows.window import tail_us

__all__ = ["History", "Past", "sources_of", "view_values"]

Ints = NDArray[np.int64]


class Past(Protocol):
    """Where rows of the past come from."""

    @property
    def repo(self) -> Path:
        """The folder that paths of batch files are relative to."""

    @property
    def forgotten(self) -> Tombstones:
        """What was forgotten, and is no longer read from batch files."""

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
        `event_time`."""


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

    def events(
        self,
        catalog: Catalog,
        view: FeatureView,
        source: Source,
        columns: Sequence[str],
        since_us: int | None,
        until_us: int,
    ) -> pa.Table:
        """What `view` counts of `source` with an event time in [since, until], in position order.

        Raises DataError for a time whose events retention has deleted.
        """
        kept_us = self.offline.kept_from_us(source.name)
        if kept_us is not None and (since_us is None or since_us < kept_us):
            raise DataError(_no_longer_kept(view, source, kept_us, since_us))
        limit = None if self.up_to is None else self.up_to.get(source.name, {})
        bounds = {"since_us": since_us, "until_us": until_us}
        return archived_view_events(self.offline, catalog, view, source, columns, up_to=limit, **bounds)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a last-value view that labels may see: key codes, times, features."""

    codes: Ints
    times_us: Ints
    features: pa.Table


def sources_of(catalog: Catalog, view: FeatureView) -> list[Source]:
    """The archived sources that `view` reads: its own, and its direct writes if it takes them."""
    own = [catalog.source(view.source)] if view.source is not None else []
    return own if view.kind == "windowed" else [*own, write_source(catalog, view)]


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
    codes = KeyCodes(keys, len(times_us))
    if view.kind == "windowed":
        return _windowed(catalog, view, features, codes, times_us, history)
    return _last_rows(catalog, view, features, codes, times_us, history)


def _windowed(
    catalog: Catalog, view: FeatureView, features: Sequence[str], codes: KeyCodes, times_us: Ints, history: Past
) -> dict[str, pa.Array]:
    source = catalog.source(view.source or "")
    aggregations = [agg for agg in view.aggregations if agg.feature in features]
    columns = list(dict.fromkeys(agg.column for agg in aggregations if agg.column != "*"))
    names = [column.name for column in catalog.sorted_join_keys(view)]
    earliest, latest = _earliest_us(aggregations, int(times_us.min())), int(times_us.max()) - 1
    rows = history.events(catalog, view, source, [*names, *columns], earliest, latest)
    event_codes = codes.of([_one(rows[name]) for name in names], rows.num_rows)
    seen = np.flatnonzero(event_codes >= 0)
    rows = rows.select(list(dict.fromkeys([*columns, "event_time"]))).take(seen)
    given = {name: _one(rows[name]) for name in columns}
    return aggregate_windows(event_codes[seen], _times_us(rows), given, codes.labels, times_us, aggregations)


def _earliest_us(aggregations: Sequence[Aggregation], first_label_us: int) -> int | None:
    if any(agg.window_us is None for agg in aggregations):
        return None
    return min(int(tail_us(first_label_us, agg.window_us, agg.hop_us)) for agg in aggregations)


def _last_rows(
    catalog: Catalog, view: FeatureView, features: Sequence[str], codes: KeyCodes, times_us: Ints, history: Past
) -> dict[str, pa.Array]:
    keys = catalog.sorted_join_keys(view)
    wanted = [feature for feature in view.features if feature.name in features]
    since_us = int(times_us.min()) - view.ttl_us if view.ttl_us else None
    until_us = int(times_us.max())
    parts = []
    if view.batch is not None:
        distinct = list(dict.fromkeys([*keys, *wanted]))
        found = read_batch_rows(view, distinct, history.repo, since_us, until_us)
        found = living_rows(catalog, view, found, history.forgotten)
        parts.append(_seen(codes, found.table, found.event_time_us, keys, wanted))
    for source in sources_of(catalog, view):
        columns = [column.name for column in (*keys, *wanted)]
        table = history.events(catalog, view, source, columns, since_us, until_us)
        parts.append(_seen(codes, table, _times_us(table), keys, wanted))
    rows = _Rows(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.times_us for part in parts]),
        pa.concat_tables([part.features for part in parts]),
    )
    return _newest(rows, wanted, codes.labels, times_us, view.ttl_us)


def _seen(codes: KeyCodes, table: pa.Table, times_us: Ints, keys: Sequence[Column], wanted: Sequence[Column]) -> _Rows:
    """The rows of `table` whose key some label has."""
    row_codes = codes.of([_one(table[key.name]) for key in keys], table.num_rows)
    seen = np.flatnonzero(row_codes >= 0)
    schema = pa.schema([pa.field(feature.name, arrow_type(feature.dtype)) for feature in wanted])
    return _Rows(row_codes[seen], times_us[seen], table.select(schema.names).take(seen).cast(schema))


def _newest(
    rows: _Rows, wanted: Sequence[Column], label_codes: Ints, times_us: Ints, ttl_us: int
) -> dict[str, pa.Array]:
    """The newest row at or before each time, whole, null past its TTL; of equal times the one given later."""
    if not len(rows.codes):
        return {feature.name: pa.nulls(len(times_us), arrow_type(feature.dtype)) for feature in wanted}
    found = latest_rows(rows.codes, rows.times_us, label_codes, times_us)
    missing = found < 0
    if ttl_us:
        missing |= rows.times_us[np.maximum(found, 0)] < times_us - ttl_us
    chosen = pa.array(np.where(missing, 0, found), mask=missing)
    return {feature.name: _one(rows.features[feature.name]).take(chosen) for feature in wanted}


def _times_us(rows: pa.Table) -> Ints:
    times: Ints = np.asarray(_one(rows["event_time"]).cast(pa.int64()))
    return times


def _no_longer_kept(view: FeatureView, source: Source, kept_us: int, since_us: int | None) -> str:
    asked = "all of them" if since_us is None else f"those since {rfc3339(since_us)}"
    return (
        f"Retention has left the events of {source.name!r} from {rfc3339(kept_us)} on, view {view.name!r} needs "
        f"{asked} for these rows; leave out the rows that look back further."
    )


def _one(column: pa.ChunkedArray[Any]) -> Any:
    return column.combine_chunks()
