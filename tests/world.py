"""A store, a worker and an archiver that a test steps by hand, what was pushed, and what the oracle says of it."""

from __future__ import annotations

import random
import time
from collections.abc import Collection
from dataclasses import replace

import numpy as np
from naive import NaiveEvent
from scenario import PARTS, SECOND_US, assert_equals_oracle, naive_event, ndjson, plain_value, random_rows, with_key
from scenario import catalog as scenario_catalog

from headrace.catalog.definitions import Catalog, Source
from headrace.read.online.values import step_values
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.keys import entity_key, entity_prefix, layout_field
from headrace.stores.markers import Applied, Markers
from headrace.stores.offline import OFFSET, OfflineStore
from headrace.stores.online import OnlineStore
from headrace.stores.stream import EventStream
from materialize.archiver import Archiver
from materialize.worker import Worker

START_US = 1_000_000 * SECOND_US
SHORT = replace(PARTS, dedup_horizon_us=1_000)
"""The source with a horizon so short that its stream can be trimmed at once."""


def short_catalog(project: str) -> Catalog:
    return replace(scenario_catalog(project=project), sources=(SHORT,))


class World:
    """One project over the embedded store of `settings`; `history` holds what was pushed and not lost."""

    def __init__(self, settings: Settings, project: str) -> None:
        self.settings = settings.model_copy(update={"stream_keep": 0.0})
        self.catalog = short_catalog(project)
        self.store = open_store(settings)
        save_catalog(self.store, settings, self.catalog)
        self.offline = OfflineStore(settings.data_dir)
        self.stream = EventStream(self.store, project)
        self.markers = Markers(self.store, project)
        self.rng = random.Random(project)
        self.history: list[NaiveEvent] = []
        self.worker = self.new_worker()
        self.archiver = self.new_archiver()

    def new_worker(self) -> Worker:
        self.worker = Worker(self.store, self.offline, self.catalog)
        self.worker.start()
        return self.worker

    def new_archiver(self) -> Archiver:
        self.archiver = Archiver(self.settings, self.store)
        return self.archiver

    def push(self, n: int = 20, source: Source = SHORT) -> int:
        """Pushes `n` events, a while after those before; returns their offset."""
        time.sleep(0.004)
        rows = random_rows(self.rng, n, START_US + len(self.history) * SECOND_US)
        offset = self.stream.append(source.name, "ndjson", ndjson(rows), n).offset
        self.history += [naive_event(row, (0, offset, i), 0) for i, row in enumerate(rows)]
        return offset

    def lose(self, offsets: Collection[int]) -> None:
        """What the oracle is to forget."""
        self.history = [event for event in self.history if event.position[1] not in offsets]

    def apply(self) -> None:
        """Has the worker take what the stream holds."""
        while self.worker.step(block_ms=1):
            pass

    def archive(self) -> None:
        """Has the archiver take what the stream holds, without trimming."""
        while self.archiver._read(0):
            pass
        self.archiver.flush()
        self.archiver._publish()

    def mark(self, kind: str) -> Applied | None:
        return self.markers.applied(kind, [(SHORT.name, 0)])[SHORT.name, 0]  # type: ignore[arg-type]

    def archived(self) -> list[int]:
        """Offsets of the archived events, repeats included."""
        found: list[int] = self.offline.read_events(SHORT, ["id"], repeats=True)[OFFSET].to_pylist()
        return found

    def assert_right(self) -> None:
        """Online store and archive hold the history, nothing else and nothing twice."""
        assert self.archived() == [event.position[1] for event in self.history]
        t_us = max(event.time_us for event in self.history) + 1
        for view, parts in zip(self.catalog.views, [(0,), (0, 1), (1,)], strict=True):
            events = with_key(self.history, parts)
            for key in {event.key for event in events}:
                ordered = [key[parts.index(p)] for p in sorted(parts, key=lambda p: ("who", "site")[p])]
                redis_key = entity_key(entity_prefix(self.catalog.project, view.entities), ordered)
                held = OnlineStore(self.store).read([redis_key], layout_field(view))
                shown = step_values(view, held, np.array([t_us])).columns
                got = {name: plain_value(column[0].as_py()) for name, column in shown.items()}
                assert_equals_oracle(view, got, events, key, t_us)
