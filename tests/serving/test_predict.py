from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from shop import Live, now
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headrace.dtypes import DType
from headrace.stores.models import Manifest, ModelInput, promote, save_model

INPUTS = (ModelInput("card_spend__count_1h", DType.INT64), ModelInput("card_spend__sum_1h", DType.FLOAT64))
MANIFEST = Manifest("fraud", "spend_only", INPUTS, "fraud", 0.0, 1, {}, {}, {}, {}, "2026-01-01T00:00:00Z")


def fitted(sign: int) -> object:
    from sklearn.impute import SimpleImputer

    rows = pd.DataFrame({item.name: np.arange(20.0) for item in INPUTS})
    pipeline = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression())
    return pipeline.fit(rows, (sign * np.arange(20) > sign * 10).astype(int))


@pytest.fixture(scope="module")
def model(live: Live) -> Manifest:
    manifest = save_model(live.settings.data_dir, replace(MANIFEST, service="card_v1"), fitted(1))
    promote(live.settings.data_dir, "fraud", manifest.version)
    return manifest


def test_before_the_first_training_there_is_no_model(live: Live) -> None:
    assert "run headrace train" in live.post("/predict", {"entities": {"card_id": ["a"]}}, 404)


def test_the_champion_scores_the_vector_of_its_service(live: Live, model: Manifest) -> None:
    rows = [{"id": f"m{i}", "card_id": "much", "amount": 5, "ts": now(-5)} for i in range(18)]
    live.push([*rows, {"id": "little", "card_id": "little", "amount": 0, "ts": now(-5)}])
    live.wait_until_applied()
    body = {"feature_service": "card_v1", "entities": {"card_id": ["much", "little"]}}
    reply = live.post("/predict", body)
    much, little = reply["predictions"]
    assert much > 0.9 > 0.1 > little
    assert (reply["model"], reply["version"], len(reply["t"])) == ("fraud", model.version, 2)
    assert live.post("/predict", {"model": "fraud", "entities": body["entities"]})["predictions"] == [much, little]


def test_a_newly_promoted_version_answers_the_next_request(live: Live, model: Manifest) -> None:
    newer = save_model(live.settings.data_dir, replace(model, version=0), fitted(-1))
    promote(live.settings.data_dir, "fraud", newer.version)
    body = {"model": "fraud", "entities": {"card_id": ["nobody"]}}
    assert live.post("/predict", body)["version"] == newer.version == model.version + 1


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "nope", "entities": {"card_id": ["a"]}}, 404, "no model 'nope'"),
        ({"model": "../x", "entities": {"card_id": ["a"]}}, 404, "name"),
        ({"model": "fraud", "feature_service": "share_v1", "entities": {"card_id": ["a"]}}, 422, "reads 'card_v1'"),
        ({"model": "fraud", "entities": {}}, 422, "card_id"),
        ({"model": "fraud"}, 422, "entities"),
    ],
)
def test_a_wrong_prediction_request_is_told_why(
    live: Live, model: Manifest, body: dict[str, object], status: int, message: str
) -> None:
    assert message in live.post("/predict", body, status)
