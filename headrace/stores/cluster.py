"""The online store as a cluster: commands go to the node of their key, markers have a copy on every shard.

A shard that fails over may lose the tail of its writes, or all, while the others do not. So every shard holds its own
copy of the markers, raised after its values: what is applied is the least that a copy says, and a lookup reads the
copy of a shard before that shard's values. Whoever begins to write levels the copies first: where builds or complete
layouts differ, a shard lost them, and they are begun anew.

No command is done twice. MOVED and ASK end a batch of writes and a lookup; what begins anew asks for the slots anew.
"""

from __future__ import annotations

import contextlib
import functools
import time
from binascii import crc_hqx
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import orjson
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry

from headrace.stores.one_run import Run
from headrace.stores.wire import Wire

__all__ = [
    "SCHEMES",
    "AsyncClusterStore",
    "ClusterStore",
    "ClusterWire",
    "combined",
    "level",
    "open_cluster",
    "wire_of",
]

SCHEMES = ("redis+cluster", "rediss+cluster")
SLOTS = 16_384
_MARKERS = b"headrace.markers:"
_POLL_S = 0.01
_OUTCOMES = (b"moved", b"lost", b"behind")
_ALIKE = ("view", "build", "layouts")


def slot_of(key: bytes) -> int:
    """The slot of a key that holds no brace."""
    return crc_hqx(key, 0) % SLOTS


def open_cluster(kind: Any, url: str, **options: Any) -> Any:
    """A client of the cluster that the node at `url` (scheme `redis+cluster` or `rediss+cluster`) belongs to."""
    return kind.from_url(url.replace("+cluster", "", 1), **options)


class _Copies:
    """The keys of the markers' copies, one per shard: the first numbered ones that hash to each."""

    def __init__(self, node_of: Callable[[int], str], nodes: int) -> None:
        self._node_of, self._nodes = node_of, nodes
        self._keys: dict[bytes, list[bytes]] = {}

    def of(self, key: bytes) -> list[bytes]:
        if key not in self._keys:
            found: dict[str, bytes] = {}
            number = 0
            while len(found) < self._nodes:
                copy = b"%b:%d" % (key, number)
                found.setdefault(self._node_of(slot_of(copy)), copy)
                number += 1
            self._keys[key] = list(found.values())
        return self._keys[key]


def _key_place(args: Sequence[Any]) -> int | None:
    """Where a command on the markers has their key."""
    place = 3 if args[0] in ("EVAL", "EVALSHA") else 1
    if len(args) > place and _bytes(args[place]).startswith(_MARKERS):
        return place
    return None


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _on(args: Sequence[Any], place: int, copy: bytes) -> list[Any]:
    return [*args[:place], copy, *args[place + 1 :]]


class ClusterStore(redis.RedisCluster):
    """A client of every primary, used like that of one server; the markers' key stands for its copies."""

    def fresh(self) -> ClusterStore:
        """A client like this with connections of its own, to one run of each node's server (see one_run.py), which
        knows the slots as they are now."""
        make: Any = ClusterNode
        nodes = [make(node.host, node.port) for node in self.nodes_manager.nodes_cache.values()]
        options = {key: value for key, value in self._given.items() if key not in ("host", "port")}
        options["redis_connect_func"] = _Runs().connect
        return ClusterStore(startup_nodes=nodes, retry=Retry(NoBackoff(), 0), **options)

    def __init__(self, *args: Any, **options: Any) -> None:
        self._given = {key: value for key, value in options.items() if key not in ("startup_nodes", "retry", "url")}
        super().__init__(*args, **options)
        self._copies = _Copies(lambda slot: self.node_of(slot).name, len(self.primaries()))

    def client_of(self, key: bytes) -> Any:
        """A client of the one node that has `key`."""
        return self.get_redis_connection(self.node_of(slot_of(key)))

    def primaries(self) -> list[ClusterNode]:
        """The nodes that have slots."""
        ask: Any = self.get_primaries
        return list(ask())

    def node_of(self, slot: int) -> ClusterNode:
        node: ClusterNode = self.nodes_manager.get_node_from_slot(slot)
        return node

    def execute_command(self, *args: Any, **options: Any) -> Any:
        place = _key_place(args)
        ask: Any = super().execute_command
        if place is None:
            return ask(*args, **options)
        copies = self._copies.of(_bytes(args[place]))
        return combined(args, [ask(*_on(args, place, copy)) for copy in copies])

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:
        """Commands of one key each, by node; a transaction takes keys of one slot alone."""
        begin: Any = super().pipeline
        pipe = begin(transaction, shard_hint)
        pipe.eval = functools.partial(pipe.execute_command, "EVAL")
        return pipe

    def copies(self, key: str) -> list[bytes]:
        """The keys that `key` of the markers stands for."""
        return self._copies.of(key.encode())

    def xread(self, streams: Any, count: int | None = None, block: int | None = None, **_: Any) -> Any:
        """As of one server: entries after each stream's id; no node can wait for all, so it asks again and again."""
        until_s = time.monotonic() + (block or 0) / 1_000
        while True:
            pipe = self.pipeline(transaction=False)
            for key, after in streams.items():
                pipe.xrange(key, min=f"({after if isinstance(after, str) else after.decode()}", count=count)
            found = [[_bytes(key), entries] for key, entries in zip(streams, pipe.execute(), strict=True) if entries]
            if found or time.monotonic() >= until_s:
                return found
            time.sleep(_POLL_S)

    def time(self, **_: Any) -> Any:
        """The clock of one node, the same as long as there is one shard order."""
        return self.get_redis_connection(self.node_of(0)).time()

    def config_get(self, pattern: Any = "*", *args: Any, **_: Any) -> Any:
        """A setting of all nodes; the first that is other than `noeviction` where they differ."""
        held: dict[Any, Any] = {}
        for node in self.primaries():
            for name, value in cast(Any, self.get_redis_connection(node)).config_get(pattern, *args).items():
                if name not in held or held[name] in ("noeviction", b"noeviction"):
                    held[name] = value
        return held


