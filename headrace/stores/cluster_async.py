"""A cluster for asyncio: lookups and pushes of the server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import redis
import redis.asyncio
from redis.asyncio.cluster import ClusterNode, PipelineCommand
from redis.cluster import PRIMARY
from redis.exceptions import AskError, MovedError, RedisClusterException, TryAgainError

from headrace.errors import UnavailableError
from headrace.stores.cluster_copies import (
    COPIES,
    SCRIPTS,
    as_bytes,
    combined,
    copy_key,
    first_numbers,
    key_place,
    on_copy,
    slot_of,
)

__all__ = ["AsyncClusterStore"]

_KEYED = (*SCRIPTS, "GET", "HGET", "HGETALL", "HMGET")
"""Commands that are followed here where a slot moves: the client would send ASKING over another connection."""
_MOST_ROUNDS = 20
_PAUSE_S = 0.002
_SLOTS_EVERY_S = 0.5
_COPIES_EVERY_S = 1.0


class AsyncClusterStore(redis.asyncio.RedisCluster):
    """A client of every primary; the markers' key stands for its copies (see cluster_copies.py)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "reinitialize_steps": 0})
        self._copies: dict[bytes, list[bytes]] = {}
        self._asked_s = self._listed_s = 0.0

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] in _KEYED:
            (reply,) = await _Trip(self, [args]).replies()
            return reply
        try:
            return await super().execute_command(*args, **options)
        except RedisClusterException as error:
            raise redis.ConnectionError(str(error)) from error

    def get_node(self, host: Any = None, port: Any = None, node_name: Any = None) -> Any:
        """A node, which may be met for the first time where a key was moved to."""
        found = super().get_node(host, port, node_name)
        return self.node_at(node_name) if found is None and node_name is not None else found

    def node_at(self, name: str) -> Any:
        """The node at an address."""
        nodes = self.nodes_manager.nodes_cache
        if name not in nodes:
            host, _, port = name.rpartition(":")
            nodes[name] = ClusterNode(host, int(port), PRIMARY, **self.nodes_manager.connection_kwargs)
        return nodes[name]

    def owner_of(self, key: bytes) -> str:
        """The address of the node that has a key."""
        try:
            return str(self.nodes_manager.slots_cache[slot_of(key)][0].name)
        except (KeyError, IndexError):
            raise redis.ConnectionError("no node of the cluster has the slot") from None

    async def copies(self, key: bytes) -> list[bytes]:
        """The keys of the markers' copies, copy 0 first."""
        if key not in self._copies or time.monotonic() > self._listed_s + _COPIES_EVERY_S:
            self._listed_s = time.monotonic()
            (raw,) = await _Trip(self, [("HGET", copy_key(key, 0), COPIES)], on_copies=False).replies()
            self._copies[key] = [copy_key(key, number) for number in self._listed(key, raw)]
        return self._copies[key]

    def _listed(self, key: bytes, raw: bytes | None) -> Iterable[int]:
        if raw is not None:
            return orjson.loads(raw)  # type: ignore[no-any-return]
        return first_numbers(key, {slot: nodes[0].name for slot, nodes in self.nodes_manager.slots_cache.items()})

    def forget_copies(self) -> None:
        """Asks copy 0 for the others when they are needed next."""
        self._copies.clear()

    def ask_for_slots(self) -> None:
        """Asks for the slots and the copies before the next command."""
        self._initialize = True

    def doubt_slots(self) -> bool:
        """The same where they may be others now, unless it was just done; whether it will be."""
        if time.monotonic() < self._asked_s + _SLOTS_EVERY_S:
            return False
        self.ask_for_slots()
        return True

    async def initialize(self) -> AsyncClusterStore:
        """Asks for the slots if need be, and closes the connections to nodes that then no longer count."""
        if self._initialize:
            before = self._nodes()
            try:
                await super().initialize()
            except RedisClusterException as error:
                raise redis.ConnectionError(str(error)) from error
            self._asked_s = time.monotonic()
            self._keep_one_of_each()
            self._copies.clear()
            kept = {id(node) for node in self._nodes()}
            await _disconnect([node for node in before if id(node) not in kept])
        return self

    def _keep_one_of_each(self) -> None:
        """The client makes another node of one that it had; slots are to lead to the one with the connections."""
        nodes = self.nodes_manager.nodes_cache
        for found in {id(held): held for held in self.nodes_manager.slots_cache.values()}.values():
            found[:] = [nodes.get(node.name, node) for node in found]

    async def aclose(self) -> None:
        """Closes all connections, those too of a client that was about to ask for the slots anew."""
        self._initialize = True
        await _disconnect(self._nodes())

    def _nodes(self) -> list[Any]:
        return [*self.nodes_manager.startup_nodes.values(), *self.nodes_manager.nodes_cache.values()]

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:
        """Commands that read: they may be asked again."""
        return _AsyncPipeline(self, redis.asyncio.RedisCluster.pipeline(self, False))


