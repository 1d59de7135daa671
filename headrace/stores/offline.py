"""The offline store: Delta tables below `DATA_DIR/offline`, written by the one archiver, read by everyone.

    events/{source}    every event that parsed: the source's own columns, event_time, arrival_time,
                       position {partition, offset, index}, is_repeat; partitioned by event_date
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from numpy.typing import NDArray

from headrace.catalog.definitions import Source
from headrace.errors import DataError, SettingsError
from headrace.stores.arrow import arrow_schema

__all__ = ["DEAD_LETTERS", "INDEX", "OFFSET", "PARTITION", "OfflineStore", "archiver_ownership", "event_rows"]

PARTITION, OFFSET, INDEX = "position.partition", "position.offset", "position.index"
"""The names that `read_events` gives the three parts of a position."""

DEAD_LETTERS = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("partition", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("index", pa.int32()),
        pa.field("reason", pa.string()),
        pa.field("payload", pa.binary()),
        pa.field("arrival_time", pa.timestamp("us", "UTC")),
        pa.field("view", pa.string()),
        pa.field("layout", pa.string()),
        pa.field("replayed", pa.bool_()),
    ]
)

_MOMENT = pa.timestamp("us", "UTC")
_POSITION = pa.struct([("partition", pa.int32()), ("offset", pa.int64()), ("index", pa.int32())])
_ARCHIVE = (
    pa.field("event_time", _MOMENT),
    pa.field("arrival_time", _MOMENT),
    pa.field("position", _POSITION),
    pa.field("is_repeat", pa.bool_()),
    pa.field("event_date", pa.date32()),
)

_CONFIGURATION = {"delta.logRetentionDuration": "interval 1 days"}  # the past is found by position, not by version
_YEARS_US = (-62_135_596_800_000_000, 253_402_300_799_999_999)

Ints = NDArray[np.int64]


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
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def event_rows(
    table: pa.Table,
    *,
    event_time_us: Ints,
    arrival_us: Ints,
    partition: int,
    offset: Ints,
    index: Ints,
    is_repeat: NDArray[np.bool_],
) -> pa.Table:
    """Parsed events as rows of the archive; `table` holds the source's columns in their declared types."""
    event_time = pa.array(event_time_us).cast(_MOMENT)
    position = pa.StructArray.from_arrays(
        [
            pa.array(np.full(len(offset), partition, np.int32)),
            pa.array(offset),
            pa.array(index.astype(np.int32)),
        ],
        fields=list(_POSITION),
    )
    added: dict[str, Any] = {
        "event_time": event_time,
        "arrival_time": pa.array(arrival_us).cast(_MOMENT),
        "position": position,
        "is_repeat": pa.array(is_repeat),
        "event_date": event_time.cast(pa.date32()),
    }
    own = {name: table[name] for name in table.column_names if name not in added}
    return pa.table({**own, **added})


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
        table = _open(self.events_path(source.name))
        if table is not None:
            _refuse_other_types(table, _schema(source), f"events/{source.name}")

    @property
    def dead_letters_path(self) -> Path:
        return self.root / "dead_letters"

    def append_events(self, source: Source, rows: pa.Table, *, partition: int, last_offset: int) -> int:
        """Append `rows` (of `event_rows`): all events of one partition after its archived offset, up to the entry
        at `last_offset`, whole. Rows at or below the archived offset are dropped; returns how many were added.

        No rows is an append too: it raises the archived offset. Raises DataError for a column that the table holds as
        another type.
        """
        schema = _schema(source)
        rows = rows.select(schema.names).cast(schema)
        offsets = pc.struct_field(rows["position"], "offset")
        path = self.events_path(source.name)
        return self._append(path, rows, offsets, _app_id(source.name, partition), last_offset, ["event_date"])

    def append_dead_letters(self, source: Source, rows: pa.Table, *, partition: int, last_offset: int) -> int:
        """Append `rows` of the schema DEAD_LETTERS under the same rules as `append_events`."""
        app_id = _app_id(source.name, partition)
        return self._append(self.dead_letters_path, rows, rows["offset"], app_id, last_offset, None)

    def append_letters(self, rows: pa.Table, offsets: Ints, last_offset: int) -> int:
        """Append `rows` of the schema DEAD_LETTERS from the stream of letters, `offsets` their entries' offsets, under
        the same rules."""
        return self._append(self.dead_letters_path, rows, pa.array(offsets), "archive/letters", last_offset, None)

    def archived_offset(self, source: str, partition: int) -> int:
        """Offset up to which a partition is archived, -1 for nothing; fresh from the table."""
        table = _open(self.events_path(source))
        return _version(table, _app_id(source, partition)) if table else -1

    def positions(self, source: Source) -> dict[int, int]:
        """Archived offset by partition, partitions of which nothing is archived left out."""
        table = _open(self.events_path(source.name))
        if table is None:
            return {}
        found = {part: _version(table, _app_id(source.name, part)) for part in range(source.partitions)}
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
        schema = _schema(source)
        table = _open(self.events_path(source.name))
        files = _files(table, since_us, until_us) if table else []
        wanted: dict[str, Any] = {name: pads.field(name) for name in columns}
        for name in (PARTITION, OFFSET, INDEX):
            wanted[name] = pads.field(*name.split("."))
        if not files:
            return schema.empty_table().flatten().select(list(wanted))
        terms = [
            None if repeats else ~pads.field("is_repeat"),
            _bound("event_time", ">=", since_us),
            _bound("event_time", "<=", until_us),
            _bound("arrival_time", ">=", arrived_since_us),
            None if up_to is None else _at_or_below(up_to),
        ]
        dataset = pads.dataset(files, schema=schema, format="parquet")
        rows = dataset.to_table(columns=wanted, filter=_all_of(terms))
        return _in_position_order(rows.combine_chunks())

    def read_dead_letters(self, source: str | None = None) -> pa.Table:
        """Dead letters (of one source, or all) in position order, in the schema DEAD_LETTERS."""
        table = _open(self.dead_letters_path)
        files = _paths(table) if table else []
        if not files:
            return DEAD_LETTERS.empty_table()
        rows = pads.dataset(files, schema=DEAD_LETTERS, format="parquet").to_table(
            filter=None if source is None else pads.field("source") == source
        )
        return rows.sort_by([(name, "ascending") for name in ("source", "partition", "offset", "index")])

    def dead_letter_counts(self) -> dict[tuple[str, str | None], int]:
        """How many dead letters there are by (source, layout of the view that skips them, None for all views), those
        that were replayed left out; reads no payload."""
        table = _open(self.dead_letters_path)
        files = _paths(table) if table else []
        if not files:
            return {}
        names = ["source", "layout", "replayed"]
        rows = pads.dataset(files, schema=DEAD_LETTERS, format="parquet").to_table(columns=names)
        counts: dict[tuple[str, str | None], int] = {}
        for row in rows.group_by(names).aggregate([([], "count_all")]).to_pylist():
            place = (row["source"], row["layout"])
            counts[place] = counts.get(place, 0) + (-1 if row["replayed"] else 1) * row["count_all"]
        return {place: count for place, count in sorted(counts.items(), key=str) if count > 0}

    def watermark_us(self, source: Source, partition: int) -> int | None:
        """The largest archived event time of a partition, None when it has no events."""
        up_to = {partition: np.iinfo(np.int64).max}
        times = self.read_events(source, ["event_time"], up_to=up_to, repeats=True)["event_time"]
        latest = pc.max(times.cast(pa.int64())).as_py()
        return None if latest is None else int(latest)

    def compact(self, source: str) -> str:
        """Merge the small files of a source's table and sweep files that left it a week ago; says what was done."""
        table = self._writers.pop(self.events_path(source), None) or _open(self.events_path(source))
        if table is None:
            return "nothing archived yet"
        done = table.optimize.compact()
        table.vacuum(dry_run=False)
        return f"{done['numFilesRemoved']} files into {done['numFilesAdded']}"

    def _append(
        self, path: Path, rows: pa.Table, offsets: Any, app_id: str, version: int, partition_by: list[str] | None
    ) -> int:
        table = self._writers.pop(path, None) or _open_or_create(path, rows.schema, partition_by)
        _refuse_other_types(table, rows.schema, path.relative_to(self.root).as_posix())
        done = _version(table, app_id)
        if version > done:
            rows = rows.filter(pc.greater(offsets, pa.scalar(done, pa.int64())))
            commit = CommitProperties(app_transactions=[Transaction(app_id, version)])
            if rows.num_rows:
                write_deltalake(table, rows, mode="append", schema_mode="merge", commit_properties=commit)
            else:
                table.create_write_transaction([], "append", table.schema(), partition_by, commit_properties=commit)
                table.update_incremental()
        self._writers[path] = table  # only after success: a failed commit leaves the next one to load it anew
        return rows.num_rows if version > done else 0


