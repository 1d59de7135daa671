"""A real cluster of local processes: primaries that share the slots, replicas, primaries without slots."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from headrace.stores.keeper import find_server

SLOTS = 16_384


@dataclass
class Node:
    """A server process; `client` speaks to it alone."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> Any:
        return redis.Redis(port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    @property
    def id(self) -> str:
        found = self.client.execute_command("CLUSTER MYID")
        return found.decode() if isinstance(found, bytes) else str(found)

    @property
    def is_primary(self) -> bool:
        return bool(self.client.info("replication")["role"] == "master")

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        options = {
            "port": self.port,
            "dir": self.folder,
            "cluster-enabled": "yes",
            "cluster-node-timeout": 1_000,
            "cluster-require-full-coverage": "no",
            "cluster-allow-replica-migration": "no",
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
            "logfile": self.folder / "log",
            "repl-diskless-sync-delay": 0,
        }
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self.process = subprocess.Popen([find_server(), *flags], stdout=subprocess.DEVNULL)
        wait_until(lambda: answers(self))

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def url_of(node: Node) -> str:
    """What HEADRACE_REDIS_URL says."""
    return f"redis+cluster://127.0.0.1:{node.port}"


def answers(node: Node) -> bool:
    with contextlib.suppress(redis.RedisError):
        return bool(node.client.ping())
    return False


def wait_until(holds: Callable[[], Any], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "the cluster did not come up"
        time.sleep(0.05)


@contextlib.contextmanager
def cluster(folder: Path, primaries: int = 3, replicas: int = 0, spares: int = 0) -> Iterator[list[Node]]:
    """Primaries with equal shares of the slots, then replicas of the first, the second and so on, then primaries
    without slots; ended when the block is left."""
    nodes = [Node(port, folder / str(n)) for n, port in enumerate(_free_ports(primaries + replicas + spares))]
    try:
        for node in nodes:
            node.start()
        bounds = [SLOTS * n // primaries for n in range(primaries + 1)]
        for n, node in enumerate(nodes[:primaries]):
            node.client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[n], bounds[n + 1] - 1)
            node.client.execute_command("CLUSTER SET-CONFIG-EPOCH", n + 1)
        for node in nodes[1:]:
            node.client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port)
        wait_until(lambda: all(_knows(node, nodes, primaries) for node in nodes))
        for node, of in zip(nodes[primaries : primaries + replicas], nodes, strict=False):
            node.client.execute_command("CLUSTER REPLICATE", of.id)
        for node in nodes[primaries : primaries + replicas]:
            wait_until(lambda node=node: node.client.info("replication").get("master_link_status") == "up")
        yield nodes
    finally:
        for node in nodes:
            node.kill()


def owner_of(nodes: list[Node], slot: int) -> Node:
    """The primary that has a slot, as the first node that answers says."""
    asked = next(node for node in nodes if node.process is not None)
    for first, last, primary, *_ in asked.client.execute_command("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return next(node for node in nodes if node.port == primary[1])
    raise AssertionError(slot)


def move_slot(nodes: list[Node], slot: int, target: Node, pause_s: float = 0.0) -> None:
    """What a resharding tool does for one slot; `pause_s` it rests with half of the keys moved."""
    source = owner_of(nodes, slot)
    if source is target:
        return
    target.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
    source.client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target.id)
    rested = False
    while keys := source.client.execute_command("CLUSTER GETKEYSINSLOT", slot, 1_000):
        some = keys if rested else keys[: (len(keys) + 1) // 2]
        source.client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *some)
        if not rested:
            time.sleep(pause_s)
            rested = True
    for node in [target, source, *(node for node in nodes if node.process is not None and node.is_primary)]:
        node.client.execute_command("CLUSTER SETSLOT", slot, "NODE", target.id)


def cut_off(primary: Node) -> None:
    """From now on the replica gets nothing of `primary`, which goes on for everybody else; all before it has."""
    wait_until(lambda: _replicated(primary.client.info("replication")))
    primary.client.execute_command("ACL", "SETUSER", "default", "-psync", "-sync", "-replconf")
    primary.client.execute_command("CLIENT", "KILL", "TYPE", "replica")


def _replicated(info: dict[str, Any]) -> bool:
    return bool(info["slave0"]["offset"] == info["master_repl_offset"])


def _knows(node: Node, nodes: list[Node], primaries: int) -> bool:
    info: Any = node.client.execute_command("CLUSTER INFO")
    told = info if isinstance(info, dict) else dict(line.split(":") for line in info.decode().split())
    return (
        told["cluster_state"] == "ok"
        and int(told["cluster_known_nodes"]) == len(nodes)
        and int(told["cluster_size"]) == primaries
    )


def _free_ports(n: int) -> list[int]:
    """Ports that were free a moment ago, whose cluster bus port 10,000 above was free too."""
    found: list[int] = []
    with contextlib.ExitStack() as open_sockets:
        port = 20_000 + time.time_ns() // 1_000 % 20_000
        while len(found) < n:
            port += 1
            with contextlib.suppress(OSError):
                for tried in (port, port + 10_000):
                    probe = open_sockets.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", tried))
                found.append(port)
    return found
