"""Rows that Feast hands over, into plain and batch views: the newest event time of a key wins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog, FeatureView
from headrace.compute.forgotten import gone_file_rows
from headrace.errors import RequestError
from headrace.feast_plugin.shared import Shared
from headrace.feast_plugin.values import column_of, micros_of
from headrace.stores.markers import Markers
from headrace.stores.offline import OfflineStore
from headrace.stores.tombstones import load_tombstones
from headrace.stores.view_writes import Arrived, write_rows

__all__ = ["Row", "by_creation", "write_view_rows"]

Row = tuple[Any, dict[str, Any], datetime, datetime | None]
"""What Feast writes: entity key, values by feature, event time, created time."""

Ints = NDArray[np.int64]


def write_view_rows(shared: Shared, catalog: Catalog, view: FeatureView, rows: Sequence[Row]) -> None:
    """Write rows into a plain or batch view, as a materialization does; rows from before their key was forgotten are
    left out.

    Raises RequestError for a view whose values are computed from events, and for a value of another type.
    """
    if view.kind == "windowed":
        raise RequestError(
            f"{view.name!r} is computed from the events of {view.source!r} and takes no rows; push the events instead, "
            "and give feature_store.yaml batch_engine: headrace.feast_plugin.HeadraceBatchEngine, which leaves such "
            "views to the worker."
        )
    arrived = _arrived(catalog, view, by_creation(rows))
    tombstones = load_tombstones(shared.store, OfflineStore(shared.settings.data_dir).root, catalog.project)
    if tombstones:
        gone = gone_file_rows(catalog, view, arrived.columns, arrived.event_time_us, tombstones)
        arrived = arrived.take(np.flatnonzero(~gone))
    with shared.writing:
        build = Markers(shared.store, catalog.project).begin_build(view)
        write_rows(shared.online, catalog, view, arrived, build=build)


def by_creation(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows, a later created one after an earlier one: of equal event times the last wins."""
    if all(row[3] is None for row in rows):
        return rows
    created_us = [-(2**63) if row[3] is None else int(micros_of([row[3]])[0]) for row in rows]
    return [rows[i] for i in np.argsort(created_us, kind="stable").tolist()]


def _arrived(catalog: Catalog, view: FeatureView, rows: Sequence[Row]) -> Arrived:
    keys = [dict(zip(row[0].join_keys, row[0].entity_values, strict=True)) for row in rows]
    columns: dict[str, pa.Array] = {}
    for column in catalog.join_keys(view):
        columns[column.name] = column_of([key[column.name] for key in keys], column)
    for feature in view.features:
        columns[feature.name] = column_of([row[1][feature.name] for row in rows], feature)
    run = time.time_ns() // 1_000
    return Arrived(columns, micros_of([row[2] for row in rows]), np.full(len(rows), run), np.arange(len(rows)))
