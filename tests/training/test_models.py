"""Artifacts: what is saved is what is scored, and nothing else is loaded."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headrace.dtypes import DType
from headrace.errors import DataError, DefinitionError, RequestError, UnknownNameError
from headrace.stores import models
from headrace.stores.models import Champions, Manifest, ModelInput, load_model, model_frame, model_inputs
from training.fit import fit_baseline

INPUTS = (
    ModelInput("origin", DType.STRING),
    ModelInput("weather__wind", DType.FLOAT64),
    ModelInput("departures__count_1h", DType.INT64),
    ModelInput("context__is_holiday", DType.BOOL),
)


def columns(n: int = 400) -> pa.Table:
    rng = np.random.default_rng(7)
    return pa.table(
        {
            "origin": pa.array(rng.choice(np.array(["EWR", "JFK", None], object), n), pa.string()),
            "weather__wind": pa.array(rng.normal(size=n), mask=rng.random(n) < 0.2),
            "departures__count_1h": pa.array(rng.integers(0, 30, n)),
            "context__is_holiday": pa.array(rng.random(n) < 0.1),
            "unused": pa.array(rng.normal(size=n)),
        }
    )


def manifest(name: str = "delay", service: str = "s") -> Manifest:
    return Manifest(name, service, INPUTS, "late", 0.0, 3, {"a": {"0": 1}}, {}, {}, {}, "2013-01-01T00:00:00Z")


@pytest.fixture(scope="module")
def pipeline() -> object:
    rows = columns()
    return fit_baseline(INPUTS, rows, np.arange(rows.num_rows) % 3 == 0)


def save(folder: Path, pipeline: object, name: str = "delay") -> Manifest:
    return models.save_model(folder, manifest(name), pipeline)


def by_name(rows: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {name: rows[name] for name in rows.column_names}


def test_a_loaded_model_scores_as_the_fitted_one(tmp_path, pipeline):
    saved = save(tmp_path, pipeline)
    loaded = load_model(tmp_path, "delay", saved.version)
    rows = columns()
    expected = pipeline.predict_proba(model_frame(INPUTS, by_name(rows)))[:, 1]
    assert loaded.manifest == saved
    np.testing.assert_array_equal(loaded.predict_proba(by_name(rows)), expected)


def test_one_row_scores_as_among_many_and_the_order_of_columns_does_not_matter(tmp_path, pipeline):
    save(tmp_path, pipeline)
    model = load_model(tmp_path, "delay", 1)
    many = model.predict_proba(by_name(columns()))
    one = columns().slice(5, 1)
    backwards = {name: one[name].combine_chunks() for name in reversed(one.column_names)}
    np.testing.assert_allclose(model.predict_proba(backwards), many[5:6], rtol=1e-12)


def test_nulls_and_unknown_categories_are_scored(tmp_path, pipeline):
    save(tmp_path, pipeline)
    unseen = {
        "origin": pa.array(["ZZZ", None], pa.string()),
        "weather__wind": pa.nulls(2, pa.float64()),
        "departures__count_1h": pa.nulls(2, pa.int64()),
        "context__is_holiday": pa.nulls(2, pa.bool_()),
    }
    scores = load_model(tmp_path, "delay", 1).predict_proba(unseen)
    assert scores.shape == (2,) and np.isfinite(scores).all()


def test_a_missing_column_is_named(tmp_path, pipeline):
    save(tmp_path, pipeline)
    with pytest.raises(RequestError, match="weather__wind"):
        load_model(tmp_path, "delay", 1).predict_proba(by_name(columns().drop(["weather__wind"])))


def test_versions_count_up_and_the_champion_is_the_promoted_one(tmp_path, pipeline):
    champions = Champions(tmp_path)
    with pytest.raises(UnknownNameError, match="run headrace train"):
        champions.get("delay")
    save(tmp_path, pipeline)
    save(tmp_path, pipeline)
    models.promote(tmp_path, "delay", 1)
    assert champions.get("delay").manifest.version == 1
    models.promote(tmp_path, "delay", 2)
    assert champions.get("delay").manifest.version == 2
    assert champions.get("delay") is champions.get("delay")
    assert models.versions(tmp_path, "delay") == [1, 2]
    with pytest.raises(UnknownNameError, match="no version 3"):
        models.promote(tmp_path, "delay", 3)


def test_an_altered_artifact_is_refused(tmp_path, pipeline):
    save(tmp_path, pipeline)
    artifact = tmp_path / "models" / "delay" / "1" / "model.skops"
    artifact.write_bytes(artifact.read_bytes() + b"x")
    with pytest.raises(DataError, match="not the file its manifest describes"):
        load_model(tmp_path, "delay", 1)


def test_an_artifact_with_a_type_of_its_own_is_neither_saved_nor_loaded(tmp_path, pipeline, monkeypatch):
    import fractions

    with pytest.raises(DataError, match="known types"):
        models.save_model(tmp_path, manifest(), {"odd": fractions.Fraction})
    monkeypatch.setattr(models, "TRUSTED_TYPES", ["numpy.dtype", "fractions.Fraction"])
    models.save_model(tmp_path, manifest(), {"odd": fractions.Fraction(1, 2)})
    monkeypatch.undo()
    with pytest.raises(DataError, match="does not load"):
        load_model(tmp_path, "delay", 1)


def test_a_manifest_of_another_format_is_refused(tmp_path, pipeline):
    save(tmp_path, pipeline)
    path = tmp_path / "models" / "delay" / "1" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(DataError, match="format 99"):
        load_model(tmp_path, "delay", 1)


@pytest.mark.parametrize("name", ["../delay", "", ".hidden", "a/b", "a\\b", "x" * 101])
def test_a_name_that_could_leave_the_folder_is_unknown(tmp_path, name):
    with pytest.raises(UnknownNameError):
        load_model(tmp_path, name)


def test_a_type_that_no_model_reads_is_refused_with_the_remedy():
    rows = pa.table({"view__at": pa.array([0], pa.timestamp("us", "UTC"))})
    with pytest.raises(DefinitionError, match="on-demand view"):
        model_inputs(["view__at"], rows)


def test_infinities_and_nan_are_missing_values():
    frame = model_frame((INPUTS[1],), {"weather__wind": pa.array([1.0, float("inf"), float("nan"), None])})
    np.testing.assert_array_equal(frame["weather__wind"].isna(), [False, True, True, True])
