"""The online store as a cluster: commands go to the node of their key, markers have a copy on every shard.

A shard that fails over may lose the tail of its writes, or all, while the others do not. So every shard holds its own
copy of the markers, raised after its values: what is applied is the least that a copy says, and a lookup reads the
copy of a shard before that shard's values. Whoever begins to write levels the copies first (see cluster_level.py).

Slots that move are followed. A client of one run (see one_run.py) follows them only between the primaries that it met:
whatever else happens ends the work, and what begins anew asks for the slots anew.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, cast

import orjson
import redis
from redis.backoff import NoBackoff
from redis.cluster import PRIMARY, ClusterNode
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from headrace.stores.cluster_copies import (
    COPIES,
    OUTCOMES,
    SCRIPTS,
    as_bytes,
    combined,
    copy_key,
    first_numbers,
    key_place,
    nothing,
    on_copy,
    slot_of,
)
from headrace.stores.cluster_shards import Run, Shard, read_run, read_shards
from headrace.stores.one_run import Run as OneRun
from headrace.stores.one_run import StoreReplacedError

__all__ = ["SCHEMES", "ClusterStore", "is_cluster", "open_cluster"]

SCHEMES = ("redis+cluster", "rediss+cluster")
SLOTS_EVERY_S = 1.0
_POLL_S = 0.01
_AS_THEY_SHOULD_BE = (b"noeviction", b"yes", b"always")
_NOT_GIVEN_ON = ("startup_nodes", "retry", "url", "host", "port")


def open_cluster(kind: Any, url: str, **options: Any) -> Any:
    """A client of the cluster that the node at `url` (scheme `redis+cluster` or `rediss+cluster`) belongs to."""
    return kind.from_url(url.replace("+cluster", "", 1), **options)


def is_cluster(store: Any) -> bool:
    """Whether a client is one of a cluster."""
    return isinstance(store, ClusterStore)


class ClusterStore(redis.RedisCluster):
    """A client of every primary, used like that of one server; the markers' key stands for its copies."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._given = {name: value for name, value in options.items() if name not in _NOT_GIVEN_ON}
        self._copies: dict[bytes, dict[bytes, str]] = {}
        self._old: set[bytes] = set()
        self._met: frozenset[str] | None = None
        self._looked_s = time.monotonic()
        super().__init__(*args, **{**options, "reinitialize_steps": 0})
        manager: Any = self.nodes_manager
        manager.get_node = functools.partial(self._node, manager.get_node)
        self._owners = set(self.owners().values())

    def fresh(self) -> ClusterStore:
        """A client like this with connections of its own, to one run of each node's server (see one_run.py), which
        knows the slots as they are now and follows them among the primaries of now alone."""
        make: Any = ClusterNode
        nodes = [make(node.host, node.port) for node in self.nodes_manager.nodes_cache.values()]
        options = {**self._given, "redis_connect_func": _Runs().connect, "retry": Retry(NoBackoff(), 0)}
        store = ClusterStore(startup_nodes=nodes, **options)
        store._met = frozenset(store._owners)
        manager: Any = store.nodes_manager
        manager.move_slot = functools.partial(_move_among, store._met, manager.move_slot)
        return store

    def execute_command(self, *args: Any, **options: Any) -> Any:
        ask: Any = super().execute_command
        place = key_place(args)
        try:
            return ask(*args, **options) if place is None else self._on_copies(ask, args, place)
        except RedisClusterException as error:  # no redis.RedisError: nobody can be reached, or nobody has the slot
            raise redis.ConnectionError(str(error)) from error

    def _on_copies(self, ask: Callable[..., Any], args: tuple[Any, ...], place: int) -> Any:
        """One reply to a command on the markers. What copy 0 refuses is done nowhere, what it holds counts."""
        held = self.copies(as_bytes(args[place]))
        first, *others = held
        replies = [ask(*on_copy(args, place, first))]
        if args[0] in SCRIPTS and replies[0] in OUTCOMES:
            return replies[0]
        if args[0] == "HSETNX":
            args = (*args[:3], ask("HGET", first, args[2]))
        replies += [ask(*on_copy(args, place, copy)) for copy in others]
        bare = nothing(args) if self._owners - set(self._copies[as_bytes(args[place])].values()) else None
        return combined(args, replies if bare is None else [*replies, bare])

    def copies(self, key: bytes) -> list[bytes]:
        """The keys that `key` of the markers stands for, copy 0 first.

        Raises StoreReplacedError if this client is of one run and the slots of copies or the primaries are others now.
        """
        self._look_at_slots()
        held = self._copies.get(key)
        if held is not None and self._met is not None:
            if held != self._owned(held):
                raise StoreReplacedError(
                    "the markers of a shard moved to another; starting again with the slots of now"
                )
        elif held is not None:
            held = self._copies[key] = self._owned(held)
        if held is None or key in self._old or self._owners - set(held.values()):
            self._old.discard(key)
            held = self._copies[key] = self._owned([copy_key(key, number) for number in self.listed(key)])
        return list(held)

    def on_one(self, *args: Any) -> Any:
        """A command on one copy of markers."""
        return super().execute_command(*args)  # type: ignore[no-untyped-call]

    def listed(self, key: bytes) -> list[int]:
        """The numbers of the copies, ascending."""
        raw = self.on_one("HGET", copy_key(key, 0), COPIES)
        return first_numbers(key, self.owners()) if raw is None else orjson.loads(raw)

    def forget_copies(self) -> None:
        """Asks copy 0 for the others when they are needed next."""
        self._copies.clear()

    def _owned(self, copies: Any) -> dict[bytes, str]:
        return {copy: self.node_of(slot_of(copy)).name for copy in copies}

    def _look_at_slots(self) -> None:
        if time.monotonic() < self._looked_s + SLOTS_EVERY_S:
            return
        owners = {slot: shard.name for shard in self.shards() for slot in shard.slots}
        if owners != self.owners():
            self.nodes_manager.initialize(disconnect_startup_nodes_pools=False)
        self._owners, self._looked_s, self._old = set(self.owners().values()), time.monotonic(), set(self._copies)
        if self._met is not None and self._owners != self._met:
            raise StoreReplacedError("the cluster has other primaries now; starting again with these")

    def owners(self) -> dict[int, str]:
        """The address of the primary that has each slot, as far as this client knows."""
        return {slot: nodes[0].name for slot, nodes in self.nodes_manager.slots_cache.items()}

    def shards(self) -> list[Shard]:
        """The shards, as the first node that answers tells now."""
        failure: Exception = redis.ConnectionError("the cluster has no nodes")
        for node in tuple(self.nodes_manager.nodes_cache.values()):
            client: Any = self.get_redis_connection(node)
            try:
                slots, nodes = (client.execute_command("CLUSTER", what) for what in ("SLOTS", "NODES"))
                return read_shards(slots, nodes, node.host)
            except (redis.ConnectionError, redis.TimeoutError) as error:
                failure = error
        raise failure

    def run_of(self, name: str) -> Run:
        """The run of the server at an address."""
        client: Any = self.get_redis_connection(self._at(name))
        seconds, micros = client.time()
        return read_run(client.info(), seconds * 1_000_000 + micros)

    def client_of(self, key: bytes) -> Any:
        """A client of the one node that has `key`."""
        return self.get_redis_connection(self.node_of(slot_of(key)))

    def primaries(self) -> list[ClusterNode]:
        """The nodes that have slots."""
        return [self._at(name) for name in sorted(set(self.owners().values()))]

    def _at(self, name: str) -> ClusterNode:
        find: Any = self.get_node
        node: ClusterNode = find(node_name=name)
        return node

    def _node(self, known: Callable[..., Any], host: Any = None, port: Any = None, node_name: Any = None) -> Any:
        """A node, which may be met for the first time where a key was moved to."""
        found = known(host, port, node_name)
        if found is None and node_name is not None:
            if self._met is not None:
                raise StoreReplacedError(f"a key went to {node_name}, which took no part in this work")
            make: Any = ClusterNode
            address, _, number = node_name.rpartition(":")
            found = self.nodes_manager.nodes_cache[node_name] = make(address, int(number), PRIMARY)
        return found

    def node_of(self, slot: int) -> ClusterNode:
        """The node that has a slot."""
        node: ClusterNode = self.nodes_manager.get_node_from_slot(slot)
        return node

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:
        """Commands of one key each, by node; a transaction takes keys of one slot alone."""
        begin: Any = super().pipeline
        pipe = begin(transaction, shard_hint)
        pipe.eval = functools.partial(pipe.execute_command, "EVAL")
        pipe.execute = functools.partial(_execute, pipe.execute)
        return pipe

    def xread(self, streams: Any, count: int | None = None, block: int | None = None, **_: Any) -> Any:
        """As of one server: entries after each stream's id; no node can wait for all, so it asks again and again."""
        until_s = time.monotonic() + (block or 0) / 1_000
        while True:
            pipe = self.pipeline(transaction=False)
            for key, after in streams.items():
                pipe.xrange(key, min=f"({after if isinstance(after, str) else after.decode()}", count=count)
            found = [[as_bytes(key), entries] for key, entries in zip(streams, pipe.execute(), strict=True) if entries]
            if found or time.monotonic() >= until_s:
                return found
            time.sleep(_POLL_S)

    def time(self, **_: Any) -> Any:
        """The clock of one node, the same as long as there is one shard order."""
        return self.get_redis_connection(self.node_of(0)).time()

    def config_get(self, pattern: Any = "*", *args: Any, **_: Any) -> Any:
        """A setting of all nodes; where they differ, that of one which is not as it should be."""
        held: dict[Any, Any] = {}
        for node in self.primaries():
            for name, value in cast(Any, self.get_redis_connection(node)).config_get(pattern, *args).items():
                if name not in held or as_bytes(held[name]) in _AS_THEY_SHOULD_BE:
                    held[name] = value
        return held


def _execute(execute: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return execute(*args, **options)
    except RedisClusterException as error:
        raise redis.ConnectionError(str(error)) from error


def _move_among(met: frozenset[str], move: Callable[[Any], None], error: Any) -> None:
    """Follows a slot that moved between the primaries that were met."""
    if f"{error.host}:{error.port}" not in met:
        raise StoreReplacedError(f"slot {error.slot_id} went to {error.host}:{error.port}, which took no part in this")
    move(error)


class _Runs:
    """The run of each node's server that was met first."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, int], OneRun] = {}

    def connect(self, connection: Any) -> None:
        """Greets a node on a new connection. Raises StoreReplacedError for another run than the first."""
        self._runs.setdefault((connection.host, connection.port), OneRun()).connect(connection)
