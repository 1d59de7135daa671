"""The offline store: Delta tables below `DATA_DIR/offline`, written by the one archiver, read by everyone.

    events/{source}    every event that parsed: the source's own columns, event_time, arrival_time,
                       position {partition, offset, index}, is_repeat; partitioned by event_date
    served/{service}   sampled rows that lookups answered (see stores/served.py); partitioned by event_date
    dead_letters       every event that did not, with its reason and raw payload; those that one view skips (with
                       `view` and `layout`); and marks of those that were replayed (`replayed`)

Each append carries an application version, the offset of its last entry, under one application per source and
partition: an append that was committed before is dropped when it comes again. Ownership is a file lock, held for
life: Delta itself lets two compactions of one version both commit and double the rows.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from numpy.typing import NDArray

from headrace.catalog.definitions import Source
from headrace.errors import DataError, SettingsError
from headrace.stores.archive_rows import INDEX, OFFSET, PARTITION, archive_schema, event_rows
from headrace.stores.dead_letter_table import DEAD_LETTERS, dead_letter_counts, read_dead_letters
from headrace.stores.markers import IMPORTS
from headrace.stores.offline_reads import open_table, read_events
from headrace.stores.offline_records import RETAINED, read_record

__all__ = ["DEAD_LETTERS", "INDEX", "OFFSET", "PARTITION", "OfflineStore", "archiver_ownership", "event_rows"]

_CONFIGURATION = {"delta.logRetentionDuration": "interval 1 days"}  # the past is found by position, not by version

Ints = NDArray[np.int64]
Versions = Mapping[str, int]
"""Versions by application."""
NO_VERSIONS: Versions = {}
SERVED_APP = "archive/served"


@contextmanager
def archiver_ownership(data_dir: Path) -> Iterator[None]:
    """Own the tables of `data_dir` for the length of the block. Raises SettingsError when another process does."""
    folder = Path(data_dir) / "offline"
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "archiver.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 32, 0).decode().strip() or "unknown"
            raise SettingsError(
                f"A data directory has one archiver; process {owner} already archives to {folder}. "
                "Stop it, or choose another HEADRACE_DATA_DIR."
            ) from None
        with suppress(OSError):  # a full disk: the lock is what counts
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


class OfflineStore:
    """The tables of one data directory; reads are open to every process, writes to the archiver alone."""

    def __init__(self, data_dir: Path) -> None:
        self.root = Path(data_dir).absolute() / "offline"
        if "%" in str(self.root):
            raise SettingsError(f"HEADRACE_DATA_DIR must not hold a '%', got {str(data_dir)!r}; choose another folder.")
        self._writers: dict[Path, DeltaTable] = {}

    def events_path(self, source: str) -> Path:
        """Folder of the events of `source` (`writes/VIEW` lies one level deeper)."""
        return self.root / "events" / source

    def refuse_other_types(self, source: Source) -> None:
        """Raises DataError if the table of `source` holds one of its columns as another type, as a removed source of
        the same name may have left it."""
        table = open_table(self.events_path(source.name))
        if table is not None:
            _refuse_other_types(table, archive_schema(source), f"events/{source.name}")

    @property
    def dead_letters_path(self) -> Path:
        return self.root / "dead_letters"

    @contextmanager
    def changing(self, path: Path) -> Iterator[DeltaTable | None]:
        """The table at `path` (None where there is none) for a change by its owner that is no append."""
        yield self._writers.pop(path, None) or open_table(path)

    def kept_from_us(self, source: str) -> int | None:
        """Where the kept events of `source` begin, None as long as retention has removed none."""
        found: int | None = read_record(self.root, RETAINED).get(source)
        return found

    def append_events(
        self,
        source: Source,
        rows: pa.Table,
        *,
        partition: int,
        last_offset: int,
        also: Versions = NO_VERSIONS,
        total: int = 0,
    ) -> int:
        """Append `rows` (of `event_rows`): all events of one partition after its archived offset, up to the entry
        at `last_offset`, whole. Rows at or below the archived offset are dropped; returns how many were added.

        No rows is an append too: it raises the archived offset. `total` is the stream's running number of events there
        (0: unknown); it and the versions of the applications `also` are set by the same commit. Raises DataError for a
        column that the table holds as another type.
        """
        schema = archive_schema(source)
        rows = rows.select(schema.names).cast(schema)
        offsets = pc.struct_field(rows["position"], "offset")
        path, versions = self.events_path(source.name), {_total_id(source.name, partition): total, **also}
        return self._append(path, rows, offsets, _app_id(source.name, partition), last_offset, ["event_date"], versions)

    def append_dead_letters(
        self, source: Source, rows: pa.Table, *, partition: int, last_offset: int, also: Versions = NO_VERSIONS
    ) -> int:
        """Append `rows` of the schema DEAD_LETTERS under the same rules as `append_events`."""
        app_id = _app_id(source.name, partition)
        return self._append(self.dead_letters_path, rows, rows["offset"], app_id, last_offset, None, also)

    def append_letters(self, rows: pa.Table, offsets: Ints, last_offset: int) -> int:
        """Append `rows` of the schema DEAD_LETTERS from the stream of letters, `offsets` their entries' offsets, under
        the same rules."""
        return self._append(self.dead_letters_path, rows, pa.array(offsets), "archive/letters", last_offset, None)

    def append_served(self, service: str, rows: pa.Table, offsets: Ints, last_offset: int) -> int:
        """Append `rows` of the schema SERVED from the stream of served rows, `offsets` their entries' offsets, under
        the rules of `append_events`."""
        path = self.root / "served" / service
        return self._append(path, rows, pa.array(offsets), SERVED_APP, last_offset, ["event_date"])

    def archived_offset(self, source: str, partition: int) -> int:
        """Offset up to which a partition is archived, -1 for nothing; fresh from the table."""
        table = open_table(self.events_path(source))
        return _version(table, _app_id(source, partition)) if table else -1

    def archived_total(self, source: str, partition: int, offset: int) -> int:
        """The stream's running number of events up to `offset`, as it was when that was archived; 0 where the archive
        ends elsewhere, or nobody knew it."""
        apps = [_app_id(source, partition), _total_id(source, partition)]
        held, total = self.versions(self.events_path(source), apps)
        return total or 0 if held == offset else 0

    def versions(self, path: Path, app_ids: Sequence[str]) -> list[int | None]:
        """The version of each application in the table at `path`, None for one that it does not know; fresh."""
        table = open_table(path)
        return [None if table is None else table.transaction_version(app_id) for app_id in app_ids]

    def positions(self, source: Source) -> dict[int, int]:
        """Archived offset by partition, partitions of which nothing is archived left out."""
        table = open_table(self.events_path(source.name))
        if table is None:
            return {}
        found = {part: _version(table, _app_id(source.name, part)) for part in (IMPORTS, *range(source.partitions))}
        return {part: offset for part, offset in found.items() if offset >= 0}

    def read_events(
        self,
        source: Source,
        columns: Sequence[str],
        *,
        up_to: Mapping[int, int] | None = None,
        since_us: int | None = None,
        until_us: int | None = None,
        arrived_since_us: int | None = None,
        repeats: bool = False,
    ) -> pa.Table:
        """Archived events in position order: `columns` (the source's own, `event_time`, `arrival_time`), then
        the position as PARTITION, OFFSET, INDEX.

        `up_to` keeps, by partition, events at or below an offset (a partition it does not name has none);
        `since_us` and `until_us` bound the event time, both included, `arrived_since_us` the arrival time; repeats
        come only when asked for.
        """
        bounds: dict[str, Any] = {"since_us": since_us, "until_us": until_us, "arrived_since_us": arrived_since_us}
        return read_events(self.events_path(source.name), source, columns, up_to=up_to, repeats=repeats, **bounds)

    def read_dead_letters(self, source: str | None = None) -> pa.Table:
        """Dead letters (of one source, or all) in position order, in the schema DEAD_LETTERS."""
        return read_dead_letters(self.dead_letters_path, source)

    def dead_letter_counts(self) -> dict[tuple[str, str | None], int]:
        """How many dead letters there are by (source, layout of the view that skips them, None for all views), those
        that were replayed left out; reads no payload."""
        return dead_letter_counts(self.dead_letters_path)

    def watermark_us(self, source: Source, partition: int) -> int | None:
        """The largest archived event time of a partition, None when it has no events."""
        up_to = {partition: np.iinfo(np.int64).max}
        times = self.read_events(source, ["event_time"], up_to=up_to, repeats=True)["event_time"]
        latest = pc.max(times.cast(pa.int64())).as_py()
        return None if latest is None else int(latest)

    def compact(self, source: str) -> str:
        """Merge the small files of a source's table and sweep files that left it a week ago; says what was done."""
        table = self._writers.pop(self.events_path(source), None) or open_table(self.events_path(source))
        if table is None:
            return "nothing archived yet"
        done = table.optimize.compact()
        table.vacuum(dry_run=False)
        return f"{done['numFilesRemoved']} files into {done['numFilesAdded']}"

    def _append(
        self,
        path: Path,
        rows: pa.Table,
        offsets: Any,
        app_id: str,
        version: int,
        partition_by: list[str] | None,
        also: Versions = NO_VERSIONS,
    ) -> int:
        table = self._writers.pop(path, None) or _open_or_create(path, rows.schema, partition_by)
        _refuse_other_types(table, rows.schema, path.relative_to(self.root).as_posix())
        done = _version(table, app_id)
        if version > done:
            rows = rows.filter(pc.greater(offsets, pa.scalar(done, pa.int64())))
            versions = {**also, app_id: version}
            commit = CommitProperties(app_transactions=[Transaction(*item) for item in versions.items()])
            if rows.num_rows:
                write_deltalake(table, rows, mode="append", schema_mode="merge", commit_properties=commit)
            else:
                table.create_write_transaction([], "append", table.schema(), partition_by, commit_properties=commit)
                table.update_incremental()
        self._writers[path] = table  # only after success: a failed commit leaves the next one to load it anew
        return rows.num_rows if version > done else 0


def _app_id(source: str, partition: int) -> str:
    return f"{source}/{partition}"


def _total_id(source: str, partition: int) -> str:
    return f"{source}/{partition}/total"


def _refuse_other_types(table: DeltaTable, schema: pa.Schema, name: str) -> None:
    """Raises DataError where the table would cast, or take two columns for one: its names know no case."""
    held = {field.name.lower(): field for field in pa.schema(table.schema().to_arrow())}
    for field in schema:
        found = held.get(field.name.lower(), field)
        if (found.name, found.type) != (field.name, field.type):
            raise DataError(
                f"The archive keeps a column's name and type, table {name!r} holds {found.name!r} as {found.type} and "
                f"would get {field.name!r} as {field.type}; use a new name for the source or view."
            )


def _open_or_create(path: Path, schema: pa.Schema, partition_by: list[str] | None) -> DeltaTable:
    found = open_table(path)
    if found is not None:
        return found
    path.mkdir(parents=True, exist_ok=True)
    return DeltaTable.create(str(path), schema=schema, partition_by=partition_by, configuration=_CONFIGURATION)


def _version(table: DeltaTable, app_id: str) -> int:
    version = table.transaction_version(app_id)
    return -1 if version is None else int(version)
