"""The rows that a model learns from: a feature service's training set, and what it was built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from headrace.catalog.definitions import Catalog
from headrace.errors import DataError, DefinitionError
from headrace.read.dataset import build_dataset
from headrace.read.history import History, sources_of
from headrace.read.plans import LookupPlan, plan_service
from headrace.settings import Settings
from headrace.stores.catalogs import find_project, load_catalog
from headrace.stores.connection import open_store
from headrace.stores.offline import OfflineStore
from training.config import ModelConfig

__all__ = ["TrainingRows", "training_rows"]


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """`table` holds the label file's columns and the `features` under their full names, in the service's order.

    `positions` are the offsets, by source and partition, up to which the archive was read.
    """

    table: pa.Table
    features: tuple[str, ...]
    catalog_version: int
    positions: Mapping[str, Mapping[str, int]]


def training_rows(settings: Settings, config: ModelConfig) -> TrainingRows:
    """Join the labels of `config` with its service's features as they stood at each row's event time.

    Raises DataError for a labels file without the label, DefinitionError for a key that the service does not have.
    """
    if not config.labels.exists():
        raise DataError(f"The labels of model {config.name!r} are read from {config.labels}, which does not exist.")
    catalog = _catalog(settings)
    plan = plan_service(catalog, config.service, full_feature_names=True)
    _check_keys(config, plan)
    offline = OfflineStore(settings.data_dir)
    sources = {source.name: source for step in plan.steps for source in sources_of(catalog, step.view)}
    positions = {name: offline.positions(source) for name, source in sources.items()}
    history = History(offline, settings.repo, up_to=positions)
    table = build_dataset(catalog, config.service, config.labels, history, full_feature_names=True)
    if config.label not in table.column_names:
        raise DataError(f"Model {config.name!r} needs the label column {config.label!r}; {config.labels} has none.")
    read = {name: {str(part): offset for part, offset in parts.items()} for name, parts in positions.items() if parts}
    return TrainingRows(table, tuple(output.name for output in plan.outputs), catalog.version, read)


def _catalog(settings: Settings) -> Catalog:
    store = open_store(settings)
    try:
        return load_catalog(store, find_project(settings))
    finally:
        store.close()


def _check_keys(config: ModelConfig, plan: LookupPlan) -> None:
    join_keys = [column.name for column in plan.join_keys]
    unknown = [key for key in config.keys if key not in join_keys]
    if unknown:
        raise DefinitionError(
            f"Keys that a model reads are join keys of its service, {unknown[0]!r} is none of {', '.join(join_keys)}; "
            f"correct keys of model {config.name!r}."
        )
