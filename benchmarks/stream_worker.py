"""How fast `headrace worker` takes a backlog: events per second of its processor time, and of the wall's.

The backlog is appended while worker and archiver are stopped by a signal; then both go on, each as a process of its
own. A sample is taken whenever the worker's marker moves: (wall seconds, its processor seconds, events applied).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import redis

from benchmarks.machine import Process, StoreServer, start_command
from benchmarks.stream_events import PROJECT, SOURCE, Events, catalog
from headrace.catalog.definitions import Catalog
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.markers import Markers
from headrace.stores.stream import EventStream

__all__ = ["Drained", "Pipeline", "pipeline"]

POLL_S = 0.002
TIMEOUT_S = 600.0
HISTORY_US = 24 * 3_600_000_000
RECENT_US, RECENT_SHARE = 600_000_000, 5
PEAK_PER_S = 36_000


@dataclass(frozen=True, slots=True)
class Drained:
    """What one backlog took; `samples` are (wall s, processor s, events applied) from the first batch on."""

    samples: list[tuple[float, float, int]]
    written_bytes: int

    def _between(self, column: int, after: int, upto: int) -> float:
        inside = [sample for sample in self.samples if after <= sample[2] <= upto]
        return (inside[-1][2] - inside[0][2]) / (inside[-1][column] - inside[0][column])

    @property
    def events(self) -> int:
        return self.samples[-1][2] - self.samples[0][2]

    def per_core(self, after: int = 0, upto: int = 1 << 62) -> float:
        """Events per second of the worker's processor time, of the events numbered (after, upto]."""
        return self._between(1, after, upto)

    def per_wall(self, after: int = 0, upto: int = 1 << 62) -> float:
        """Events per second of the wall's."""
        return self._between(0, after, upto)


class Pipeline:
    """A store server with a worker and an archiver that wait for events."""

    def __init__(self, server: StoreServer, definitions: Catalog) -> None:
        settings = server.settings()
        self.server = server
        self.store: redis.Redis = open_store(settings)
        self.stream = EventStream(self.store, PROJECT)
        self.events = Events()
        self._markers = Markers(self.store, PROJECT)
        save_catalog(self.store, settings, definitions)
        self.worker = start_command(server, "worker")
        self.archiver = start_command(server, "archive")
        self._wait_until_ready(definitions)

    def _wait_until_ready(self, definitions: Catalog) -> None:
        while not all(self._markers.ready(view) for view in definitions.views):
            self._check()
            time.sleep(0.05)

    def _check(self) -> None:
        self.worker.check()
        self.archiver.check()

    def applied(self) -> int:
        """How many events the worker has applied."""
        (held,) = self._markers.applied("source", [(SOURCE, 0)]).values()
        return held.total if held else 0

    def _pushed(self) -> int:
        """How many events the stream has taken, whoever appended them."""
        head = self.stream.head(SOURCE, 0)
        return head.total if head else 0

    def drain(self, n: int, first_us: int, spacing_us: float) -> Drained:
        """Appends `n` events behind the back of the processes, then lets them take all of it."""
        processes: list[Process] = [self.worker, self.archiver]
        for process in processes:
            process.pause()
        self.events.feed(self.stream, n, first_us, spacing_us)
        end = self._pushed()
        before = self._received_bytes()
        for process in processes:
            process.resume()
        samples = self._watch(end)
        return Drained(samples, self._received_bytes() - before)

    def history(self, n: int) -> Drained:
        """`n` events evenly over the last 24 hours and five times as many over the last 10 minutes, so that the windows
        hold what a day leaves in them and do not fill up while something is measured."""
        self.drain(n, _now_us() - HISTORY_US, HISTORY_US / n)
        recent = RECENT_SHARE * n
        return self.drain(recent, _now_us() - RECENT_US, RECENT_US / recent)

    def peak(self, n: int) -> Drained:
        """`n` events that end now, 36,000 a second."""
        spacing_us = 1e6 / PEAK_PER_S
        return self.drain(n, _now_us() - int(n * spacing_us), spacing_us)

    def _watch(self, end: int) -> list[tuple[float, float, int]]:
        samples: list[tuple[float, float, int]] = []
        seen, deadline = self.applied(), time.monotonic() + TIMEOUT_S
        while seen < end:
            now = self.applied()
            if now != seen:
                samples.append((time.perf_counter(), self.worker.cpu_s(), now))
                seen = now
            elif time.monotonic() > deadline:
                raise RuntimeError(f"The worker stands at {seen} of {end} events.")
            self._check()
            time.sleep(POLL_S)
        return samples

    def _received_bytes(self) -> int:
        info = cast(dict[str, Any], self.store.info("stats"))
        return int(info["total_net_input_bytes"])

    def stop(self) -> None:
        self.worker.stop()
        self.archiver.stop()
        self.store.close()


@contextlib.contextmanager
def pipeline(server: StoreServer) -> Iterator[Pipeline]:
    """Worker and archiver over `server`, ended with the block."""
    running = Pipeline(server, catalog())
    try:
        yield running
    finally:
        running.stop()


def _now_us() -> int:
    return time.time_ns() // 1_000