class AsyncClusterStore(redis.asyncio.RedisCluster):
    """The same for asyncio."""

    _copies: _Copies | None = None

    def _known_copies(self) -> _Copies:
        if self._copies is None:
            node_of = lambda slot: self.nodes_manager.get_node_from_slot(slot).name  # noqa: E731
            self._copies = _Copies(node_of, len(self.get_primaries()))
        return self._copies

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        place = _key_place(args)
        if place is None:
            return await super().execute_command(*args, **options)
        await self.initialize()
        copies = self._known_copies().of(_bytes(args[place]))
        ask = super().execute_command
        return combined(args, [await ask(*_on(args, place, copy)) for copy in copies])

    async def initialize(self) -> AsyncClusterStore:
        """Asks for the slots if need be, and closes the connections to nodes that then no longer count."""
        if self._initialize:
            before = self._nodes()
            await super().initialize()
            kept = {id(node) for node in self._nodes()}
            await _disconnect([node for node in before if id(node) not in kept])
        return self

    async def aclose(self) -> None:
        """Closes all connections, those too of a client that was about to ask for the slots anew."""
        self._initialize = True
        await _disconnect(self._nodes())

    def _nodes(self) -> list[Any]:
        return [*self.nodes_manager.startup_nodes.values(), *self.nodes_manager.nodes_cache.values()]

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:
        return _AsyncPipeline(self, redis.asyncio.RedisCluster.pipeline(self, False))


async def _disconnect(nodes: Sequence[Any]) -> None:
    for node in nodes:
        with contextlib.suppress(redis.RedisError, OSError):
            await node.disconnect()


class _AsyncPipeline:
    """Commands by node, each node's in order and all nodes' at once, so that a node's copy of the markers is read
    before its values. A redirection fails: it would break that order."""

    def __init__(self, store: AsyncClusterStore, pipe: Any) -> None:
        self._store, self._pipe = store, pipe
        self._commands: list[tuple[Any, ...]] = []

    def hmget(self, key: Any, fields: Sequence[Any]) -> None:
        self._commands.append(("HMGET", key, *fields))

    def __getattr__(self, name: str) -> Any:
        def queue(*args: Any, **options: Any) -> None:
            before = len(self._pipe)
            getattr(self._pipe, name)(*args, **options)
            queued = self._pipe._execution_strategy._command_queue
            self._commands += [command.args for command in queued[before:]]

        return queue

    async def execute(self) -> list[Any]:
        await self._store.initialize()
        pipe: Any = redis.asyncio.RedisCluster.pipeline(self._store, False)
        sizes = []
        for args in self._commands:
            place = _key_place(args)
            copies = [None] if place is None else self._store._known_copies().of(_bytes(args[place]))
            for copy in copies:
                pipe.execute_command(*(args if copy is None or place is None else _on(args, place, copy)))
            sizes.append(0 if place is None else len(copies))
        replies = iter(await pipe.execute(allow_redirections=False))
        return [
            combined(args, [next(replies) for _ in range(size)]) if size else next(replies)
            for args, size in zip(self._commands, sizes, strict=True)
        ]


