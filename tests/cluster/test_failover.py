"""A replica that lags takes a shard over: what it did not get is told honestly, and what is served is what the log
holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from cluster.nodes import Node, cluster, cut_off, owner_of, url_of, wait_until
from cluster.pushed import Pushed
from shop import running, shop
from world import SHORT, World

from headrace.settings import Settings
from headrace.stores.cluster_copies import slot_of
from headrace.stores.keys import stream_key
from headrace.stores.markers import Markers

PRIMARIES = 3


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    """Three primaries, each with a replica, of which each test loses one."""
    with cluster(tmp_path_factory.mktemp("nodes"), PRIMARIES, replicas=PRIMARIES) as started:
        yield started


def world_on(nodes: list[Node], folder: Path, shard: Node) -> World:
    """A project whose stream is on a shard."""
    names = (f"{folder.name}_{number}" for number in itertools.count())
    name = next(n for n in names if owner_of(nodes, slot_of(stream_key(n, SHORT.name, 0).encode())) is shard)
    return World(Settings(repo=folder, data_dir=folder, redis_url=url_of(nodes[-1])), name)


def fail_over(nodes: list[Node], lost: Node) -> None:
    """Kills a primary; returns when its replica has taken over."""
    replica = nodes[nodes.index(lost) + PRIMARIES]
    lost.kill()
    wait_until(lambda: replica.is_primary)
    wait_until(lambda: all(b"cluster_state:ok" in info(node) for node in nodes if node.process is not None))


def info(node: Node) -> bytes:
    found: Any = node.client.execute_command("CLUSTER", "INFO")
    return bytes(found)


def go_on(world: World) -> None:
    """What the processes do after that."""
    wait_until(lambda: is_started(world))
    world.archive()
    world.apply()


def is_started(world: World) -> bool:
    try:
        world.new_worker()
        world.new_archiver()
    except redis.RedisError:
        return False
    return True


def builds(world: World) -> list[int]:
    markers = Markers(world.store, world.catalog.project)
    return [markers.begin_build(view) for view in world.catalog.views]


def test_a_shard_that_lost_values_is_given_them_again(nodes: list[Node], tmp_path: Path) -> None:
    """From the stream, and what was trimmed there from the archive."""
    world, shard = world_on(nodes, tmp_path, nodes[1]), nodes[0]
    world.push()
    world.apply()
    before = builds(world)
    cut_off(shard)
    trimmed = world.push()
    world.apply()
    world.archive()
    world.push()
    world.apply()
    world.stream.trim(SHORT.name, 0, trimmed)
    applied = world.mark("source")
    fail_over(nodes, shard)
    wait_until(lambda: is_reached(world))
    held = world.mark("source")
    assert held is not None and applied is not None and held.offset < trimmed < applied.offset
    go_on(world)
    world.push()
    go_on(world)
    world.assert_right()
    assert builds(world) == before


def is_reached(world: World) -> bool:
    try:
        return world.mark("source") is not None
    except redis.RedisError:
        return False


def test_what_the_stream_lost_is_in_no_value(nodes: list[Node], tmp_path: Path) -> None:
    """Values of other shards held it, and no marker said so: the worker died before it raised them."""
    world = world_on(nodes, tmp_path, nodes[1])
    world.push()
    world.apply()
    world.archive()
    world.push()
    world.apply()
    cut_off(nodes[1])
    lost = world.push()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(redis.ConnectionError):
        patch.setattr(world.worker, "_raise", killed)
        world.worker.step(1)
    fail_over(nodes, nodes[1])
    world.lose([lost])
    go_on(world)
    world.assert_right()
    world.push()
    go_on(world)
    world.assert_right()


def killed(*given: Any) -> None:
    raise redis.ConnectionError("killed")


def test_a_failover_under_way_counts_every_event_once(nodes: list[Node], tmp_path: Path) -> None:
    settings = Settings(repo=tmp_path, data_dir=tmp_path, redis_url=url_of(nodes[-1]), port=0, lease=1.0)
    with running(settings, shop()) as live:
        pushed = Pushed(live)
        pushed.push(300)
        pushed.assert_served()
        nodes[2].kill()
        wait_until(lambda: nodes[2 + PRIMARIES].is_primary)
        pushed.push(100)
        pushed.assert_served()
