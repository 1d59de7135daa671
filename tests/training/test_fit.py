"""The split looks forward only, and the baseline learns what is there to learn."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import DataError, DefinitionError
from training.config import ModelConfig
from training.evaluate import evaluate
from training.fit import beats_chance, fit_baseline, objections, split_by_time, train_on
from training.rows import TrainingRows

HOUR_US = 3_600_000_000


def config(**given: object) -> ModelConfig:
    return ModelConfig(**{"name": "m", "service": "s", "labels": None, "label": "late"} | given)


def rows(n: int = 2_000) -> TrainingRows:
    rng = np.random.default_rng(3)
    x = rng.normal(size=n)
    table = pa.table(
        {
            "key": pa.array(rng.choice(["a", "b"], n)),
            "event_timestamp": pa.array(rng.permutation(n) * HOUR_US).cast(pa.timestamp("us", "UTC")),
            "late": pa.array(np.abs(x) + rng.normal(scale=0.3, size=n) > 1, mask=rng.random(n) < 0.1),
            "view__x": pa.array(x, mask=rng.random(n) < 0.1),
            "view__word": pa.array(rng.choice(np.array(["u", "v", None], object), n), pa.string()),
        }
    )
    return TrainingRows(table, ("view__x", "view__word"), 4, {"events": {"0": 17}})


@pytest.mark.parametrize("delay_hours", [0, 1, 7])
def test_every_train_label_is_known_before_the_first_test_row(delay_hours):
    times_us = np.random.default_rng(1).integers(0, 500, 1_000) * HOUR_US
    split = split_by_time(times_us, 0.3, delay_hours * HOUR_US)
    assert times_us[split.train].max() + delay_hours * HOUR_US < split.cut_us == times_us[split.test].min()
    left_out = np.setdiff1d(np.arange(1_000), np.concatenate([split.train, split.test]))
    assert ((times_us[left_out] >= split.cut_us - delay_hours * HOUR_US) & (times_us[left_out] < split.cut_us)).all()
    assert 290 <= len(split.test) <= 310


def test_a_split_without_train_rows_says_what_to_change():
    with pytest.raises(DataError, match="label_delay"):
        split_by_time(np.arange(10) * HOUR_US, 0.3, 100 * HOUR_US)
    with pytest.raises(DataError, match="got none"):
        split_by_time(np.array([], np.int64), 0.3, 0)


def test_the_baseline_bends_where_the_label_does():
    manifest, _ = train_on(rows(), config(label_delay_us=HOUR_US, keys=("key",)))
    assert manifest.metrics["roc_auc"] > 0.9
    assert [item.name for item in manifest.inputs] == ["key", "view__x", "view__word"]
    assert manifest.catalog_version == 4 and manifest.positions == {"events": {"0": 17}}
    assert manifest.data["train"]["to"] < manifest.data["test"]["from"]


def test_the_same_rows_give_the_same_model():
    first, second = (train_on(rows(), config())[0] for _ in range(2))
    assert first.metrics == second.metrics


@pytest.mark.parametrize("label", [pa.array([0.5, 1.0] * 50), pa.array(["yes", "no"] * 50), pa.array([0, 2] * 50)])
def test_a_label_is_a_boolean_or_zero_and_one(label):
    table = pa.table({"event_timestamp": pa.array(range(100), pa.timestamp("us", "UTC")), "late": label})
    with pytest.raises(DataError, match="convert it"):
        train_on(TrainingRows(table, (), 1, {}), config())


def test_one_class_cannot_be_learned():
    with pytest.raises(DataError, match="true and false"):
        fit_baseline((), pa.table({"x": [1, 2]}), np.array([True, True]))
    with pytest.raises(DataError, match="true and false"):
        evaluate(np.array([False, False]), np.array([0.1, 0.2]))


def test_metrics_of_known_scores():
    truth = np.array([False, False, True, True])
    found = evaluate(truth, np.array([0.1, 0.4, 0.35, 0.8]))
    assert found["roc_auc"] == 0.75
    assert found["pr_auc"] == pytest.approx(5 / 6)
    assert found["brier"] == pytest.approx((0.01 + 0.16 + 0.4225 + 0.04) / 4)
    assert found["base_rate"] == 0.5


def test_a_test_fraction_outside_zero_and_one_is_refused():
    with pytest.raises(DefinitionError, match="test_fraction"):
        config(test_fraction=1.0)


def test_too_few_rows_are_refused_with_how_many_there_are():
    with pytest.raises(DataError, match="at least 10 label rows each, got"):
        train_on(rows(20), config())


def test_what_speaks_against_a_model_is_chance_and_a_better_champion():
    manifest, _ = train_on(rows(), config())
    poor = replace(manifest, metrics={"roc_auc": 0.5})
    assert beats_chance(manifest) and not beats_chance(poor)
    assert objections(manifest, None) == [] == objections(manifest, poor)
    (worse,) = objections(replace(manifest, metrics={"roc_auc": 0.6}), replace(manifest, version=3))
    assert "is below the champion's, version 3" in worse
    assert objections(poor, None) == ["ROC AUC 0.5000 is no better than chance"]