async def _disconnect(nodes: Sequence[Any]) -> None:
    for node in nodes:
        with contextlib.suppress(redis.RedisError, OSError):
            await node.disconnect()


class _AsyncPipeline:
    """Commands of one key each, gathered to be executed together."""

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
        return await _Trip(self._store, self._commands).replies()


class _Trip:
    """One command, or several that read, by node: each node's in order and all nodes' at once, so that a node's copy of
    the markers is read before its values. When a slot has moved all is asked again, for to follow one command alone
    would break that order."""

    def __init__(self, store: AsyncClusterStore, commands: Sequence[tuple[Any, ...]], on_copies: bool = True) -> None:
        self._store, self._commands, self._on_copies = store, commands, on_copies
        self._asked: dict[bytes, str] = {}
        self._listed_anew = False

    async def replies(self) -> list[Any]:
        """The replies in the commands' order. Raises redis.RedisError, UnavailableError for a shard without a copy."""
        for number in range(_MOST_ROUNDS):
            await self._store.initialize()
            found = await self._round()
            if found is not None:
                return found
            await asyncio.sleep(_PAUSE_S * number)
        raise redis.ConnectionError("the slots of the cluster went on moving")

    async def _round(self) -> list[Any] | None:
        """The replies, None if the commands are to be asked again."""
        shares: dict[str, list[PipelineCommand]] = {}
        sent = [await self._queue(shares, args) for args in self._commands]
        if self._is_uncovered(sent):
            if not self._store.doubt_slots():
                raise UnavailableError("A shard of the store has no copy of the markers yet; see that a worker runs.")
            return None
        await self._send(shares)
        if self._follow([one for row in sent for one in row]):
            return None
        if not self._listed_anew and any(_is_torn(row) for row in sent):
            self._listed_anew = True
            self._store.forget_copies()
            return None
        return [
            combined(args, [one.command.result for one in row]) if row[0].is_copy else row[0].command.result
            for args, row in zip(self._commands, sent, strict=True)
        ]

    async def _queue(self, shares: dict[str, list[PipelineCommand]], args: tuple[Any, ...]) -> list[_Sent]:
        """Adds a command to its node's share, one on the markers to each of their nodes'."""
        place = key_place(args) if self._on_copies else None
        copies = [] if place is None else await self._store.copies(as_bytes(args[place]))
        sent = []
        for one in [tuple(on_copy(args, place or 0, copy)) for copy in copies] or [args]:
            key = as_bytes(one[3 if one[0] in SCRIPTS else 1])
            name = self._asked.get(key) or self._store.owner_of(key)
            share = shares.setdefault(name, [])
            if key in self._asked:
                share.append(PipelineCommand(0, "ASKING"))
            command = PipelineCommand(0, *one)
            share.append(command)
            sent.append(_Sent(key, name, bool(copies), command))
        return sent

    def _is_uncovered(self, sent: Sequence[Sequence[_Sent]]) -> bool:
        """Whether values are asked of a shard that has no copy of the markers which are asked too."""
        marked = {one.node for row in sent for one in row if one.is_copy}
        values = {one.node for row in sent for one in row if not one.is_copy and one.key not in self._asked}
        return bool(marked) and not values <= marked

    async def _send(self, shares: dict[str, list[PipelineCommand]]) -> None:
        under_way = [self._store.node_at(name).execute_pipeline(share) for name, share in shares.items()]
        done = await asyncio.gather(*map(asyncio.ensure_future, under_way), return_exceptions=True)
        for failure in done:
            if isinstance(failure, BaseException):
                self._store.ask_for_slots()
                raise failure

    def _follow(self, sent: Sequence[_Sent]) -> bool:
        """Whether a key was elsewhere, where it will be asked for next. Raises any other failure."""
        moved = False
        for one in sent:
            failure = one.command.result
            if isinstance(failure, MovedError):
                self._store.nodes_manager.move_slot(failure)
                self._asked.pop(one.key, None)
            elif isinstance(failure, AskError):
                self._asked[one.key] = f"{failure.host}:{failure.port}"
            elif isinstance(failure, Exception) and not isinstance(failure, TryAgainError):
                if not isinstance(failure, redis.ResponseError):
                    self._store.ask_for_slots()
                raise failure
            moved = moved or isinstance(failure, Exception)
        return moved


@dataclass(frozen=True, slots=True)
class _Sent:
    """A command as it was sent to one node; `is_copy`: on a copy of the markers."""

    key: bytes
    node: str
    is_copy: bool
    command: PipelineCommand


def _is_torn(row: Sequence[_Sent]) -> bool:
    """Whether one copy says nothing where another does, as when it is no longer one."""
    says = {any(held) if isinstance(held := one.command.result, list) else bool(held) for one in row}
    return len(says) > 1
