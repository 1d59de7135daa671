"""One installation of real processes: a store, workers, an archiver and a server, each of which may be hurt."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import redis
from click.testing import CliRunner
from crash.ledger import Ledger, Place
from crash.operations import Operation
from crash.processes import HEADRACE, Child, StoreProcess, Supervisor, free_port

from headrace.catalog.definitions import Catalog
from headrace.cli import group
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.gaps import Loss, losses
from headrace.stores.keys import stream_key
from headrace.stores.markers import places
from headrace.stores.offline import OfflineStore
from headrace.stores.stream import pack_offset
from materialize.lease import holder as lease_holder

ACCEPT_AFTER_S = 3.0
LEASE_S = 1.5

_printing = threading.Lock()


@dataclass
class Losses:
    """What may be missing: by partition, intervals of offsets (after, up to] that a fault may have cost, and no more.

    `epoch` rises before and after every such fault, so that who watches values knows when they may fall.
    """

    epoch: int = 0
    spans: dict[Place, list[tuple[int, int]]] = field(default_factory=dict)
    counted: set[tuple[Place, int, int]] = field(default_factory=set)
    """Spans of events whose count the store still has; of the others nobody there knows."""

    def allow(self, place: Place, after: int, upto: int, is_counted: bool = False) -> None:
        self.spans.setdefault(place, []).append((after, upto))
        if is_counted:
            self.counted.add((place, after, upto))

    def allows(self, place: Place, offset: int) -> bool:
        return any(after < offset <= upto for after, upto in self.spans.get(place, []))

    def uncounted(self, place: Place) -> list[tuple[int, int]]:
        return [span for span in self.spans.get(place, []) if (place, *span) not in self.counted]


def present_offset() -> int:
    """The largest offset that an entry appended by now can have."""
    return (int(time.time() * 1_000) + 1) << 20


class Machine:
    """The processes of one round, below one folder."""

    def __init__(
        self,
        folder: Path,
        catalog: Catalog,
        workers: int,
        appendfsync: str,
        ledger: Ledger,
        options: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        self.ledger = ledger
        self.options = dict(options)
        self.operations: list[Operation] = []
        self.hurrying = threading.Event()
        self.catalog = catalog
        self.appendfsync = appendfsync
        self.losses = Losses()
        self.recorded: list[tuple[Place, Loss]] = []
        self.told: list[str] = []
        self.places: list[Place] = [(source.name, partition) for source, partition in places(catalog)]
        self.store = StoreProcess(folder / "store", free_port(), appendfsync)
        self.settings = Settings(
            repo=folder / "repo", data_dir=folder / "data", redis_url=f"redis://127.0.0.1:{self.store.port}/0"
        )
        self.offline = OfflineStore(self.settings.data_dir)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.workers = [self._headrace(f"worker{n}", "worker") for n in range(workers)]
        self.archiver = self._headrace("archiver", "archive")
        self.server = self._headrace("server", "serve", "--port", str(port))
        self._stores = [self.store]

    def _headrace(self, name: str, *arguments: str) -> Child:
        return Child(name, [*HEADRACE, *arguments, "--supervised"], self.folder / f"{name}.log", self.env)

    @property
    def env(self) -> dict[str, str]:
        """What its processes are told."""
        return {
            "HEADRACE_REPO": str(self.settings.repo),
            "HEADRACE_DATA_DIR": str(self.settings.data_dir),
            "HEADRACE_REDIS_URL": str(self.settings.redis_url),
            "HEADRACE_LEASE": str(LEASE_S),
            **self.options,
        }

    def operate(self, operation: Operation) -> None:
        """Starts a command, beside which other things go on."""
        self.operations.append(operation)
        operation.start()

    def finish_operations(self, timeout_s: float = 400) -> None:
        """Waits until every command has succeeded, accepting what was lost where one waits for that."""
        deadline, look = time.monotonic() + timeout_s, time.monotonic() + 2 * ACCEPT_AFTER_S
        while any(operation.is_alive() for operation in self.operations) and time.monotonic() < deadline:
            if self.losses.spans and time.monotonic() > look:
                self._accept_more()
                look = time.monotonic() + ACCEPT_AFTER_S
            time.sleep(0.05)
        for operation in self.operations:
            assert not operation.is_alive(), f"{operation}: not done after {timeout_s} s"
            if operation.failure is not None:
                raise operation.failure

    @property
    def children(self) -> list[Child]:
        return [*self.workers, self.archiver, self.server]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Everything started and ready; everything dead after."""
        try:
            self.store.start()
            with self.store.client() as client:
                save_catalog(client, self.settings, self.catalog)
            with Supervisor(self.children).running():
                self.wait_until_ready()
                yield
        finally:
            for store in self._stores:
                store.kill()

    def wait_until_ready(self, timeout_s: float = 150) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"not ready after {timeout_s} s\n{self.tails()}")

    def wait_until_caught_up(self, timeout_s: float = 120) -> dict[str, Any]:
        """Waits until every source's stream is applied and archived to its head, accepting what was lost."""
        deadline, look = time.monotonic() + timeout_s, time.monotonic() + ACCEPT_AFTER_S
        streams: dict[str, Any] = {}
        while time.monotonic() < deadline:
            if self.losses.spans and time.monotonic() > look:
                self._accept_more()
                look = time.monotonic() + ACCEPT_AFTER_S
            with contextlib.suppress(httpx.HTTPError):
                reply = httpx.get(f"{self.url}/streams", timeout=5)
                streams = reply.json() if reply.status_code == 200 else {}
                if streams and all(row["head"] == row["applied"] == row["archived"] for row in streams.values()):
                    return streams
            time.sleep(0.05)
        raise AssertionError(f"not caught up after {timeout_s} s: {streams}\n{self.tails()}")

    def _accept_more(self) -> None:
        self.losses.epoch += 1
        self.accept_losses()
        self.losses.epoch += 1

    def tails(self) -> str:
        return "\n".join(child.tail() for child in self.children)

    def accept_losses(self) -> str:
        """What an operator does after a loss; the last line of what it says."""
        where = [("--repo", self.settings.repo), ("--data-dir", self.settings.data_dir)]
        options = [str(part) for option in [*where, ("--redis-url", self.settings.redis_url)] for part in option]
        with _printing:
            told = CliRunner().invoke(group, ["recover", "--yes", "--accept-loss", *options])
        self._note_recorded(told.output)
        return (told.output.strip().splitlines() or [str(told.exception)])[-1]

    def _note_recorded(self, output: str) -> None:
        """Keeps what is recorded as lost: the store that has it may be lost in turn."""
        with contextlib.suppress(redis.RedisError), self.store.client() as client:
            for place in self.places:
                fresh = [(place, loss) for loss in losses(client, self.catalog.project, *place)]
                self.recorded += [item for item in fresh if item not in self.recorded]
        self.told += [line for line in output.splitlines() if line.startswith("Accepted and recorded")]

    def heal(self) -> None:
        """Ends every fault: nothing frozen, nothing limited."""
        self.store.resume()
        for child in self.children:
            child.resume()
            child.limit_files(-1)
            child.held = False

    def active_worker(self) -> Child:
        """The worker that has the lease; any if none has, or the store does not answer."""
        with contextlib.suppress(redis.RedisError), self.store.client() as client:
            found = lease_holder(client, self.catalog.project, "worker")
            return next((child for child in self.workers if found and child.pid == found.process), self.workers[0])
        return self.workers[0]

    def heads(self, upto: int) -> dict[Place, int]:
        """The offset of the last entry at or before `upto` of every partition, as the store now has it."""
        with self.store.client() as client:
            return {place: self._head(client, place, upto) for place in self.places}

    def _head(self, client: redis.Redis, place: Place, upto: int) -> int:
        key = stream_key(self.catalog.project, *place)
        found: Any = client.xrevrange(key, max=f"{upto >> 20}-{upto & 0xFFFFF}", count=1)
        return pack_offset(found[0][0]) if found else 0

    def archived(self) -> dict[Place, int]:
        """The offset up to which every partition is archived."""
        return {place: max(self.offline.archived_offset(*place), 0) for place in self.places}

    def replace_store(self, store: StoreProcess) -> None:
        """From now on `store` is the one at the port."""
        self._stores.append(store)
        self.store = store

    def replica(self) -> StoreProcess:
        """A replica that has what the store has by now."""
        folder = self.folder / f"replica{len(self._stores)}"
        follower = StoreProcess(folder, free_port(), "always", "--replicaof", f"127.0.0.1 {self.store.port}")
        self._stores.append(follower)
        follower.start()
        follower.wait_until_replicating()
        return follower
