"""Plans are made once: those of services beforehand, those of references when first asked for, and not without end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shop import reference, shop

import serving.plans
from headrace.catalog.definitions import Service
from headrace.errors import RequestError, UnknownNameError
from serving.plans import Plans


def test_a_service_s_plan_is_there_from_the_start_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.plans, "MOST_REFERENCES", 3)
    plans = Plans(shop())
    monkeypatch.setattr(serving.plans, "plan_service", None)
    kept = plans.of("card_v1", [], False)
    for features in (["profile:vip"], ["profile:city"], ["profile:limit"], ["profile:since"]):
        plans.of(None, features, False)
    assert plans.of("card_v1", [], False) is kept
    assert plans.of("card_v1", [], True) is not kept


def test_plans_of_references_are_kept_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.plans, "MOST_REFERENCES", 2)
    plans = Plans(shop())
    first, second = (plans.of(None, [f"profile:{name}"], False) for name in ("vip", "city"))
    assert plans.of(None, ["profile:vip"], False) is first
    third = plans.of(None, ["profile:since"], False)
    assert plans.of(None, ["profile:city"], False) is second and plans.of(None, ["profile:since"], False) is third
    assert plans.of(None, ["profile:vip"], False) is not first


def test_a_service_whose_short_names_collide_hinders_no_other_and_is_told_when_asked() -> None:
    twice = Service("twice", (reference("profile", "city"), replace(reference("profile", "city"), name="other")))
    plans = Plans(replace(shop(), services=(*shop().services, twice)))
    assert plans.of("twice", [], True).plan.outputs[1].name == "other__city"
    with pytest.raises(RequestError, match="occurs twice"):
        plans.of("twice", [], False)
    with pytest.raises(UnknownNameError):
        plans.of("nope", [], False)
