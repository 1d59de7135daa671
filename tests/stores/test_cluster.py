"""The core on a real cluster: the same answers, whatever one shard loses."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shop import Live, now, running, shop
from stores.cluster_nodes import Node, answers, cluster, wait_until

from headrace.settings import Settings
from headrace.stores.cluster import ClusterStore, combined, level, slot_of
from headrace.stores.connection import open_store
from headrace.stores.keys import markers_key, stream_key
from headrace.stores.markers import Applied, Markers

# redis-py's asyncio client forgets connections to nodes when it asks for the slots anew.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

CARDS = [f"c{n}" for n in range(40)]


@pytest.fixture(autouse=True)
def _forgotten_connections() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    with cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


def settings_of(nodes: list[Node], folder: Path) -> Settings:
    url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
    return Settings(repo=folder / "repo", data_dir=folder / "data", redis_url=url)


class Pushed:
    """What was pushed, by card."""

    def __init__(self, live: Live) -> None:
        self.live, self.counts, self.number = live, Counter[str](), 0

    def push(self, n: int) -> None:
        """Pushes, again and again while the store cannot take it; ids make a repeat harmless."""
        rows = []
        for _ in range(n):
            card = CARDS[self.number * 7 % len(CARDS)]
            rows.append({"id": f"p{self.number}", "card_id": card, "shop_id": 1, "amount": 0.5, "ts": now(-5)})
            self.number, self.counts[card] = self.number + 1, self.counts[card] + 1
        wait_until(lambda: self._try(rows))

    def _try(self, rows: list[dict[str, Any]]) -> bool:
        try:
            self.live.push(rows)
        except AssertionError:
            return False
        return True

    def assert_served(self) -> None:
        """Waits until a lookup gives every event once, and sees that it stays so."""
        expected = [self.counts[card] for card in CARDS]
        wait_until(lambda: self._counts() == expected, 40)
        for _ in range(5):
            time.sleep(0.1)
            assert self._counts() == expected

    def _counts(self) -> Any:
        body = {"feature_service": "card_v1", "entities": {"card_id": CARDS}}
        reply = self.live.http.post("/get-online-features", json=body)
        if reply.status_code != 200:
            return None
        results = dict(zip(reply.json()["metadata"]["feature_names"], reply.json()["results"], strict=True))
        assert results["sum_1h"]["values"] == [n / 2 or None for n in results["count_1h"]["values"]]
        return results["count_1h"]["values"]


def test_what_is_pushed_is_served_and_a_shard_that_restarts_empty_is_built_anew(
    nodes: list[Node], tmp_path: Path
) -> None:
    settings = settings_of(nodes, tmp_path)
    with running(settings, shop()) as live:
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


def test_a_failover_to_a_replica_counts_every_event_once(tmp_path: Path) -> None:
    with (
        cluster(tmp_path / "nodes", replicas=1) as nodes,
        running(settings_of(nodes[1:], tmp_path), shop()) as live,
    ):
        pushed = Pushed(live)
        pushed.push(300)
        pushed.assert_served()
        nodes[0].kill()
        wait_until(lambda: nodes[3].client.info("replication")["role"] == "master")
        pushed.push(100)
        pushed.assert_served()


def test_what_is_applied_is_the_least_that_a_shard_says(nodes: list[Node], tmp_path: Path) -> None:
    store: Any = open_store(settings_of(nodes, tmp_path))
    markers, key = Markers(store, "copies"), markers_key("copies")
    markers.raise_applied("source", "s", 0, Applied(9, 0, 9))
    copies = store.copies(key)
    assert {store.node_of(slot_of(copy)).port for copy in copies} == {node.port for node in nodes}
    behind = store.get_redis_connection(store.node_of(slot_of(copies[1])))
    behind.hset(copies[1], "source|s|0", '{"offset": "7", "index": 0, "total": 7, "watermark_us": null}')
    held = markers.applied("source", [("s", 0)])["s", 0]
    assert held is not None and held.offset == 7
    store.hset(key, "build|v", "5")
    behind.hdel(copies[1], "source|s|0", "build|v")
    assert markers.applied("source", [("s", 0)]) == {("s", 0): None}
    level(store, key)
    for copy in copies:
        assert not store.get_redis_connection(store.node_of(slot_of(copy))).hgetall(copy)
    store.close()


def test_the_newest_trim_and_any_gap_count_whichever_shard_tells_of_it() -> None:
    old, new = b'{"offset": "7", "index": 0}', b'{"offset": "12", "index": 0}'
    fields = ("HMGET", "key", "trimmed|s|0", "archived|s|0", "gap|worker|s|0", "view|v")
    assert combined(fields, [[old, old, None, b"1"], [new, new, b"gap", None]]) == [new, old, b"gap", None]


def test_keys_are_spread_and_read_back(nodes: list[Node], tmp_path: Path) -> None:
    store: Any = open_store(settings_of(nodes, tmp_path))
    assert isinstance(store, ClusterStore)
    streams = [stream_key("spread", "s", part) for part in range(9)]
    for n, name in enumerate(streams):
        store.xadd(name, {"n": n}, id=f"{n + 1}-0")
    found = store.xread(dict.fromkeys(streams, b"0-0"), count=5, block=10)
    assert [int(entries[0][1][b"n"]) for _, entries in found] == list(range(9))
    assert store.xread({name: f"{n + 1}-0" for n, name in enumerate(streams)}, block=10) == []
    assert len({store.node_of(slot_of(name.encode())).port for name in streams}) == 3
    store.close()