def _app_id(source: str, partition: int) -> str:
    return f"{source}/{partition}"


def _schema(source: Source) -> pa.Schema:
    """The source's columns in their declared types, then what the archive adds."""
    own = arrow_schema(source.columns)
    return pa.schema([*own, *(field for field in _ARCHIVE if field.name not in own.names)])


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


def _open(path: Path) -> DeltaTable | None:
    return DeltaTable(str(path)) if (path / "_delta_log").is_dir() and DeltaTable.is_deltatable(str(path)) else None


def _open_or_create(path: Path, schema: pa.Schema, partition_by: list[str] | None) -> DeltaTable:
    found = _open(path)
    if found is not None:
        return found
    path.mkdir(parents=True, exist_ok=True)
    return DeltaTable.create(str(path), schema=schema, partition_by=partition_by, configuration=_CONFIGURATION)


def _version(table: DeltaTable, app_id: str) -> int:
    version = table.transaction_version(app_id)
    return -1 if version is None else int(version)


def _paths(table: DeltaTable) -> list[str]:
    return [unquote(uri) for uri in table.file_uris()]


def _files(table: DeltaTable, since_us: int | None, until_us: int | None) -> list[str]:
    """Paths of the table's files whose dates meet the interval."""
    first, last = _date(since_us, "0001-01-01"), _date(until_us, "9999-12-31")
    return [path for path in _paths(table) if first <= _date_of(path) <= last]


