"""A model fits a catalog whose service gives what it was fitted on."""

from dataclasses import replace

import pytest
from shop import shop

from headrace.dtypes import DType
from headrace.read.model_fit import changed_inputs, misfit, misfits, served_columns
from headrace.stores.models import Manifest, ModelInput, promote, save_model

INPUTS = (ModelInput("card_id", DType.STRING), ModelInput("card_spend__sum_1h", DType.FLOAT64))
MANIFEST = Manifest("fraud", "card_v1", INPUTS, "fraud", 0.0, 1, {}, {}, {}, {}, "2026-01-01T00:00:00Z", 3)


def test_the_columns_of_a_service_are_its_keys_and_full_names():
    columns = served_columns(shop(), "card_v1")
    assert columns["card_id"] is DType.STRING and columns["profile__since"] is DType.TIMESTAMP
    assert set(served_columns(shop(), "share_v1")) == {"card_id", "share__share"}


def test_a_model_fits_what_it_was_trained_on():
    assert misfit(MANIFEST, shop()) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"service": "gone_v1"}, "service 'gone_v1' is gone"),
        ({"inputs": (ModelInput("card_spend__sum_2h", DType.FLOAT64),)}, "no longer gives card_spend__sum_2h"),
        ({"inputs": (ModelInput("profile__limit", DType.STRING),)}, "gives profile__limit as float32, not as string"),
    ],
)
def test_what_is_missing_is_named_with_the_remedy(changed, message):
    text = misfit(replace(MANIFEST, **changed), shop())
    assert message in text and "headrace train --name fraud" in text


def test_champions_are_found_and_those_whose_views_change(tmp_path):
    from sklearn.linear_model import LogisticRegression

    saved = save_model(tmp_path, MANIFEST, LogisticRegression())
    promote(tmp_path, "fraud", saved.version)
    catalog = shop()
    spend, *others = catalog.views
    assert misfits(tmp_path, catalog) == {} and changed_inputs(tmp_path, catalog, catalog) == {}
    other = replace(catalog, views=(replace(spend, fingerprint="new"), *others))
    assert changed_inputs(tmp_path, catalog, other) == {"fraud": ["card_spend"]}
    assert list(misfits(tmp_path, replace(catalog, services=()))) == ["fraud"]
