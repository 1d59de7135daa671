"""The upkeep of the offline store's tables, for their owner alone: two compactions at once would double the rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable

from headrace.stores.offline import OfflineStore
from headrace.stores.offline_reads import open_table
from headrace.stores.offline_records import RETAINED, read_record, write_record
from headrace.stores.served import served_paths

__all__ = [
    "SMALL_BYTES",
    "compact_day",
    "crowded_days",
    "drop_before",
    "drop_letters_before",
    "drop_served_before",
    "sweep",
]

SMALL_BYTES = 32 << 20
TARGET_BYTES = 128 << 20
_DAY = "partition.event_date"


def crowded_days(path: Path, most: int) -> list[str]:
    """The event dates of a table that have more than `most` small files, the most crowded first; "" is the one day of
    a table without dates."""
    table = open_table(path)
    if table is None:
        return []
    files = pa.table(table.get_add_actions(flatten=True))
    days = files[_DAY].cast(pa.string()).to_pylist() if _DAY in files.column_names else [""] * files.num_rows
    small = Counter(day for day, size in zip(days, files["size_bytes"].to_pylist(), strict=True) if size < SMALL_BYTES)
    return [day for day, count in small.most_common() if count > most]


def compact_day(offline: OfflineStore, path: Path, day: str) -> tuple[int, int]:
    """Merge the small files of one day ("" for a table without dates); returns how many became how many."""
    with offline.changing(path) as table:
        if table is None:
            return 0, 0
        filters = [("event_date", "=", day)] if day else None
        done = table.optimize.compact(partition_filters=filters, target_size=TARGET_BYTES)
    return int(done["numFilesRemoved"]), int(done["numFilesAdded"])


def sweep(offline: OfflineStore, path: Path, hours: int) -> int:
    """Delete the files that left a table, or never were of it, at least `hours` ago; returns how many."""
    with offline.changing(path) as table:
        return 0 if table is None else len(vacuum(table, hours))


def vacuum(table: DeltaTable, hours: int) -> list[str]:
    """The same for an open table: the files' paths."""
    return table.vacuum(retention_hours=hours, dry_run=False, enforce_retention_duration=False, full=True)


def drop_before(offline: OfflineStore, source: str, time_us: int) -> int:
    """Delete the event dates of a source that end at or before `time_us`, and record from where on its events are
    kept; returns how many events went."""
    path, day = offline.events_path(source), np.datetime64(time_us, "us").astype("datetime64[D]")
    table = open_table(path)
    if table is None:
        return 0
    files = pa.table(table.get_add_actions(flatten=True))
    if not any(np.datetime64(held) < day for held in files[_DAY].to_pylist()):
        return 0
    kept_from = int(day.astype("datetime64[us]").astype(np.int64))
    record = read_record(offline.root, RETAINED)
    write_record(offline.root, RETAINED, record | {source: max(kept_from, record.get(source, kept_from))})
    with offline.changing(path) as own:
        return 0 if own is None else int(own.delete(f"event_date < '{day}'")["num_deleted_rows"])


def drop_letters_before(offline: OfflineStore, source: str, time_us: int) -> int:
    """Delete the dead letters of a source that arrived before `time_us`; returns how many."""
    with offline.changing(offline.dead_letters_path) as table:
        if table is None:
            return 0
        name = source.replace("'", "''")
        done = table.delete(f"source = '{name}' AND CAST(arrival_time AS BIGINT) < {time_us}")
    return int(done["num_deleted_rows"])


def drop_served_before(offline: OfflineStore, service: str, time_us: int) -> int:
    """Delete the days of a service's served rows that end at or before `time_us`; returns how many rows went."""
    day = np.datetime64(time_us, "us").astype("datetime64[D]")
    with offline.changing(served_paths(offline.root)[service]) as table:
        if table is None:
            return 0
        files = pa.table(table.get_add_actions(flatten=True))
        if not any(np.datetime64(held) < day for held in files[_DAY].to_pylist()):
            return 0
        return int(table.delete(f"event_date < '{day}'")["num_deleted_rows"])
