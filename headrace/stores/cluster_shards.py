"""The shards of a cluster: which nodes and slots each has, and what a shard's copy of the markers says of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

__all__ = ["Record", "Run", "Shard", "read_record", "read_run", "read_shards"]


@dataclass(frozen=True, slots=True)
class Shard:
    """A primary that has slots: its address HOST:PORT and id, and the ids of its replicas too."""

    name: str
    id: str
    nodes: frozenset[str]
    slots: frozenset[int]


@dataclass(frozen=True, slots=True)
class Run:
    """The run of a primary's server: when it began by the server's clock, that clock now, and whether it never was, nor
    took over from, another's replica."""

    id: str
    began_us: int
    now_us: int
    is_first: bool


@dataclass(frozen=True, slots=True)
class Record:
    """What a copy says of the shard that it was on `at_us`: the run, the nodes and the slots."""

    run: str
    nodes: frozenset[str]
    slots: frozenset[int]
    at_us: int

    def encode(self) -> bytes:
        plain = {"run": self.run, "nodes": sorted(self.nodes), "slots": _ranges(self.slots), "at_us": self.at_us}
        return orjson.dumps(plain)


def read_record(value: bytes) -> Record:
    """A record from its bytes."""
    held = orjson.loads(value)
    slots = (slot for first, last in held["slots"] for slot in range(first, last + 1))
    return Record(held["run"], frozenset(held["nodes"]), frozenset(slots), held["at_us"])


def read_shards(slots: Iterable[Sequence[Any]], nodes: Any, asked_host: str) -> list[Shard]:
    """The shards of a node's replies to CLUSTER SLOTS, and to CLUSTER NODES, which also names replicas that are cut off
    or far behind; the node was asked at `asked_host`."""
    lines = [line.split() for line in _text(nodes).splitlines()]
    found: dict[str, Shard] = {}
    for first, last, primary, *_ in slots:
        host, port, node_id = (_text(part) for part in primary[:3])
        name, ids = f"{host or asked_host}:{port}", {node_id, *(line[0] for line in lines if line[3] == node_id)}
        known = found[name].slots if name in found else frozenset()
        found[name] = Shard(name, node_id, frozenset(ids), known | frozenset(range(first, last + 1)))
    return list(found.values())


def read_run(info: dict[str, Any], now_us: int) -> Run:
    """The run of a server that gave this reply to INFO at `now_us`, by its own clock."""
    began_us = now_us - int(info.get("uptime_in_seconds", 0)) * 1_000_000
    never = not str(info.get("master_replid2", "?")).strip("0") and info.get("role") == "master"
    return Run(str(info.get("run_id", "")), began_us, now_us, never)


def _ranges(slots: frozenset[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for slot in sorted(slots):
        if found and found[-1][1] == slot - 1:
            found[-1][1] = slot
        else:
            found.append([slot, slot])
    return found


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
