"""When a layout is complete, and whose raise of a marker that refuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from headrace.catalog.definitions import FeatureView
from headrace.errors import LayoutsMovedError
from headrace.settings import Settings
from headrace.stores.connection import open_store
from headrace.stores.keys import layout_field, markers_key
from headrace.stores.layout_markers import LayoutMarkers, NewLayout
from headrace.stores.markers import Applied, Markers, Ready

SPEND = FeatureView("spend", "windowed", ("card",), (), "a", source="payments")
VISITS = FeatureView("visits", "windowed", ("card",), (), "b", generation=7, source="payments")
BIG = 1 << 60
PLACE = ("payments", 0)


@pytest.fixture
def store(settings: Settings) -> Iterator[redis.Redis]:
    with open_store(settings) as client:
        client.delete(markers_key("layouts"))
        yield client


def new(view: FeatureView, build: int) -> NewLayout:
    return NewLayout(view, build, Ready(None, {}))


@pytest.mark.parametrize(
    ("applied", "built", "outcome"),
    [
        (None, 0, "complete"),
        (9, 10, "complete"),
        (BIG + 1, BIG + 1, "complete"),
        (BIG + 2, BIG + 1, "behind"),
        (10, 9, "behind"),
    ],
)
def test_a_layout_is_complete_only_if_no_marker_is_beyond_it(
    store: redis.Redis, applied: int | None, built: int, outcome: str
) -> None:
    markers, layouts = Markers(store, "layouts"), LayoutMarkers(store, "layouts")
    if applied is not None:
        markers.raise_applied("source", *PLACE, Applied(applied))
    build = markers.begin_build(SPEND)
    assert layouts.complete([new(SPEND, build)], {PLACE: built}) == outcome
    held = layouts.held()
    done = outcome == "complete"
    assert (held.completed > 0, layout_field(SPEND) in held.ready) == (done, done)
    assert held.builds == {layout_field(SPEND): build}


def test_layouts_are_complete_together_or_not_at_all_and_only_in_their_own_build(store: redis.Redis) -> None:
    markers, layouts = Markers(store, "layouts"), LayoutMarkers(store, "layouts")
    both = [new(view, markers.begin_build(view)) for view in (SPEND, VISITS)]
    assert layouts.complete([both[0], new(VISITS, both[1].build - 1)], {}) == "lost"
    assert layouts.held().ready == frozenset()
    assert layouts.complete(both, {}) == "complete"
    assert layouts.held().ready == {"spend@a.1", "visits@b.7"}
    completed = layouts.held().completed
    markers.raise_applied("source", *PLACE, Applied(5))
    assert layouts.complete(both, {PLACE: 4}) == "complete", "what is complete is kept so by the workers"
    assert layouts.held().completed == completed
    store.delete(markers_key("layouts"))
    assert layouts.complete(both, {PLACE: 9}) == "lost"


def test_a_marker_is_raised_only_by_who_knows_every_complete_layout(store: redis.Redis) -> None:
    markers, layouts = Markers(store, "layouts"), LayoutMarkers(store, "layouts")
    assert markers.raise_applied("source", *PLACE, Applied(1), completed=0) is None
    layouts.complete([new(SPEND, markers.begin_build(SPEND))], {PLACE: 1})
    with pytest.raises(LayoutsMovedError, match="does not know"):
        markers.raise_applied("source", *PLACE, Applied(2), completed=0)
    first = layouts.held().completed
    assert markers.raise_applied("source", *PLACE, Applied(2), completed=first) == Applied(1)
    store.delete(markers_key("layouts"))
    layouts.complete([new(SPEND, markers.begin_build(SPEND))], {})
    with pytest.raises(LayoutsMovedError):
        markers.raise_applied("source", *PLACE, Applied(3), completed=first)
    assert markers.raise_applied("archived", *PLACE, Applied(3)) is None, "the archiver writes no layouts"


def test_a_swept_layout_leaves_nothing(store: redis.Redis) -> None:
    markers, layouts = Markers(store, "layouts"), LayoutMarkers(store, "layouts")
    layouts.complete([new(SPEND, markers.begin_build(SPEND))], {})
    layouts.forget_ready(SPEND)
    assert not layouts.is_swept(SPEND)
    layouts.forget_build(SPEND)
    assert layouts.is_swept(SPEND) and layouts.held().completed > 0
