"""Training sets: label rows in, point-in-time-correct feature rows out, by the functions that the online path runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa

from headrace.catalog.definitions import Catalog
from headrace.read.history import History, sources_of, view_values
from headrace.read.labels import LabelRows, read_labels
from headrace.read.plans import LookupPlan, plan_service
from headrace.settings import Settings, load_settings
from headrace.stores.catalogs import find_project, load_catalog
from headrace.stores.connection import open_store
from headrace.stores.offline import OfflineStore

__all__ = ["build_dataset", "read_positions", "training_set"]

Columns = Mapping[str, pa.Array]
OnStage = Callable[[str, int, int], None]
"""Called with what comes next, how many stages are done, and how many there are."""


def training_set(
    service: str,
    labels: pa.Table | pd.DataFrame | str | Path,
    *,
    settings: Settings | None = None,
    full_feature_names: bool = False,
) -> pa.Table:
    """The label rows with the features of `service` as they were at each row's `event_timestamp` (without a zone:
    UTC): the label columns in their order, then the features in the service's order; row order is kept.

    `labels` is a table, a DataFrame or a path to Parquet or CSV; it holds the join keys of the service's views and
    the request data of its on-demand views, and whatever else it likes. A null key is an unseen entity.
    Raises UnknownNameError for the service, DataError for labels that do not fit.
    """
    settings = settings or load_settings()
    store = open_store(settings)
    try:
        catalog = load_catalog(store, find_project(settings))
    finally:
        store.close()
    history = History(OfflineStore(settings.data_dir), settings.repo)
    return build_dataset(catalog, service, labels, history, full_feature_names=full_feature_names)


def build_dataset(
    catalog: Catalog,
    service: str,
    labels: pa.Table | pd.DataFrame | str | Path,
    history: History,
    *,
    full_feature_names: bool = False,
    on_stage: OnStage = lambda what, done, total: None,
) -> pa.Table:
    """`training_set` from a given catalog and history; with `history.up_to` (see `read_positions`) it gives the
    same rows again, whatever has been archived since (batch files aside)."""
    plan = plan_service(catalog, service, full_feature_names)
    total = 1 + len(plan.steps) + len(plan.on_demand)
    on_stage("labels", 0, total)
    rows = read_labels(labels, plan)
    values: dict[str, Columns] = {}
    for step in plan.steps:
        on_stage(step.name, 1 + len(values), total)
        keys = [rows.inputs[name] for name in step.request_keys]
        values[step.name] = view_values(catalog, step.view, _needed(plan, step.name), keys, rows.times_us, history)
    for on_demand in plan.on_demand:
        on_stage(on_demand.view.name, 1 + len(values), total)
        inputs = {feature: values[name][feature] for name, feature in on_demand.inputs}
        inputs |= {column.name: rows.inputs[column.name] for column in on_demand.view.request}
        values[on_demand.view.name] = on_demand.function.compute(inputs)
    on_stage("done", total, total)
    return _assembled(plan, rows, values)


def read_positions(catalog: Catalog, service: str, offline: OfflineStore) -> dict[str, dict[int, int]]:
    """Archived offset by partition of every source behind `service`: what to hand `History` for the same rows again."""
    sources = [
        source
        for step in plan_service(catalog, service, full_feature_names=True).steps
        for source in sources_of(catalog, step.view)
    ]
    return {source.name: offline.positions(source) for source in sources}


def _needed(plan: LookupPlan, step: str) -> list[str]:
    """The features of a step that are answered or that an on-demand view takes in."""
    answered = [output.feature.name for output in plan.outputs if output.step == step]
    taken = [feature for on_demand in plan.on_demand for name, feature in on_demand.inputs if name == step]
    return list(dict.fromkeys(answered + taken))


def _assembled(plan: LookupPlan, rows: LabelRows, values: Mapping[str, Columns]) -> pa.Table:
    table = rows.table
    for output in plan.outputs:
        table = table.append_column(output.name, values[output.step][output.feature.name])
    return table
