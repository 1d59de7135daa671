"""Imports of past events: files into the archive, as the partition of imports of their source.

The archiver carries an order out in slices, some rows each, and archives the stream in between. What is done is what
the tables say (stores/import_log.py): an append states in its own commit how far its file is in, so an import that
was killed, or is given again, goes on with the next row.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson
import redis

from headrace.catalog.definitions import Catalog, Source
from headrace.compute.events import EventBatch
from headrace.compute.imports import import_batch, mark_repeats, near_ids, refuse_unusable
from headrace.errors import DataError
from headrace.stores.counters import Counted, add_counts
from headrace.stores.import_files import ImportFile, check_columns, fingerprint
from headrace.stores.import_log import FilePart, ImportLog
from headrace.stores.import_rows import ImportRows, read_chunks
from headrace.stores.markers import IMPORTS, Applied, Markers, import_places
from headrace.stores.offline import OfflineStore
from headrace.stores.orders import Order, acknowledge
from headrace.telemetry import get_logger
from materialize.forget_archive import ForgottenRows
from materialize.lanes import archive_rows, dead_rows

__all__ = ["Imports", "refuse_unfit"]

REPORT_EVERY_S = 0.3
SAMPLED_FILES = 10
MOST_REASONS = 20

log = get_logger()


@dataclass(slots=True)
class Progress:
    """How far one order is. Of `files`, `done` are in, `known` of them were before; of the rows read, `imported` are
    archived (`repeated` among them), `dead` are dead letters, `dropped` were left out; `reasons` counts the dead."""

    files: int
    bytes: int
    file: str = ""
    done: int = 0
    known: int = 0
    read: int = 0
    rows: int = 0
    imported: int = 0
    repeated: int = 0
    dead: int = 0
    dropped: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, rows: ImportRows, batch: EventBatch) -> None:
        """Take one append in."""
        n = len(rows.number) + len(rows.bad)
        self.rows += n
        self.imported += len(batch)
        self.repeated += int(batch.is_repeat.sum())
        self.dead += len(batch.dead)
        self.dropped += n - len(batch) - len(batch.dead)
        for letter in batch.dead:
            if letter.reason in self.reasons or len(self.reasons) < MOST_REASONS:
                self.reasons[letter.reason] = self.reasons.get(letter.reason, 0) + 1

    def text(self) -> str:
        return orjson.dumps(asdict(self)).decode()


def refuse_unfit(source: Source, files: list[ImportFile], renamed: Mapping[str, str], absent: Collection[str]) -> None:
    """Raises DataError for files that are not what `source` takes, before anything is written."""
    check_columns(source, files, renamed, absent)
    for file in files[:SAMPLED_FILES]:
        refuse_unusable(source, file, renamed)


class Imports:
    """The imports of one archiver, one order at a time; `step` does the next slice of it."""

    def __init__(
        self, store: redis.Redis, project: str, offline: OfflineStore, catalog: Catalog, forgotten: ForgottenRows
    ) -> None:
        self._forgotten = forgotten
        self._store = store
        self._project = project
        self._offline = offline
        self._catalog = catalog
        self._markers = Markers(store, project)
        self._order: Order | None = None
        self._slices: Iterator[None] = iter(())
        self._progress = Progress(0, 0)
        self._reported_s = 0.0
        self._ends: dict[str, Applied] = {}

    @property
    def busy(self) -> bool:
        """Whether an order is under way."""
        return self._order is not None

    def begin(self, order: Order) -> None:
        """Take an order, unless one is under way; who gave it hears that it has begun."""
        if self._order is None:
            acknowledge(self._store, self._project, order, "started")
            self._order, self._slices = order, self._carry_out(order)

    def step(self, catalog: Catalog) -> None:
        """Do the next slice, by the definitions of `catalog`; the last one tells who gave the order how it went.

        Raises redis.RedisError; the order then waits in its stream to be begun again.
        """
        self._catalog = catalog
        if self._order is None:
            return
        order = self._order
        try:
            next(self._slices)
            self._report(order)
        except StopIteration:
            log.info("imported", source=order.source, rows=self._progress.rows, files=self._progress.done)
            self._end("done", self._progress.text())
        except redis.RedisError:
            self._order = None
            raise
        except Exception as error:  # whoever gave the order hears why; the archiver goes on
            log.error("import failed", source=order.source, error=str(error), kind=type(error).__name__)
            self._end("failed", _failure(error, self._progress))

    def publish(self) -> None:
        """See that the markers say how far the imports of every source are archived, as a lost store must be told."""
        places = [(source.name, partition) for source, partition in import_places(self._catalog)]
        for (name, partition), held in self._markers.applied("archived", places).items():
            if name not in self._ends:
                self._ends[name] = ImportLog(self._offline, name).end()
            end = self._ends[name]
            if end.offset and (held is None or held.offset < end.offset):
                self._markers.raise_applied("archived", name, partition, end)

    def _report(self, order: Order) -> None:
        if time.monotonic() >= self._reported_s + REPORT_EVERY_S:
            acknowledge(self._store, self._project, order, "progress", self._progress.text())
            self._reported_s = time.monotonic()

    def _end(self, state: Any, detail: str) -> None:
        order, self._order = self._order, None
        if order is not None:
            acknowledge(self._store, self._project, order, state, detail)

    def _carry_out(self, order: Order) -> Iterator[None]:
        files = [ImportFile.from_plain(plain) for plain in order.body["files"]]
        renamed, absent = order.body["renamed"], order.body["absent"]
        self._progress = Progress(len(files), sum(_size(file) for file in files))
        refuse_unfit(self._catalog.source(order.source), files, renamed, absent)
        for file in files:
            self._progress.file, before = file.path, self._progress.read
            digest, stamp = "", _stamp(file)
            for found in fingerprint(file):
                digest = str(found)
                yield
            imports = ImportLog(self._offline, order.source)
            if imports.rows_done(digest)[1]:
                self._progress.known += 1
            else:
                self._refuse_changed(imports, order.source, file, digest)
                yield from self._import_file(imports, order, file, digest, stamp, renamed)
            self._progress.done += 1
            self._progress.read = before + _size(file)

    def _refuse_changed(self, imports: ImportLog, name: str, file: ImportFile, digest: str) -> None:
        if self._catalog.source(name).event_id is None and imports.has_changed(file, digest):
            raise DataError(
                f"A file is imported as it is, {file.path} was imported with other content before, and without an "
                f"event id in source {name!r} rows that are in both would count twice; put the new rows into a file "
                "of their own."
            )

    def _import_file(
        self,
        imports: ImportLog,
        order: Order,
        file: ImportFile,
        digest: str,
        stamp: tuple[int, int],
        renamed: Mapping[str, str],
    ) -> Iterator[None]:
        """Append what is not in yet; definitions that change meanwhile hold for the rows after."""
        source, before = self._catalog.source(order.source), self._progress.read
        chunks = read_chunks(source, file, renamed, imports.rows_done(digest)[0])
        following = next(chunks, None)
        while (rows := following) is not None:
            following = next(chunks, None)
            if _stamp(file) != stamp:
                raise DataError(f"A file must stay as it is while it is imported, {file.path} has changed.")
            if self._catalog.source(order.source) != source:
                yield from self._import_file(imports, order, file, digest, stamp, renamed)
                return
            self._append(imports, source, rows, FilePart(file, digest, rows.end, following is None))
            self._progress.read = before + rows.read
            yield

    def _append(self, imports: ImportLog, source: Source, rows: ImportRows, part: FilePart) -> None:
        now_us = time.time_ns() // 1_000
        latest_us = now_us + source.max_future_us if self._catalog.clock == "wall" else None
        bounds_us = (self._offline.kept_from_us(source.name), latest_us)
        batch = import_batch(source, imports.next_offset(), rows, imports.end(), now_us, bounds_us)
        near = near_ids(batch)
        mark_repeats(batch, imports.times_of(source, *near) if near else {})
        batch = self._forgotten.living(self._catalog, batch)
        imports.append(source, archive_rows(batch), dead_rows(source, batch.dead), batch.end, part)
        self._ends[source.name] = batch.end
        self._markers.raise_applied("archived", source.name, IMPORTS, batch.end)
        self._progress.add(rows, batch)
        self._count(source, batch)

    def _count(self, source: Source, batch: EventBatch) -> None:
        """What the worker, which reads the archive, does not see."""
        counts: dict[Counted, int] = {("source", source.name, "dead", "", ""): len(batch.dead)}
        for (outcome, column, rule), n in batch.unexpected.items():
            counts["source", source.name, outcome, column, rule] = n
        add_counts(self._store, self._project, counts)


def _size(file: ImportFile) -> int:
    try:
        return os.path.getsize(file.path)
    except OSError as error:
        raise DataError(
            f"The archiver reads the files, and cannot read {file.path} ({error.strerror}); name a path that it can."
        ) from None


def _stamp(file: ImportFile) -> tuple[int, int]:
    """What changes when somebody writes to the file."""
    found = os.stat(file.path)
    return found.st_size, found.st_mtime_ns


def _failure(error: Exception, progress: Progress) -> str:
    text = str(error) or type(error).__name__
    if not progress.rows:
        return f"{text.rstrip('.')}. Nothing was imported."
    return f"{text.rstrip('.')}. {progress.rows:,} rows were imported before; given again, it goes on after them."
