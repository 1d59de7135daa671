"""Layouts from one catalog to the next: what arrives, takes over, retires and is forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.catalog.definitions import (
    Catalog,
    Column,
    DType,
    Entity,
    FeatureView,
    Layout,
    Source,
    catalog_from_json,
    catalog_to_json,
)
from headrace.catalog.layouts import RETIRE_US, announced, continued, new_views, rebuilt, settled
from headrace.errors import UnknownNameError

CARD = Entity("card", "card", DType.STRING)
SOURCE = Source("payments", (Column("card", DType.STRING), Column("ts", DType.TIMESTAMP)), "ts")
SPEND = FeatureView("spend", "plain", ("card",), (), "a", source="payments")
LIMIT = FeatureView("limit", "plain", ("card",), (), "b", source="payments")
FIRST = Catalog("shop", 3, "wall", (CARD,), (SOURCE,), (SPEND, LIMIT))
NOW_US = 1_000


def compiled(previous: Catalog, *views: FeatureView, entities: tuple[Entity, ...] = (CARD,)) -> Catalog:
    """A catalog as apply compiles it after `previous`."""
    return continued(replace(FIRST, version=previous.version + 1, views=views, entities=entities), previous)


def settle(previous: Catalog, target: Catalog, now_us: int = NOW_US, swept: bool = False) -> Catalog:
    return settled(previous, target, now_us, lambda view: swept)


def test_a_rebuild_announces_a_layout_and_then_lets_it_take_over() -> None:
    target = rebuilt(FIRST, ["spend"])
    anew = replace(SPEND, generation=4)
    assert new_views(FIRST, target) == (anew,)
    interim = announced(FIRST, target)
    assert (interim.version, interim.views, interim.arriving) == (4, FIRST.views, (Layout(anew, (CARD,)),))
    final = settle(interim, target)
    assert (final.version, final.views, final.arriving) == (5, (anew, LIMIT), ())
    assert final.retiring == (Layout(SPEND, (CARD,), NOW_US + RETIRE_US),)
    assert catalog_from_json(catalog_to_json(final)) == final


def test_a_rebuild_that_was_announced_goes_on_under_the_same_layout() -> None:
    interim = announced(FIRST, rebuilt(FIRST, ["spend"]))
    again = rebuilt(interim, ["spend", "limit"])
    assert [view.generation for view in again.views] == [4, 5]
    assert [layout.view.generation for layout in announced(interim, again).arriving] == [4, 5]
    assert announced(interim, rebuilt(interim, ["spend"])) == interim
    with pytest.raises(UnknownNameError, match="no feature view 'typo'"):
        rebuilt(FIRST, ["typo"])


def test_a_changed_view_that_was_announced_keeps_its_layout_when_it_is_compiled_again() -> None:
    changed = replace(SPEND, fingerprint="c")
    interim = announced(FIRST, compiled(FIRST, changed, LIMIT))
    assert compiled(interim, changed, LIMIT).views[0].generation == 4
    assert settle(interim, compiled(interim, changed, LIMIT)).views[0] == replace(changed, generation=4)


def test_a_layout_that_no_definition_wants_any_more_retires_unserved() -> None:
    interim = announced(FIRST, compiled(FIRST, replace(SPEND, fingerprint="c"), LIMIT))
    final = settle(interim, compiled(interim, SPEND, LIMIT))
    assert final.views == FIRST.views and final.arriving == ()
    assert [layout.view.fingerprint for layout in final.retiring] == ["c"]


def test_an_apply_of_something_else_leaves_a_layout_under_construction_alone() -> None:
    interim = announced(FIRST, rebuilt(FIRST, ["spend"]))
    final = settle(interim, compiled(interim, SPEND))
    assert final.arriving == interim.arriving and [layout.view for layout in final.retiring] == [LIMIT]


def test_a_removed_view_retires_with_its_entities_and_its_name_never_gets_its_values_back() -> None:
    gone = settle(FIRST, compiled(FIRST, LIMIT, entities=()))
    assert gone.retiring == (Layout(SPEND, (CARD,), NOW_US + RETIRE_US),)
    assert compiled(gone, SPEND, LIMIT).views[0].generation == 5


def test_a_retired_layout_is_forgotten_once_its_time_is_over_and_it_is_swept() -> None:
    gone = settle(FIRST, compiled(FIRST, LIMIT))
    over_us = NOW_US + RETIRE_US
    for now_us, swept, kept in [(over_us - 1, True, 1), (over_us, False, 1), (over_us, True, 0)]:
        assert len(settle(gone, compiled(gone, LIMIT), now_us, swept).retiring) == kept


def test_what_is_announced_has_the_sources_of_both() -> None:
    grown = replace(SOURCE, columns=(*SOURCE.columns, Column("n", DType.INT64)), added=(("n", 4),))
    other = replace(SOURCE, name="visits")
    previous = replace(FIRST, sources=(SOURCE, other))
    target = replace(rebuilt(previous, ["spend"]), sources=(grown,))
    assert announced(previous, target).sources == (grown, other)
    assert settle(announced(previous, target), target).sources == (grown,)
