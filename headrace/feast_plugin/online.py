"""Feast's online store over ours: one lookup, and one round trip, for all the catalog's views of a request."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from feast import Entity
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.repo_config import RepoConfig

from headrace.catalog.definitions import Catalog
from headrace.errors import UnknownNameError
from headrace.feast_plugin.applying import apply_views, take_down
from headrace.feast_plugin.kept_views import read_kept, write_kept
from headrace.feast_plugin.online_reads import Answer, Known, ReadSplit, look_up, reference_of, rows_of
from headrace.feast_plugin.row_writes import Row, write_view_rows
from headrace.feast_plugin.shared import Shared, shared_of

__all__ = ["HeadraceOnlineStore"]

Tables = Sequence[tuple[Any, list[str]]]
Progress = Callable[[int], Any]

PRECOMPUTED = "__precomputed__"
"""What the names of the views begin with in which Feast keeps vectors that it computed before."""


class HeadraceOnlineStore(OnlineStore):  # type: ignore[misc]
    """Serves and writes the views that Feast applied; windows are computed from the stream, by a worker."""

    _held: tuple[RepoConfig, int, Shared] | None = None

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        return SupportedAsyncMethods(read=True, write=True)

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[Any],
        tables_to_keep: Sequence[Any],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Make the views part of the catalog, as `headrace apply` does. Raises DefinitionError for what cannot work."""
        apply_views(self.shared(config), config, tables_to_keep, tables_to_delete, entities_to_keep)

    def teardown(self, config: RepoConfig, tables: Sequence[Any], entities: Sequence[Entity]) -> None:
        """Take all views out of the catalog; archived events stay, online values until they are swept."""
        take_down(self.shared(config), config, tables)

    def online_write_batch(self, config: RepoConfig, table: Any, data: list[Row], progress: Progress | None) -> None:
        """Write rows into a plain or batch view, or into one that is kept as Feast's values; the newest wins.

        Raises RequestError for a windowed view, UnknownNameError for a view that was not applied.
        """
        shared, catalog = self._catalog(config, [table])
        if catalog.has_view(table.name):
            write_view_rows(shared, catalog, catalog.view(table.name), data)
        else:
            write_kept(shared, table, data)
        if progress is not None:
            progress(len(data))

    async def online_write_batch_async(
        self, config: RepoConfig, table: Any, data: list[Row], progress: Progress | None
    ) -> None:
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def online_read(
        self, config: RepoConfig, table: Any, entity_keys: list[Any], requested_features: list[str] | None = None
    ) -> list[Answer]:
        """Event time and values of every key: (None, None) for a key without a row, nulls for one past its ttl."""
        shared, catalog = self._catalog(config, [table])
        if not catalog.has_view(table.name):
            return read_kept(shared, table, entity_keys, requested_features)
        known = _known(shared, catalog, table, entity_keys, requested_features)
        return rows_of(known, look_up(shared, known))

    async def online_read_async(
        self, config: RepoConfig, table: Any, entity_keys: list[Any], requested_features: list[str] | None = None
    ) -> list[Answer]:
        return await asyncio.to_thread(self.online_read, config, table, entity_keys, requested_features)

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: Tables,
        join_key_values: Mapping[str, Sequence[Any]],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: GetOnlineFeaturesResponse,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        """Feast's hook for a store that reads all views of a request at once."""
        shared, catalog = self._catalog(config, [table for table, _ in grouped_refs])
        split = ReadSplit(shared, catalog, grouped_refs, join_key_values, entity_name_to_join_key_map)
        found = look_up(shared, split.known) if split.known else None
        kept = [read_kept(shared, read.table, read.keys, read.wanted) for read in split.kept]
        split.fill(online_features_response, full_feature_names, include_feature_view_version_metadata, found, kept)

    async def _read_features_per_fv_async(self, *asked: Any) -> None:
        await asyncio.to_thread(self._read_features_per_fv, *asked)

    def shared(self, config: RepoConfig) -> Shared:
        """The connections of the project that `config` names; this process's own, also after a fork."""
        if self._held is None or self._held[0] is not config or self._held[1] != os.getpid():
            self._held = (config, os.getpid(), shared_of(config))
        return self._held[2]

    def _catalog(self, config: RepoConfig, tables: Sequence[Any]) -> tuple[Shared, Catalog]:
        """The catalog in force. Raises UnknownNameError for a view that it lacks and that is not kept either."""
        shared = self.shared(config)
        catalog = shared.catalog_of(*(table.name for table in tables))
        for table in tables if config.online_store.other_views == "refuse" else ():
            if not catalog.has_view(table.name) and not table.name.startswith(PRECOMPUTED):
                known = ", ".join(view.name for view in catalog.views) or "none"
                raise UnknownNameError(
                    f"There is no feature view {table.name!r} in the catalog, which has: {known}; run feast apply."
                )
        return shared, catalog


def _known(shared: Shared, catalog: Catalog, table: Any, entity_keys: Sequence[Any], wanted: list[str] | None) -> Known:
    """A read of one view by entity keys."""
    view = catalog.view(table.name)
    names = [feature.name for feature in view.features] if wanted is None else wanted
    reference = reference_of(view, table, names)
    renamed = dict(reference.join_key_map)
    keys: dict[str, list[Any]] = {}
    for key in entity_keys:
        for name, value in zip(key.join_keys, key.entity_values, strict=True):
            keys.setdefault(renamed.get(name, name), []).append(value)
    return Known.of(shared, catalog, [reference], keys)