def _date(time_us: int | None, otherwise: str) -> str:
    """The day of a time in ISO form, `otherwise` for none and for times outside the years 1 to 9999."""
    if time_us is None or not _YEARS_US[0] <= time_us <= _YEARS_US[1]:
        return otherwise
    return str(np.datetime64(time_us, "us").astype("datetime64[D]"))


def _date_of(path: str) -> str:
    """The day of a file: its folder is called `event_date=2024-05-01`."""
    return Path(path).parent.name.rpartition("=")[2]


def _bound(name: str, sign: Literal[">=", "<="], time_us: int | None) -> pads.Expression | None:
    if time_us is None:
        return None
    time, field = pa.scalar(time_us).cast(_MOMENT), pads.field(name)
    return field >= time if sign == ">=" else field <= time


def _all_of(terms: Sequence[pads.Expression | None]) -> pads.Expression | None:
    condition = None
    for term in terms:
        if term is not None:
            condition = term if condition is None else condition & term
    return condition


def _at_or_below(up_to: Mapping[int, int]) -> pads.Expression:
    condition = pads.scalar(False)
    for partition, offset in up_to.items():
        inside = (pads.field("position", "partition") == partition) & (pads.field("position", "offset") <= offset)
        condition = condition | inside
    return condition


def _in_position_order(rows: pa.Table) -> pa.Table:
    keys = [rows[name].to_numpy() for name in (INDEX, OFFSET, PARTITION)]
    return rows.take(np.lexsort(keys))
