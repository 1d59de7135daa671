"""The core on a real cluster: the same answers, whatever one shard loses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cluster.nodes import Node, answers, wait_until
from cluster.pushed import Pushed
from shop import running, shop

from headrace.catalog.definitions import FeatureView
from headrace.errors import LayoutsMovedError
from headrace.settings import Settings
from headrace.stores.cluster import ClusterStore
from headrace.stores.cluster_copies import SHARD, combined, slot_of
from headrace.stores.cluster_level import level
from headrace.stores.cluster_shards import read_record
from headrace.stores.connection import open_store
from headrace.stores.keys import layout_field, markers_key, stream_key
from headrace.stores.layout_markers import LayoutMarkers, NewLayout
from headrace.stores.markers import Applied, Markers, Ready, build_field, ready_field

PRIMARIES = 3


def test_what_is_pushed_is_served_and_a_shard_that_restarts_empty_is_built_anew(
    nodes: list[Node], clustered: Settings
) -> None:
    with running(clustered, shop()) as live:
        pushed = Pushed(live)
        pushed.push(300)
        pushed.assert_served()
        for lost in (0, 2):
            live.wait_until_applied("archived")
            nodes[lost].kill()
            nodes[lost].start()
            wait_until(lambda lost=lost: answers(nodes[lost]))
            pushed.push(100)
            pushed.assert_served()


def test_what_is_applied_is_the_least_that_a_shard_says(nodes: list[Node], clustered: Settings) -> None:
    store: Any = open_store(clustered)
    markers, key = Markers(store, "copies"), markers_key("copies")
    markers.raise_applied("source", "s", 0, Applied(9, 0, 9))
    copies = store.copies(key.encode())
    assert {store.node_of(slot_of(copy)).port for copy in copies} == {node.port for node in nodes[:PRIMARIES]}
    behind = store.get_redis_connection(store.node_of(slot_of(copies[1])))
    behind.hset(copies[1], "source|s|0", '{"offset": "7", "index": 0, "total": 7, "watermark_us": null}')
    held = markers.applied("source", [("s", 0)])["s", 0]
    assert held is not None and held.offset == 7
    store.hset(key, "build|v", "5")
    behind.hdel(copies[1], "source|s|0", "build|v")
    assert markers.applied("source", [("s", 0)]) == {("s", 0): None}
    level(store, key)
    for copy in copies:
        assert set(store.client_of(copy).hgetall(copy)) == {b"copies", b"shard"}
    store.close()


def test_the_newest_trim_and_any_gap_count_whichever_shard_tells_of_it() -> None:
    old, new = b'{"offset": "7", "index": 0}', b'{"offset": "12", "index": 0}'
    fields = ("HMGET", "key", "trimmed|s|0", "archived|s|0", "gap|worker|s|0", "view|v")
    assert combined(fields, [[old, old, None, b"1"], [new, new, b"gap", None]]) == [new, old, b"gap", None]


def test_keys_are_spread_and_read_back(nodes: list[Node], clustered: Settings) -> None:
    store: Any = open_store(clustered)
    assert isinstance(store, ClusterStore)
    streams = [stream_key("spread", "s", part) for part in range(9)]
    for n, name in enumerate(streams):
        store.xadd(name, {"n": n}, id=f"{n + 1}-0")
    found = store.xread(dict.fromkeys(streams, b"0-0"), count=5, block=10)
    assert [int(entries[0][1][b"n"]) for _, entries in found] == list(range(9))
    assert store.xread({name: f"{n + 1}-0" for n, name in enumerate(streams)}, block=10) == []
    assert len({store.node_of(slot_of(name.encode())).port for name in streams}) == 3
    store.close()


def opened(settings: Settings) -> Any:
    return open_store(settings)


def begun(store: Any, *views: FeatureView) -> tuple[list[Any], list[int]]:
    """Markers of views that are complete; the copies, copy 0 first, and the builds."""
    markers, layouts = Markers(store, "copies"), LayoutMarkers(store, "copies")
    builds = [markers.begin_build(view) for view in views]
    new = [NewLayout(view, build, Ready(None, {})) for view, build in zip(views, builds, strict=True)]
    assert layouts.complete(new, {}) == "complete"
    assert not level(store, markers_key("copies"))
    return store.copies(markers_key("copies").encode()), builds


def views() -> list[FeatureView]:
    return [FeatureView(name, "windowed", ("card",), (), name, source="s") for name in ("one", "two")]


def test_a_layout_whose_statement_a_shard_lost_is_completed_again_and_no_other(clustered: Settings) -> None:
    one, two = views()
    with opened(clustered) as store:
        (first, *others), builds = begun(store, one, two)
        for copy in others:
            store.client_of(copy).hdel(copy, ready_field(one))
        assert LayoutMarkers(store, "copies").held().ready == {layout_field(two)}
        assert level(store, markers_key("copies"))
        assert not store.client_of(first).hexists(first, ready_field(one))
        held = LayoutMarkers(store, "copies").held()
        assert held.ready == {layout_field(two)} and list(held.builds.values()) == builds
        store.client_of(others[0]).hdel(others[0], build_field(two))
        assert level(store, markers_key("copies"))
        held = LayoutMarkers(store, "copies").held()
        assert held.ready == set() and set(held.builds) == {layout_field(one)}


def test_copy_0_decides_who_may_raise_and_the_others_follow(clustered: Settings) -> None:
    with opened(clustered) as store:
        markers, layouts = Markers(store, "copies"), LayoutMarkers(store, "copies")
        (first, *others), _ = begun(store, views()[0])
        completed = layouts.held().completed
        for copy in others:
            store.client_of(copy).hset(copy, "layouts", "1")
        with pytest.raises(LayoutsMovedError):
            markers.raise_applied("source", "s", 0, Applied(9), completed=1)
        assert not any(store.client_of(copy).hexists(copy, "source|s|0") for copy in (first, *others))
        assert layouts.held().completed == completed
        markers.raise_applied("source", "s", 0, Applied(9), completed=completed)
        assert markers.applied("source", [("s", 0)])["s", 0] == Applied(9)


@pytest.mark.parametrize(
    ("run", "has_all", "is_whole"), [("now", False, True), ("other", True, True), ("other", False, False)]
)
def test_a_shard_that_took_over_slots_its_copy_does_not_know_is_not_believed(
    clustered: Settings, run: str, has_all: bool, is_whole: bool
) -> None:
    with opened(clustered) as store:
        (_, copy, *_), builds = begun(store, views()[0])
        record = read_record(store.client_of(copy).hget(copy, SHARD))
        slots = record.slots if has_all else record.slots - {min(record.slots)}
        changed = replace(record, run=record.run if run == "now" else "x", slots=slots)
        store.client_of(copy).hset(copy, SHARD, changed.encode())
        assert level(store, markers_key("copies")) == (not is_whole)
        assert list(LayoutMarkers(store, "copies").held().builds.values()) == (builds if is_whole else [])
        assert read_record(store.client_of(copy).hget(copy, SHARD)).slots == record.slots
