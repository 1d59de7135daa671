"""Batch materialization: the newest row per key of a view's file, into the online store.

The file is read for what decides (join keys, times, and columns whose values may be unusable), until the newest row of
every key is known, and once more for the rows themselves. Nothing is written before the first reading has succeeded.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass

import redis

from headrace.catalog.definitions import Catalog, FeatureView
from headrace.errors import RequestError, UnavailableError
from headrace.settings import Settings
from headrace.stores.batch_files import BatchScan
from headrace.stores.catalogs import find_project, load_catalog
from headrace.stores.connection import open_store
from headrace.stores.keys import layout_field
from headrace.stores.markers import Markers
from headrace.stores.materialized import MaterializedMarks
from headrace.stores.offline import OfflineStore
from headrace.stores.one_run import one_run
from headrace.stores.stream import EventStream
from headrace.telemetry import get_logger
from materialize.erase import ForgottenKeys
from materialize.layouts import Kept, catalog_of
from materialize.newest import find_newest
from materialize.newest_writer import kept_columns, write_winners
from materialize.progress import Progressing, silent

__all__ = [
    "DEFAULT_MEMORY",
    "Materialized",
    "load_rows",
    "materializable_views",
    "materialize",
    "materialize_incremental",
    "materialize_view",
]

DEFAULT_MEMORY = 2_000_000_000

log = get_logger()


@dataclass(frozen=True, slots=True)
class Materialized:
    """What one run did for one layout of a view.

    `keys` were found in the file, of which `written` are the store's now, `kept` had a newer row there, `forgotten`
    were left out. Rows that count for nothing: `null_keys` with a null join key, `refused` as unusable. `newest_us` is
    the latest event time of a usable row, None for none; `start_us` is where the run began, None: at the first.
    """

    view: str
    keys: int
    written: int
    kept: int
    forgotten: int
    null_keys: int
    refused: int
    newest_us: int | None
    start_us: int | None


def materialize_view(
    settings: Settings,
    view_name: str,
    start_us: int | None = None,
    end_us: int | None = None,
    progress: bool = True,
) -> int:
    """As `materialize`; returns how many keys the file has in that time."""
    return materialize(settings, view_name, start_us, end_us, progress=progress).keys


def materialize(
    settings: Settings,
    view_name: str,
    start_us: int | None = None,
    end_us: int | None = None,
    *,
    progress: bool = True,
    memory_bytes: int = DEFAULT_MEMORY,
) -> Materialized:
    """Write the newest row per key with an event time in [start, end] (all by default).

    A key keeps what it holds if that is newer, so it is safe to repeat and to run beside the stream. A layout that a
    rebuild has begun meanwhile is given the rows too. Raises UnknownNameError, RequestError for a view without a file
    or not served online, DataError for the file, UnavailableError and StoreLostError when the store fails: then some
    rows are written, and it is to be run again.
    """
    return _Job(settings, view_name, progress, memory_bytes).run(start_us, end_us)


def materialize_incremental(
    settings: Settings,
    view_name: str,
    end_us: int | None = None,
    *,
    progress: bool = True,
    memory_bytes: int = DEFAULT_MEMORY,
) -> Materialized:
    """`materialize` from the newest row that earlier runs have read (included), up to `end` (by default the present,
    under the event clock everything).

    A layout that no earlier run has given its rows is given all. Raises as `materialize`.
    """
    return _Job(settings, view_name, progress, memory_bytes, incremental=True).run(None, end_us)


def materializable_views(settings: Settings) -> list[str]:
    """The names of all views that have a batch source and are served online."""
    with closing(open_store(settings)) as store:
        catalog = load_catalog(store, find_project(settings))
    return [view.name for view in catalog.views if view.batch is not None and view.online]


class _Job:
    """One run for one view, over all its layouts."""

    def __init__(
        self, settings: Settings, name: str, progress: bool, memory_bytes: int, incremental: bool = False
    ) -> None:
        self._settings, self._name, self._memory_bytes = settings, name, memory_bytes
        self._incremental = incremental
        self._progress = Progressing(f"materialize {name}") if progress else silent()
        self._project = find_project(settings)

    def run(self, start_us: int | None, end_us: int | None) -> Materialized:
        """Does it; what became of the layout that serves."""
        done: dict[str, Materialized] = {}
        with closing(open_store(self._settings)) as client, self._progress:
            try:
                with closing(one_run(client)) as store:
                    while left := _layouts(load_catalog(store, self._project), self._name, done):
                        done[layout_field(left[0][0])] = self._load(store, *left[0], start_us, end_us)
            except redis.RedisError as error:
                raise UnavailableError(
                    f"The online store failed while view {self._name!r} was materialized ({error}); a part of its rows "
                    "may be written, run it again."
                ) from error
        return next(iter(done.values()))

    def _load(
        self, store: redis.Redis, view: FeatureView, catalog: Catalog, start_us: int | None, end_us: int | None
    ) -> Materialized:
        kept = Kept(view, catalog, Markers(store, self._project).begin_build(view))
        marks = MaterializedMarks(store, self._project)
        upto_us = marks.upto_us(view, kept.build)
        now_us = time.time_ns() // 1_000 if catalog.clock == "wall" else None
        if self._incremental:
            start_us, end_us = upto_us, now_us if end_us is None else end_us
        scan = BatchScan(view, kept_columns(kept), self._settings.repo, start_us, end_us)
        forgotten = ForgottenKeys(EventStream(store, self._project), OfflineStore(self._settings.data_dir))
        done = load_rows(store, kept, scan, forgotten, start_us, self._memory_bytes, self._progress)
        if done.newest_us is not None and (start_us is None or (upto_us is not None and start_us <= upto_us)):
            marks.raise_to(view, kept.build, done.newest_us if now_us is None else min(done.newest_us, now_us))
        log.info("materialized", layout=layout_field(view), **_counts(done))
        return done


def load_rows(
    store: redis.Redis,
    kept: Kept,
    scan: BatchScan,
    forgotten: ForgottenKeys,
    start_us: int | None = None,
    memory_bytes: int = DEFAULT_MEMORY,
    progress: Progressing | None = None,
) -> Materialized:
    """Writes the newest row per key of `scan` (of `kept_columns`) into a layout, without what was forgotten. Of two
    runs the later one's row wins at equal event times. `start_us` is where the scan begins."""
    shown = progress or silent()
    keys = kept.catalog.sorted_join_keys(kept.view)
    doubtful = list(dict.fromkeys([*keys, *scan.doubtful()]))
    shown.begin("reading", None)
    newest = find_newest(lambda: scan.parts(doubtful), [key.name for key in keys], memory_bytes, shown.advance)
    shown.begin("writing", newest.keys)
    written, gone = write_winners(store, kept, scan.parts(kept_columns(kept)), newest, forgotten, shown.advance)
    return Materialized(
        kept.view.name,
        newest.keys,
        written,
        newest.keys - gone - written,
        gone,
        newest.null_keys,
        newest.refused,
        newest.newest_us,
        start_us,
    )


def _counts(done: Materialized) -> dict[str, int]:
    names = ("keys", "written", "kept", "forgotten", "null_keys", "refused")
    return {name: getattr(done, name) for name in names}


def _layouts(catalog: Catalog, name: str, done: Collection[str]) -> list[tuple[FeatureView, Catalog]]:
    """The view and its layouts under construction that are not yet `done`, each with the catalog that knows it."""
    arriving = [layout for layout in catalog.arriving if layout.view.name == name]
    found = [(_materializable(catalog, name), catalog)]
    found += [(one.view, catalog_of(catalog, one)) for one in arriving if one.view.batch is not None]
    return [(view, known) for view, known in found if layout_field(view) not in done]


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
