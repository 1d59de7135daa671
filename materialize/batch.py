"""Batch materialization: the newest row per key of a view's file, into the online store."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from headrace.catalog.definitions import Catalog, FeatureView
from headrace.compute.forgotten import gone_file_rows, living_rows
from headrace.errors import RequestError
from headrace.read.key_codes import KeyCodes
from headrace.settings import Settings
from headrace.stores.batch_files import BatchRows, read_batch_rows
from headrace.stores.catalogs import find_project, load_catalog
from headrace.stores.codec.rows import BATCH
from headrace.stores.connection import open_store
from headrace.stores.keys import entity_prefix, group_keys, layout_field
from headrace.stores.markers import Markers
from headrace.stores.offline import OfflineStore
from headrace.stores.online import OnlineStore
from headrace.stores.stream import EventStream
from headrace.stores.view_writes import Arrived, write_rows
from headrace.telemetry import get_logger
from materialize.erase import ForgottenKeys
from materialize.layouts import Kept, catalog_of

__all__ = ["Materialized", "materialize_rows", "materialize_view"]

CHUNK_ROWS = 20_000

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Materialized:
    """What one run did: rows written (one per key), rows with a null join key, rows refused as unusable."""

    written: int
    null_keys: int
    refused: int


def materialize_view(
    settings: Settings,
    view_name: str,
    start_us: int | None = None,
    end_us: int | None = None,
    progress: bool = True,
) -> int:
    """Write the newest row per key with an event time in [start, end] (all by default); returns how many keys.

    A key keeps what it holds if that is newer, so it is safe to repeat and to run beside the stream. A layout that a
    rebuild has begun meanwhile is given the rows too. Raises UnknownNameError, RequestError for a view without a file
    or not served online, DataError for the file.
    """
    store = open_store(settings)
    written: dict[str, int] = {}
    try:
        project = find_project(settings)
        markers, online = Markers(store, project), OnlineStore(store)
        forgotten = ForgottenKeys(EventStream(store, project), OfflineStore(settings.data_dir))
        while left := _layouts(load_catalog(store, project), view_name, written):
            view, catalog = left[0]
            columns = list(dict.fromkeys([*catalog.sorted_join_keys(view), *view.features]))
            rows = read_batch_rows(view, columns, settings.repo, start_us, end_us)
            kept = Kept(view, catalog, markers.begin_build(view))
            done = materialize_rows(online, kept, rows, forgotten, progress)
            get_logger().info(
                "materialized", view=view_name, keys=done.written, null_keys=done.null_keys, refused=done.refused
            )
            written[layout_field(view)] = done.written
    finally:
        store.close()
    return next(iter(written.values()))


def _layouts(catalog: Catalog, name: str, done: Collection[str]) -> list[tuple[FeatureView, Catalog]]:
    """The view and its layouts under construction that are not yet `done`, each with the catalog that knows it."""
    arriving = [layout for layout in catalog.arriving if layout.view.name == name]
    found = [(_materializable(catalog, name), catalog)]
    found += [(one.view, catalog_of(catalog, one)) for one in arriving if one.view.batch is not None]
    return [(view, known) for view, known in found if layout_field(view) not in done]


def materialize_rows(
    online: OnlineStore, kept: Kept, rows: BatchRows, forgotten: ForgottenKeys, progress: bool = False
) -> Materialized:
    """Write the winners among `rows` in chunks into a layout, without what was forgotten. Of two runs the later one's
    row wins at equal event times."""
    catalog, view = kept.catalog, kept.view
    rows = living_rows(catalog, view, rows, forgotten.tombstones)
    winners, null_keys = _newest_per_key(catalog, view, rows)
    run = time.time_ns() // 1_000
    shown = progress and sys.stderr.isatty()
    with Progress(transient=True, disable=not shown, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"materialize {view.name}", total=len(winners))
        for chosen in _chunks(winners):
            arrived = _arrived(rows, chosen, run)
            times_us = arrived.event_time_us
            gone = gone_file_rows(catalog, view, arrived.columns, times_us, forgotten.tombstones)
            arrived = arrived.take(np.flatnonzero(~gone)) if gone.any() else arrived
            write_rows(online, catalog, view, arrived, BATCH, kept.build)
            columns = [arrived.columns[column.name] for column in catalog.sorted_join_keys(view)]
            forgotten.settle([(kept, group_keys(entity_prefix(catalog.project, view.entities), columns)[1])])
            bar.advance(task, len(chosen))
    return Materialized(len(winners), null_keys, rows.refused)


def _materializable(catalog: Catalog, name: str) -> FeatureView:
    view = catalog.view(name)
    if view.batch is None:
        able = ", ".join(other.name for other in catalog.views if other.batch is not None) or "none"
        raise RequestError(
            f"Only a view with a batch source is materialized, {name!r} has none; those that have one: {able}."
        )
    if not view.online:
        raise RequestError(f"View {name!r} is not served online; set online=True and run headrace apply.")
    return view


def _newest_per_key(catalog: Catalog, view: FeatureView, rows: BatchRows) -> tuple[Ints, int]:
    """Numbers of the winning rows (the last of each key in the given order), and how many rows have a null key."""
    keys = [rows.table[column.name].combine_chunks() for column in catalog.sorted_join_keys(view)]
    codes = KeyCodes(keys, rows.table.num_rows).labels
    last = np.full(int(codes.max(initial=-1)) + 1, -1, np.int64)
    given = np.flatnonzero(codes >= 0)
    np.maximum.at(last, codes[given], given)
    return np.sort(last), int((codes < 0).sum())


def _chunks(winners: Ints) -> Iterator[Ints]:
    for start in range(0, len(winners), CHUNK_ROWS):
        yield winners[start : start + CHUNK_ROWS]


def _arrived(rows: BatchRows, chosen: Ints, run: int) -> Arrived:
    """Rows as `write_rows` takes them; a batch row's place in the order is the run that wrote it."""
    table: pa.Table = rows.table.take(chosen)
    return Arrived(
        {name: table[name].combine_chunks() for name in table.column_names},
        rows.event_time_us[chosen],
        np.full(len(chosen), run, np.int64),
        np.zeros(len(chosen), np.int64),
    )
