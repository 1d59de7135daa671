"""How long a lost store takes to recover: views built anew from the archive, per million entities.

python -m benchmarks.recover [--quick]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from benchmarks.machine import StoreServer, open_server
from benchmarks.report import Result, higher, lower, print_results, write_results
from benchmarks.stream_events import PROJECT, Events, catalog
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.offline import OfflineStore
from headrace.stores.stream import EventStream
from materialize.archiver import Archiver
from materialize.recover import build_views, count_entities
from materialize.worker import Worker

__all__ = ["measure"]

DAY_US = 24 * 3_600_000_000
FULL, QUICK = 5_000_000, 300_000


def measure(events: int) -> list[Result]:
    """The same events, first live from the stream, then from the archive after the store was flushed."""
    with (
        tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder,
        open_server(Path(folder), "everysec") as server,
    ):
        return _measure(server, events)


def _measure(server: StoreServer, events: int) -> list[Result]:
    settings, definitions = server.settings(), catalog()
    store, offline = open_store(settings), OfflineStore(settings.data_dir)
    save_catalog(store, settings, definitions)
    Events().feed(EventStream(store, PROJECT), events, time.time_ns() // 1_000 - DAY_US, DAY_US / events)
    worker = Worker(store, offline, definitions)
    worker.start()
    started = time.perf_counter()
    while worker.step(1):
        pass
    live_s = time.perf_counter() - started
    archiver = Archiver(settings, store)
    while archiver.step(1):
        pass
    archiver.flush()

    store.flushdb()
    started = time.perf_counter()
    save_catalog(store, settings, definitions)
    build_views(settings, store, offline, definitions, lambda n: None)
    seconds = time.perf_counter() - started
    entities = count_entities(store, definitions, definitions.views)
    work = f"store lost, {events:,} archived events of {entities:,} entities, {len(definitions.views)} views built anew"
    peer = "ours, live from the stream"
    per_million = 1e6 / entities
    return [
        lower(work, "s per million entities", seconds * per_million, live_s * per_million, peer),
        higher(work, "events/s", events / seconds, events / live_s, peer),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="The recovery benchmark.")
    parser.add_argument("--quick", action="store_true", help="a smaller run, under a minute")
    results = measure(QUICK if parser.parse_args().quick else FULL)
    notes = [f"{os.cpu_count()} cores shared by this process and the store server; 50,000 Zipf keys per entity."]
    print_results("recover", results, notes)
    print(write_results("recover", results))


if __name__ == "__main__":
    main()
