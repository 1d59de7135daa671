"""What the archiver does for its tables besides appending: compaction, retention, vacuum, each when it is due.

It runs in the archiver's own thread, so nothing else changes a table meanwhile, and each step is one commit of Delta:
killed at any moment, the table is the old one or the new one. What a killed step left lying is swept with the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from headrace.catalog.definitions import Source
from headrace.settings import Settings
from headrace.stores.offline import OfflineStore
from headrace.stores.served import served_paths
from headrace.stores.table_care import (
    compact_day,
    crowded_days,
    drop_before,
    drop_letters_before,
    drop_served_before,
    sweep,
)
from headrace.telemetry import get_logger

__all__ = ["Upkeep"]

COMPACT_EVERY_S = 60.0
RETAIN_EVERY_S = 3_600.0
SWEEP_EVERY_S = 6 * 3_600.0
DAY_US = 86_400_000_000

log = get_logger()


class Upkeep:
    """The schedule of one archiver. A step that fails is logged and comes again when it is next due."""

    def __init__(self, offline: OfflineStore, settings: Settings) -> None:
        self._offline = offline
        self._most_files = settings.compact_files
        self._sweep_after_h = settings.vacuum_after_h
        self._served_days = settings.served_days
        self._next_s: dict[str, float] = {}

    def step(self, sources: Sequence[Source], present_us: Mapping[str, int | None]) -> None:
        """Do what is due: of compactions the most crowded day of one table at a time, so that appends never wait long.

        `present_us` is the present of each source with a retention; None, or a source that it does not name, means
        that it has none yet.
        """
        steps: list[tuple[str, float, Callable[[], None]]] = [
            ("compact", COMPACT_EVERY_S, lambda: self._compact(sources)),
            ("retain", RETAIN_EVERY_S, lambda: self._retain(sources, present_us)),
            ("sweep", SWEEP_EVERY_S, lambda: self._sweep(sources)),
        ]
        for name, pause_s, action in steps:
            now_s = time.monotonic()
            if now_s >= self._next_s.get(name, 0.0):
                self._next_s[name] = now_s + pause_s
                action()

    def _tables(self, sources: Sequence[Source]) -> dict[str, Path]:
        paths = {source.name: self._offline.events_path(source.name) for source in sources}
        served = {f"served/{name}": path for name, path in served_paths(self._offline.root).items()}
        return paths | served | {"dead_letters": self._offline.dead_letters_path}

    def _compact(self, sources: Sequence[Source]) -> None:
        for name, path in self._tables(sources).items():
            with _logged("compaction", name):
                days = crowded_days(path, self._most_files)
                if days:
                    before, after = compact_day(self._offline, path, days[0])
                    log.info("compacted", table=name, day=days[0], files=before, into=after)
                if len(days) > 1:
                    self._next_s["compact"] = 0.0
                    return

    def _retain(self, sources: Sequence[Source], present_us: Mapping[str, int | None]) -> None:
        for source in sources:
            now_us = present_us.get(source.name)
            if not source.retention_us or now_us is None:
                continue
            with _logged("retention", source.name):
                gone = drop_before(self._offline, source.name, now_us - source.retention_us)
                letters = drop_letters_before(self._offline, source.name, now_us - source.retention_us)
                if gone or letters:
                    log.info("retention", source=source.name, events=gone, dead_letters=letters)

        for name in served_paths(self._offline.root) if self._served_days else ():
            with _logged("retention", f"served/{name}"):
                gone = drop_served_before(self._offline, name, time.time_ns() // 1_000 - self._served_days * DAY_US)
                if gone:
                    log.info("retention", table=f"served/{name}", rows=gone)

    def _sweep(self, sources: Sequence[Source]) -> None:
        for name, path in self._tables(sources).items():
            with _logged("vacuum", name):
                files = sweep(self._offline, path, self._sweep_after_h)
                if files:
                    log.info("swept", table=name, files=files)


class _logged:
    """A failed step of one table does not keep the others from theirs."""

    def __init__(self, what: str, table: str) -> None:
        self._what, self._table = what, table

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if isinstance(error, Exception):
            log.error(f"{self._what} failed", table=self._table, error=str(error), kind=type(error).__name__)
        return isinstance(error, Exception)
