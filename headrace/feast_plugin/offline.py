"""Feast's offline store over our archive, and over Feast's file sources."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from deltalake import write_deltalake
from feast import FeatureView, FileSource, OnDemandFeatureView
from feast.data_format import DeltaFormat
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import RepoConfig
from feast.utils import _get_requested_feature_views_to_features_dict, _get_requested_on_demand_feature_views

from headrace.compute.forgotten import gone_file_rows
from headrace.errors import DataError
from headrace.feast_plugin.config import repo_of
from headrace.feast_plugin.files import FileRows, latest_per_key, local_path, read_rows
from headrace.feast_plugin.history import Asked, features_at, label_frame, snapshot
from headrace.feast_plugin.jobs import HeadraceRetrievalJob
from headrace.feast_plugin.shared import Shared, shared_of
from headrace.feast_plugin.values import micros_of
from headrace.stores.offline import OfflineStore as Archive
from headrace.stores.tombstones import load_tombstones

__all__ = ["HeadraceOfflineStore"]


class HeadraceOfflineStore(OfflineStore):  # type: ignore[misc]
    """Reads what was archived and what lies in files; windows are those that the stream computes."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """The features of `entity_df` (a DataFrame) as of each row's time, in its row order.

        Without one: a row per key and event time that the views have between `start_date` and `end_date`.
        """
        on_demand = _get_requested_on_demand_feature_views(feature_refs, project, registry)
        features, _ = _get_requested_feature_views_to_features_dict(feature_refs, feature_views, on_demand)
        asked = Asked(shared_of(config), config, features, bool(kwargs.get("filter_by_created_timestamp")))
        if entity_df is None:
            frame, first, last = snapshot(asked, kwargs.get("start_date"), kwargs.get("end_date"))
            column = "event_timestamp"
        else:
            frame, column = label_frame(entity_df)
            first, last = frame[column].min(), frame[column].max()
        keys = [str(name) for name in frame.columns if name != column]
        return HeadraceRetrievalJob(
            lambda: features_at(asked, frame, column, full_feature_names),
            repo_of(config),
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            metadata=RetrievalMetadata(feature_refs, keys, first, last),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """The newest row of every key with an event time in [start, end], without what was forgotten."""
        pull = _Pull(config, data_source, join_key_columns, feature_name_columns, timestamp_field)

        def evaluate() -> pa.Table:
            rows = pull.rows(created_timestamp_column, start_date, end_date)
            return pull.shown(latest_per_key(rows, join_key_columns, data_source).table)

        return HeadraceRetrievalJob(evaluate, repo_of(config))

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row with an event time in [start, end], in the order of time, without what was forgotten."""
        pull = _Pull(config, data_source, join_key_columns, feature_name_columns, timestamp_field)
        return HeadraceRetrievalJob(
            lambda: pull.shown(pull.rows(created_timestamp_column, start_date, end_date).table), repo_of(config)
        )

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to the file of a view. Raises DataError for other columns than the file's."""
        source = feature_view.batch_source
        path = local_path(source, repo_of(config))
        if isinstance(source.file_format, DeltaFormat):
            write_deltalake(str(path), table.replace_schema_metadata(), mode="append")
        else:
            _append(path, table.replace_schema_metadata())
        if progress is not None:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Add logged features to the folder of a FileLoggingDestination. Raises DataError for another destination."""
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination) or "://" in destination.path:
            raise DataError("Features are logged to local files; use FileLoggingDestination(path=...).")
        rows = pads.dataset(str(data), format="parquet").to_table() if isinstance(data, Path) else data
        pads.write_dataset(
            rows,
            repo_of(config) / destination.path,
            format="parquet",
            basename_template=f"{uuid.uuid4().hex}-{{i}}.parquet",
            partitioning=destination.partition_by or None,
            partitioning_flavor="hive" if destination.partition_by else None,
            existing_data_behavior="overwrite_or_ignore",
        )


class _Pull:
    """Rows of one file, as Feast names their columns."""

    def __init__(
        self,
        config: RepoConfig,
        source: FileSource,
        join_keys: Sequence[str],
        features: Sequence[str],
        timestamp: str,
    ) -> None:
        self._config, self._source = config, source
        self._join_keys, self._features, self._timestamp = list(join_keys), list(features), timestamp

    def rows(self, created: str | None, start: datetime | None, end: datetime | None) -> FileRows:
        bounds = [None if moment is None else int(micros_of([moment])[0]) for moment in (start, end)]
        wanted = [*self._join_keys, *self._features] if self._features else []
        rows = read_rows(self._source, repo_of(self._config), wanted, self._timestamp, created, *bounds)
        return self._living(shared_of(self._config), rows)

    def shown(self, table: pa.Table) -> pa.Table:
        """Feast joins rows without join keys by a key of its own."""
        if self._join_keys:
            return table
        return table.append_column(DUMMY_ENTITY_ID, pa.array([DUMMY_ENTITY_VAL] * table.num_rows, pa.string()))

    def _living(self, shared: Shared, rows: FileRows) -> FileRows:
        """The rows without those of keys that were forgotten after them."""
        tombstones = load_tombstones(None, Archive(shared.settings.data_dir).root, shared.project)
        if not tombstones or not self._join_keys:
            return rows
        path, repo = local_path(self._source, repo_of(self._config)), repo_of(self._config)
        catalog = shared.catalog()
        gone = np.zeros(len(rows.times_us), np.bool_)
        for view in catalog.views:
            names = {ours: theirs for theirs, ours in view.batch.field_mapping} if view.batch else {}
            keys = {key.name: names.get(key.name, key.name) for key in catalog.join_keys(view)}
            if view.batch is not None and repo / view.batch.path == path and set(keys.values()) <= set(self._join_keys):
                columns = {ours: rows.table[theirs].combine_chunks() for ours, theirs in keys.items()}
                gone |= gone_file_rows(catalog, view, columns, rows.times_us, tombstones)
        return rows.take(np.flatnonzero(~gone)) if gone.any() else rows


def _append(path: Path, table: pa.Table) -> None:
    """Add rows to a Parquet file, which readers see whole; or a file to a folder."""
    if path.is_dir():
        pq.write_table(table.cast(pads.dataset(path, format="parquet").schema), path / f"{uuid.uuid4().hex}.parquet")
        return
    held = pq.read_table(path)
    if held.column_names != table.column_names:
        raise DataError(
            f"Rows for {path} must have the columns {', '.join(held.column_names)} in this order, got "
            f"{', '.join(table.column_names)}; correct them."
        )
    half = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        pq.write_table(pa.concat_tables([held, table.cast(held.schema)]), half)
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
