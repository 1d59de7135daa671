"""The wire to a cluster: thousands of commands to the nodes of their keys, and replies in the commands' order.

A slot that moves is followed as long as nothing can be lost on the way: from a node that is still a primary to one that
was a primary when the work began, each the same run all the time. Anything else ends the batch.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import redis

from headrace.stores.cluster import ClusterStore
from headrace.stores.cluster_copies import slot_of
from headrace.stores.wire import Wire, pack_command

__all__ = ["ClusterWire", "wire_of"]

_MOST_STEPS = 5
_ASKING = pack_command([b"ASKING"])
_ROLE = pack_command([b"ROLE"])


class ClusterWire:
    """A Wire to every node that is a primary now."""

    keys_per_command = 1  # several must lie in one slot

    def __init__(self, store: ClusterStore) -> None:
        self._store = store
        self._names = store.owners()
        self._nodes = {node.name: node for node in store.primaries()}
        self._wires: dict[str, Wire] = {}
        self._aside: dict[str, Wire] = {}
        self._order: deque[tuple[str, bytes]] = deque()

    def send(self, commands: Sequence[bytes]) -> None:
        """Sends the commands; their replies must be received, in order."""
        try:
            names = [self._names[slot_of(_key_of(command))] for command in commands]
        except KeyError as slot:
            raise redis.ConnectionError(f"no node of the cluster has slot {slot}") from None
        self._order.extend(zip(names, commands, strict=True))
        shares: dict[str, list[bytes]] = {}
        for name, command in zip(names, commands, strict=True):
            shares.setdefault(name, []).append(command)
        for name, share in shares.items():
            self._wire(name).send(share)

    def receive(self, n: int) -> list[Any]:
        """The next `n` replies. If one of them is an error, raises it after all have been read."""
        sent = [self._order.popleft() for _ in range(n)]
        counts = Counter(name for name, _ in sent)
        replies = {name: iter(self._wire(name).receive_any(count)) for name, count in counts.items()}
        found = [next(replies[name]) for name, _ in sent]
        if any(issubclass(kind, Exception) for kind in set(map(type, found))):
            found = [self._followed(*one, reply) for one, reply in zip(sent, found, strict=True)]
            for reply in found:
                if isinstance(reply, Exception):
                    raise reply
        return found

    def _followed(self, name: str, command: bytes, reply: Any) -> Any:
        """The reply of the node that the key has moved to."""
        for _ in range(_MOST_STEPS):
            kind, _, place = str(reply).partition(" ")
            if not isinstance(reply, redis.ResponseError) or kind not in ("MOVED", "ASK"):
                return reply
            slot, _, target = place.partition(" ")
            if target not in self._nodes or not self._is_primary(name):
                return redis.ConnectionError(f"slot {slot} went to {target}, which took no part in this work")
            if kind == "MOVED":
                self._names[int(slot)] = target
            name, commands = target, [command] if kind == "MOVED" else [_ASKING, command]
            aside = self._wire(target, self._aside)
            aside.send(commands)
            reply = aside.receive_any(len(commands))[-1]
        return reply

    def _is_primary(self, name: str) -> bool:
        aside = self._wire(name, self._aside)
        aside.send([_ROLE])
        (role,) = aside.receive(1)
        return bool(role[0] == b"master")

    def close(self) -> None:
        """Closes the connections; the next use opens others."""
        self._order.clear()
        for wire in (*self._wires.values(), *self._aside.values()):
            wire.close()

    def _wire(self, name: str, wires: dict[str, Wire] | None = None) -> Wire:
        wires = self._wires if wires is None else wires
        if name not in wires:
            wires[name] = Wire(self._store.get_redis_connection(self._nodes[name]))
        return wires[name]


def wire_of(store: Any) -> Wire | ClusterWire:
    """The wire to a client's server, or to its cluster's nodes."""
    return ClusterWire(store) if isinstance(store, ClusterStore) else Wire(store)


def _key_of(command: bytes) -> bytes:
    """The key of a packed HGET, HMGET or EVALSHA: keys hold no line breaks."""
    parts = command.split(b"\r\n", 9)
    return parts[8] if parts[2] == b"EVALSHA" else parts[4]
