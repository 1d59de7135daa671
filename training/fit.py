"""Fits and evaluates the baseline model of a feature service on its point-in-time-correct rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.errors import DataError
from headrace.settings import Settings
from headrace.stores.models import (
    Manifest,
    Model,
    ModelInput,
    champion_of,
    model_frame,
    model_inputs,
    promote,
    save_model,
)
from headrace.telemetry import get_logger
from training.config import ModelConfig
from training.evaluate import evaluate
from training.rows import TrainingRows, training_rows

__all__ = ["Split", "beats_chance", "fit_baseline", "objections", "split_by_time", "train", "train_on"]

log = get_logger()

TIME = "event_timestamp"
BINS = 16
CHANCE = 0.5
FEWEST_ROWS = 10
RARE = 100
"""Categories of fewer rows are taken together."""
LIBRARIES = ("scikit-learn", "skops", "numpy", "scipy", "pyarrow")
EXPECTED_WARNINGS = ("Bins whose width are too small", "Feature .* is constant")


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers of the train and test part, and the event time (us) at which the test part begins."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    cut_us: int


def train(settings: Settings, config: ModelConfig, *, make_champion: bool | None = None) -> Manifest:
    """Build the training rows of `config`, fit, evaluate, save, and make the result the champion: always, never, or
    (None) if it beats chance; the log says what speaks against it.

    Raises UnknownNameError, DataError and DefinitionError for what the catalog, the labels or the features lack.
    """
    manifest, pipeline = train_on(training_rows(settings, config), config)
    saved = save_model(settings.data_dir, manifest, pipeline)
    for objection in objections(saved, champion_of(settings.data_dir, saved.name)):
        log.warning(objection, model=saved.name, version=saved.version)
    if make_champion or (make_champion is None and beats_chance(saved)):
        promote(settings.data_dir, saved.name, saved.version)
    return saved


def beats_chance(manifest: Manifest) -> bool:
    """Whether the model ranks its test rows better than a coin does."""
    return manifest.metrics["roc_auc"] > CHANCE


def objections(manifest: Manifest, champion: Manifest | None) -> list[str]:
    """What speaks against making the model the champion: it does not beat chance, or does worse than `champion` did
    on its own, older, test rows."""
    auc, found = manifest.metrics["roc_auc"], []
    if not beats_chance(manifest):
        found.append(f"ROC AUC {auc:.4f} is no better than chance")
    before = champion.metrics.get("roc_auc") if champion is not None else None
    if champion is not None and before is not None and auc < before:
        found.append(f"ROC AUC {auc:.4f} is below the champion's, version {champion.version}: {before:.4f}")
    return found


def train_on(rows: TrainingRows, config: ModelConfig) -> tuple[Manifest, Any]:
    """The manifest (not saved yet) and the fitted pipeline of a model on `rows`, those with a null label left out."""
    known = rows.table.filter(rows.table[config.label].is_valid()).combine_chunks()
    truth = _truth(known[config.label], config.label)
    inputs = model_inputs([*config.keys, *rows.features], known)
    times_us = known[TIME].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    split = split_by_time(times_us, config.test_fraction, config.label_delay_us)
    _refuse_few(len(split.train), len(split.test))
    pipeline = fit_baseline(inputs, known.take(pa.array(split.train)), truth[split.train])
    manifest = Manifest(
        name=config.name,
        service=config.service,
        inputs=inputs,
        label=config.label,
        label_delay_s=config.label_delay_us / 1_000_000,
        catalog_version=rows.catalog_version,
        positions=rows.positions,
        data={"train": _range(times_us[split.train]), "test": _range(times_us[split.test])},
        metrics={},
        libraries={name: version(name) for name in LIBRARIES},
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    )
    scores = Model(manifest, pipeline).predict_proba(_columns(known.take(pa.array(split.test)), inputs))
    return replace(manifest, metrics=evaluate(truth[split.test], scores)), pipeline


def split_by_time(times_us: NDArray[np.int64], test_fraction: float, label_delay_us: int) -> Split:
    """The newest `test_fraction` of the rows as test; as train those whose labels were known when it begins.

    A row's label is known `label_delay_us` after its time, so the rows of that length before the cut are in neither.
    Raises DataError when a part is empty.
    """
    if not len(times_us):
        raise DataError("Training needs rows with a label, got none; check the label column and the labels file.")
    order = np.argsort(times_us, kind="stable")
    ordered = times_us[order]
    cut_us = int(ordered[min(len(ordered) - 1, int(len(ordered) * (1 - test_fraction)))])
    parts = Split(order[ordered + label_delay_us < cut_us], order[ordered >= cut_us], cut_us)
    if not len(parts.train):
        delay = timedelta(microseconds=label_delay_us)
        raise DataError(
            f"Training needs rows older than the test part by the label delay ({delay}), "
            f"got none of {len(times_us)}; give more rows, or a smaller test_fraction or label_delay."
        )
    return parts


def _refuse_few(train_rows: int, test_rows: int) -> None:
    if min(train_rows, test_rows) < FEWEST_ROWS:
        raise DataError(
            f"A model is fitted and evaluated on at least {FEWEST_ROWS} label rows each, got {train_rows} to fit and "
            f"{test_rows} to evaluate; give more rows."
        )


def fit_baseline(inputs: Sequence[ModelInput], rows: pa.Table, truth: NDArray[np.bool_]) -> Any:
    """A logistic regression over one-hot columns: numbers in quantile bins (so that a linear model can bend), with a
    column for missing ones; strings by category, rare and unknown ones together. Deterministic.
    """
    if truth.all() or not truth.any():
        raise DataError(f"Training needs true and false labels, got {len(truth)} rows that are all {bool(truth[0])}.")
    pipeline = _pipeline(inputs)
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        pipeline.fit(model_frame(inputs, _columns(rows, inputs)), truth)
    return pipeline


def _pipeline(inputs: Sequence[ModelInput]) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder

    impute = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    bins = KBinsDiscretizer(
        BINS, encode="onehot", quantile_method="averaged_inverted_cdf", subsample=100_000, random_state=0
    )
    numbers = Pipeline([("impute", impute), ("bins", bins)])
    categories = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=RARE)
    parts = [
        ("numbers", numbers, [item.name for item in inputs if not item.is_category]),
        ("categories", categories, [item.name for item in inputs if item.is_category]),
    ]
    columns = ColumnTransformer([part for part in parts if part[2]])
    return Pipeline([("columns", columns), ("model", LogisticRegression(C=0.1, max_iter=500, tol=1e-3))])


def _columns(rows: pa.Table, inputs: Sequence[ModelInput]) -> Mapping[str, pa.ChunkedArray]:
    return {item.name: rows[item.name] for item in inputs}


def _truth(column: pa.ChunkedArray, name: str) -> NDArray[np.bool_]:
    """The labels as booleans. Raises DataError unless they are booleans or 0 and 1."""
    values: NDArray[Any] = column.to_numpy()
    if not (pa.types.is_boolean(column.type) or pa.types.is_integer(column.type)) or not np.isin(values, (0, 1)).all():
        raise DataError(f"A label is a boolean, or 0 and 1, column {name!r} is {column.type}; convert it.")
    return np.asarray(values, np.bool_)


def _range(times_us: NDArray[np.int64]) -> dict[str, Any]:
    first, last = (str(np.datetime64(int(time_us), "us")) + "Z" for time_us in (times_us.min(), times_us.max()))
    return {"rows": len(times_us), "from": first, "to": last}
