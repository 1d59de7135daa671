"""Point-in-time features of Feast's views for the rows of an entity frame."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from feast import utils as feast_utils
from feast.repo_config import RepoConfig
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog, FeatureView
from headrace.catalog.feast_types import duration_us
from headrace.dtypes import DType
from headrace.errors import DataError, RequestError
from headrace.feast_plugin.config import HeadraceOfflineStoreConfig, repo_of
from headrace.feast_plugin.files import FileRows, read_rows, values_at
from headrace.feast_plugin.online_reads import reference_of
from headrace.feast_plugin.shared import Shared
from headrace.feast_plugin.values import micros_of
from headrace.read.dataset import parse_bytes
from headrace.read.history import History, sources_of
from headrace.read.joins.join import iter_training_rows
from headrace.read.labels import TIMESTAMP, TableLabels, refuse_unfit
from headrace.read.plans import plan_references
from headrace.stores.batch_files import read_batch_rows
from headrace.stores.offline import OfflineStore
from headrace.stores.tables import as_declared

__all__ = ["Asked", "entity_times", "features_at", "label_frame", "snapshot"]

Ints = NDArray[np.int64]
Features = Mapping[Any, list[str]]
"""Feature views (Feast's, with their projections), each with the features asked of it."""
_DEFAULT_MEMORY = "2GB"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question to the offline store; `as_created` leaves out what became known after a row's time."""

    shared: Shared
    config: RepoConfig
    features: Features
    as_created: bool = False

    @property
    def repo(self) -> Path:
        return repo_of(self.config)

    def held(self, catalog: Catalog, view: Any) -> FeatureView | None:
        """The catalog's view behind one of Feast's, None for one that lives in its file alone.

        Raises DataError for windows that were not applied.
        """
        if catalog.has_view(view.name):
            return catalog.view(view.name)
        if getattr(view, "aggregations", None):
            raise DataError(
                f"View {view.name!r} has windows, which are computed from archived events, and the catalog does not "
                "hold it; run feast apply (with online=True) or headrace apply."
            )
        return None


def entity_times(frame: pd.DataFrame) -> str:
    """The column of an entity frame that says as of when: `event_timestamp`, else the only one of times.

    Raises DataError if there is none.
    """
    if TIMESTAMP in frame.columns:
        return TIMESTAMP
    found = [str(name) for name in frame.columns if pd.api.types.is_datetime64_any_dtype(frame[name])]
    if len(found) != 1:
        raise DataError(
            f"An entity frame has its times in a column {TIMESTAMP!r}, or one column of times, got: "
            f"{', '.join(map(str, frame.columns))}; add it."
        )
    return found[0]


def label_frame(entity_df: Any) -> tuple[pd.DataFrame, str]:
    """An entity frame and its time column, in UTC. Raises DataError for a query."""
    if not isinstance(entity_df, pd.DataFrame):
        raise DataError(
            f"An entity_df is a pandas DataFrame, got {type(entity_df).__name__}: there is no SQL engine behind "
            "Headrace's offline store; load the rows first."
        )
    column = entity_times(entity_df)
    frame = entity_df.reset_index(drop=True).copy()
    frame[column] = pd.to_datetime(frame[column], utc=True)
    return frame, column


def features_at(asked: Asked, frame: pd.DataFrame, time_column: str, full_names: bool) -> pa.Table:
    """The rows of `frame` in their order, with the features as they were at each row's time.

    Raises DataError for rows or files that do not fit.
    """
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()
    times = as_declared(table[time_column], DType.TIMESTAMP, f"Entity column {time_column!r}")
    if times.null_count:
        raise DataError(
            f"Every entity row needs a time, {time_column!r} is null in {times.null_count} rows; drop them."
        )
    table = table.set_column(table.column_names.index(time_column), time_column, times)
    catalog = asked.shared.catalog_of(*(view.name for view in asked.features))
    held = {view: asked.held(catalog, view) for view in asked.features}
    _refuse_missing_keys(table, asked.features)
    columns = _from_catalog(asked, catalog, held, table, times)
    for view, names in asked.features.items():
        if held[view] is None:
            columns[view] = _from_file(asked, view, names, table, np.asarray(times.cast(pa.int64())))
    for view, names in asked.features.items():
        for name in names:
            shown = f"{view.projection.name_to_use()}__{name}" if full_names else name
            table = table.append_column(shown, columns[view][name])
    return table


def _refuse_missing_keys(table: pa.Table, features: Features) -> None:
    for view in features:
        for key in _request_keys(view).values():
            if key not in table.column_names:
                raise DataError(
                    f"View {view.name!r} is joined by {key!r}, the entity frame has: {', '.join(table.column_names)}; "
                    "add it."
                )


def _request_keys(view: Any) -> dict[str, str]:
    """The entity frame's name of every join key of a view."""
    renamed = view.projection.join_key_map
    return {column.name: renamed.get(column.name, column.name) for column in view.entity_columns if view.entities}


def _from_catalog(
    asked: Asked, catalog: Catalog, held: Mapping[Any, FeatureView | None], table: pa.Table, times: pa.Array
) -> dict[Any, dict[str, Any]]:
    """Features of the catalog's views, by archive, direct writes and batch files alike."""
    ours = [(feast, view) for feast, view in held.items() if view is not None]
    if not ours:
        return {}
    plan = plan_references(catalog, [reference_of(view, feast, asked.features[feast]) for feast, view in ours])
    keys = {column.name: table[column.name] for column in plan.join_keys}
    labels = pa.table({**keys, TIMESTAMP: times})
    refuse_unfit(labels.schema, plan)
    history = History(OfflineStore(asked.shared.settings.data_dir), asked.repo)
    place = asked.config.offline_store
    memory = place.memory if isinstance(place, HeadraceOfflineStoreConfig) else _DEFAULT_MEMORY
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        found = pa.concat_tables(
            iter_training_rows(
                catalog,
                plan,
                TableLabels(labels),
                history,
                memory_bytes=parse_bytes(memory),
                as_known=asked.as_created,
                spill_dir=Path(folder),
            )
        )
    columns: dict[Any, dict[str, Any]] = {}
    for feast, _ in ours:
        name = feast.projection.name_to_use()
        columns[feast] = {feature: found[f"{name}__{feature}"] for feature in asked.features[feast]}
    return columns


def _from_file(asked: Asked, view: Any, names: Sequence[str], table: pa.Table, times_us: Ints) -> dict[str, Any]:
    """Features of a view that lives in its file alone, in the file's types."""
    rows = _file_rows(asked, view, names)
    ours = _request_keys(view)
    keys = [table[key].combine_chunks() for key in ours.values()]
    ttl_us = duration_us(view.ttl) if view.ttl else 0
    chosen = values_at(rows, list(ours), keys, times_us, ttl_us, as_created=asked.as_created)
    return {name: rows.table[name].combine_chunks().take(chosen) for name in names}


def _file_rows(
    asked: Asked, view: Any, names: Sequence[str], start_us: int | None = None, end_us: int | None = None
) -> FileRows:
    """The rows of a view's file under the names that the view gives its columns."""
    source = view.batch_source
    in_file = {ours: theirs for theirs, ours in source.field_mapping.items()}
    wanted = list(dict.fromkeys([*_request_keys(view), *names]))
    rows = read_rows(
        source,
        asked.repo,
        [in_file.get(name, name) for name in wanted],
        in_file.get(source.timestamp_field, source.timestamp_field),
        in_file.get(source.created_timestamp_column, source.created_timestamp_column) or None,
        start_us,
        end_us,
    )
    table = pa.table({name: rows.table[in_file.get(name, name)] for name in wanted})
    return FileRows(table, rows.times_us, rows.created_us)


def snapshot(asked: Asked, start: datetime | None, end: datetime | None) -> tuple[pd.DataFrame, datetime, datetime]:
    """An entity frame of all keys and times that the views have between two moments, and these.

    Raises RequestError for views with different join keys.
    """
    views = list(asked.features)
    start, end = feast_utils.compute_non_entity_date_range(views, start_date=start, end_date=end)
    start_us, end_us = micros_of([start, end]).tolist()
    catalog = asked.shared.catalog_of(*(view.name for view in views))
    if len({tuple(sorted(_request_keys(view).values())) for view in views}) != 1:
        raise RequestError(
            "Without an entity_df the rows are the keys of the views asked, which must then have the same join keys; "
            "ask for one entity's views at a time, or give an entity_df."
        )
    parts = [_keys_and_times(asked, catalog, view, start_us, end_us) for view in views]
    frame = pa.concat_tables(parts, promote_options="permissive").to_pandas().drop_duplicates()
    frame = frame.sort_values(TIMESTAMP, kind="stable").reset_index(drop=True)
    return frame, start, end


def _keys_and_times(asked: Asked, catalog: Catalog, view: Any, start_us: int, end_us: int) -> pa.Table:
    keys = _request_keys(view)
    held = asked.held(catalog, view)
    if held is None:
        rows = _file_rows(asked, view, [], start_us, end_us)
        return _named(rows.table, rows.times_us, keys)
    parts = []
    columns = list(catalog.join_keys(held))
    if held.batch is not None:
        found = read_batch_rows(held, columns, asked.repo, start_us, end_us)
        parts.append(_named(found.table, found.event_time_us, keys))
    history = History(OfflineStore(asked.shared.settings.data_dir), asked.repo)
    for source in sources_of(catalog, held):
        events = history.events(catalog, held, source, list(keys), start_us, end_us)
        parts.append(_named(events, np.asarray(events["event_time"].combine_chunks().cast(pa.int64())), keys))
    return pa.concat_tables(parts, promote_options="permissive")


def _named(rows: pa.Table, times_us: Ints, keys: Mapping[str, str]) -> pa.Table:
    times = pa.array(times_us).cast(pa.timestamp("us", "UTC"))
    return pa.table({**{theirs: rows[ours] for ours, theirs in keys.items()}, TIMESTAMP: times})
