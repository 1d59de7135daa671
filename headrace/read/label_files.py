"""Labels of every kind that a caller may hand in: tables and frames in memory, and files.

Parquet and Delta are read batch by batch, however large; CSV and NDJSON, which say neither types nor length, are held
in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.json
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError

from headrace.dtypes import DType
from headrace.errors import DataError
from headrace.read.labels import BATCH_ROWS, TIMESTAMP, Labels, TableLabels, needed_text, refuse_unfit
from headrace.read.plans import LookupPlan
from headrace.stores.offline_reads import open_table, table_paths
from headrace.stores.tables import as_declared, read_file

__all__ = ["LABEL_SUFFIXES", "FolderLabels", "ParquetLabels", "is_delta", "open_labels", "open_rows"]

LABEL_SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
}
HELD_SHARE = 4
"""A file that is held in memory may take this part of what a training set may."""


@dataclass(frozen=True, slots=True)
class ParquetLabels:
    """Labels of one Parquet file."""

    path: Path
    schema: pa.Schema
    num_rows: int

    def batches(self) -> Iterator[pa.RecordBatch]:
        with _reading(self.path, "Parquet"), pq.ParquetFile(self.path, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                if batch.num_rows:
                    yield batch


@dataclass(frozen=True, slots=True)
class FolderLabels:
    """Labels of a folder of Parquet files, in the order of their names, or of a Delta table as it was when opened."""

    path: Path
    rows: pads.Dataset
    schema: pa.Schema
    num_rows: int

    def batches(self) -> Iterator[pa.RecordBatch]:
        with _reading(self.path, "Parquet"):
            for batch in self.rows.to_batches(batch_size=BATCH_ROWS, batch_readahead=1, fragment_readahead=1):
                if batch.num_rows:
                    yield batch


def open_labels(labels: Any, plan: LookupPlan, memory_bytes: int) -> Labels:
    """Labels for `plan`: what has `batches` is taken as it is; a table, a frame or a path is opened.

    Raises DataError for what is no labels, cannot be read or does not fit (see `refuse_unfit`).
    """
    opened = labels if hasattr(labels, "batches") else open_rows(labels, needed_text(plan), memory_bytes)
    refuse_unfit(opened.schema, plan)
    return opened


def open_rows(rows: Any, text: list[str], memory_bytes: int) -> Labels:
    """A pyarrow table, a pandas or polars frame, whatever else hands out Arrow, or a path to Parquet (a file or a
    folder), Delta, CSV or NDJSON. `text` names columns of the latter two that are no numbers or times."""
    if isinstance(rows, pa.Table):
        return TableLabels(_without_views(rows))
    if isinstance(rows, pd.DataFrame):
        return TableLabels(_from_pandas(rows))
    if isinstance(rows, str | Path):
        return _open_file(Path(rows), text, memory_bytes)
    if type(rows).__module__.partition(".")[0] == "polars" and hasattr(rows, "to_arrow"):
        return TableLabels(rows.to_arrow())
    if hasattr(rows, "__arrow_c_stream__"):
        return TableLabels(_without_views(pa.table(rows)))
    raise DataError(
        f"Labels are an Arrow table, a pandas or polars DataFrame or a path, got {type(rows).__name__}; convert them "
        "(a lazy frame: collect it)."
    )


def _without_views(table: pa.Table) -> pa.Table:
    """The same with plain strings: Arrow computes little on views of them."""
    plain = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    schema = pa.schema([field.with_type(plain.get(field.type, field.type)) for field in table.schema])
    return table if schema == table.schema else table.cast(schema)


def is_delta(path: Path) -> bool:
    """Whether a Delta table lies at `path`."""
    return (path / "_delta_log").is_dir()


def _from_pandas(frame: pd.DataFrame) -> pa.Table:
    try:
        return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    except pa.ArrowException as error:
        raise DataError(f"Labels must have columns of one type each: {error}.") from None


def _open_file(path: Path, text: list[str], memory_bytes: int) -> Labels:
    kind = "parquet" if path.is_dir() else LABEL_SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            f"Labels are a .parquet or .csv or .ndjson file, or a folder of Parquet or Delta, got {str(path)!r}; "
            "name it so."
        )
    if not path.exists():
        raise DataError(f"There is no {kind} file at {path}; create it or correct the path.")
    if path.is_dir():
        return _open_folder(path)
    if kind == "parquet":
        return _open_parquet(path)
    _refuse_large(path, kind, memory_bytes)
    return TableLabels(read_file(path, "csv", text=text) if kind == "csv" else _read_ndjson(path, text))


def _open_parquet(path: Path) -> Labels:
    with _reading(path, "Parquet"), pq.ParquetFile(path) as file:
        return ParquetLabels(path, file.schema_arrow.remove_metadata(), file.metadata.num_rows)


def _open_folder(path: Path) -> Labels:
    with _reading(path, "Delta" if is_delta(path) else "Parquet"):
        table = open_table(path) if is_delta(path) else None
        files = sorted(table_paths(table)) if table else str(path)
        found = pads.dataset(files, format="parquet", partitioning="hive", partition_base_dir=str(path))
        return FolderLabels(path, found, found.schema.remove_metadata(), found.count_rows())


def _refuse_large(path: Path, kind: str, memory_bytes: int) -> None:
    size, most = path.stat().st_size, memory_bytes // HELD_SHARE
    if size > most:
        raise DataError(
            f"A {kind.upper()} file of labels is held in memory, which takes at most a quarter of --memory: "
            f"{path} has {size / 1e6:,.0f} MB, a quarter is {most / 1e6:,.0f} MB; write it as Parquet, or allow more."
        )


def _read_ndjson(path: Path, text: list[str]) -> pa.Table:
    """The rows of a file of JSON objects, their columns in the order of the first one's keys."""
    with _reading(path, "NDJSON"):
        typed = pa.schema([pa.field(name, pa.string()) for name in dict.fromkeys([*text, TIMESTAMP])])
        found = pyarrow.json.read_json(path, parse_options=pyarrow.json.ParseOptions(explicit_schema=typed))
        keys = _first_keys(path)
        given = sorted(found.schema.names, key=lambda name: keys.index(name) if name in keys else len(keys))
        held = [name for name in given if name in keys or found[name].null_count < found.num_rows]
    table = found.select(held)
    if TIMESTAMP not in held:
        return table
    times = as_declared(table[TIMESTAMP], DType.TIMESTAMP, f"Label column {TIMESTAMP!r}")
    return table.set_column(held.index(TIMESTAMP), TIMESTAMP, times)


def _first_keys(path: Path) -> list[str]:
    with path.open("rb") as file:
        try:
            first = orjson.loads(file.readline())
        except orjson.JSONDecodeError as error:
            raise DataError(f"{path} cannot be read as NDJSON: {error}; write one object a line.") from None
    return list(first) if isinstance(first, dict) else []


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, DeltaError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{path} cannot be read as {what}: {reason}; write it again, or name another file.") from None