def combined(args: Sequence[Any], replies: Sequence[Any]) -> Any:
    """One reply of the copies' replies to a command on the markers."""
    if args[0] == "HGETALL":
        fields = dict.fromkeys(field for reply in replies for field in reply)
        held = {field: _combined_field(field, [reply.get(field) for reply in replies]) for field in fields}
        return {field: value for field, value in held.items() if value is not None}
    if args[0] == "HMGET":
        fields_and_values = zip(args[2:], zip(*replies, strict=True), strict=True)
        return [_combined_field(_bytes(field), values) for field, values in fields_and_values]
    if args[0] == "HGET":
        return _combined_field(_bytes(args[2]), replies)
    outcome = next((word for word in _OUTCOMES if word in replies), None)
    if outcome is not None:
        return outcome
    if args[0] in ("EVAL", "EVALSHA"):
        return None if None in replies else min(replies, key=_place)
    return max(replies)


def _combined_field(field: bytes, values: Sequence[bytes | None]) -> bytes | None:
    kind = field.partition(b"|")[0].decode()
    known = [value for value in values if value is not None]
    if len(set(values)) == 1 or not known:
        return values[0]
    if kind in ("gap", "loss"):
        return max(known, key=len)
    if kind == "trimmed":
        return max(known, key=_place)
    if kind in ("source", "archived") and len(known) == len(values):
        return min(known, key=_place)
    return None


def _place(value: bytes) -> tuple[int, int]:
    try:
        held = orjson.loads(value)
        return int(held["offset"]), int(held["index"])
    except (TypeError, KeyError, ValueError):
        return 0, 0


class _Runs:
    """The run of each node's server that was met first."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, int], Run] = {}

    def connect(self, connection: Any) -> None:
        """Greets a node on a new connection. Raises StoreReplacedError for another run than the first."""
        self._runs.setdefault((connection.host, connection.port), Run()).connect(connection)


def level(store: Any, key: str) -> None:
    """Makes the copies of the markers alike: each says what all say. Where a shard lost builds or complete layouts,
    all are forgotten, and begun anew. Does nothing to the one markers of one server."""
    if not isinstance(store, ClusterStore):
        return
    copies = [(store.client_of(copy), copy) for copy in store.copies(key)]
    held = [client.hgetall(copy) for client, copy in copies]
    told = combined(("HGETALL",), held)
    layouts = [{field: value for field, value in fields.items() if _is_layout(field)} for fields in held]
    if any(fields != layouts[0] for fields in layouts):
        told = {field: value for field, value in told.items() if not _is_layout(field)}
    for (client, copy), fields in zip(copies, held, strict=True):
        gone = [field for field in fields if field not in told]
        other = {field: value for field, value in told.items() if fields.get(field) != value}
        if gone:
            client.hdel(copy, *gone)
        if other:
            client.hset(copy, mapping=other)


def _is_layout(field: bytes) -> bool:
    return field.partition(b"|")[0].decode() in _ALIKE


class ClusterWire:
    """A Wire to every node; a command goes to the node of its key, and replies come back in the commands' order."""

    keys_per_command = 1  # several must lie in one slot

    def __init__(self, store: ClusterStore) -> None:
        self._store = store
        self._names = [store.node_of(slot).name for slot in range(SLOTS)]
        self._nodes = {node.name: node for node in store.primaries()}
        self._wires: dict[str, Wire] = {}
        self._order: deque[str] = deque()

    def send(self, commands: Sequence[bytes]) -> None:
        """Sends the commands; their replies must be received, in order."""
        names = [self._names[slot_of(_key_of(command))] for command in commands]
        self._order.extend(names)
        shares: dict[str, list[bytes]] = {}
        for name, command in zip(names, commands, strict=True):
            shares.setdefault(name, []).append(command)
        for name, share in shares.items():
            self._wire(name).send(share)

    def receive(self, n: int) -> list[Any]:
        """The next `n` replies. If one of them is an error, raises it after all have been read."""
        names = [self._order.popleft() for _ in range(n)]
        replies: dict[str, Any] = {}
        errors: list[redis.RedisError] = []
        for name, count in Counter(names).items():
            try:
                replies[name] = iter(self._wire(name).receive(count))
            except redis.ResponseError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return [next(replies[name]) for name in names]

    def close(self) -> None:
        """Closes the connections; the next use opens others."""
        self._order.clear()
        for wire in self._wires.values():
            wire.close()

    def _wire(self, name: str) -> Wire:
        if name not in self._wires:
            self._wires[name] = Wire(self._store.get_redis_connection(self._nodes[name]))
        return self._wires[name]


def wire_of(store: Any) -> Wire | ClusterWire:
    """The wire to a client's server, or to its cluster's nodes."""
    return ClusterWire(store) if isinstance(store, ClusterStore) else Wire(store)


def _key_of(command: bytes) -> bytes:
    """The key of a packed HGET, HMGET or EVALSHA: keys hold no line breaks."""
    parts = command.split(b"\r\n", 9)
    return parts[8] if parts[2] == b"EVALSHA" else parts[4]
