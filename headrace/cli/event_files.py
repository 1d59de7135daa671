"""Files of events as stream entries: NDJSON lines as they are, CSV cells and Parquet values by the source's schema.

Nothing is refused here for its values: a cell that does not fit its column's type is passed on as text, and becomes a
dead letter with its reason where the stream is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from headrace.catalog.definitions import Source
from headrace.errors import DataError, RequestError
from headrace.stores.import_rows import csv_cells, plain_values
from headrace.stores.payloads import ENTRY_EVENTS, Batch, column_batches, ndjson_batches

__all__ = ["read_batches"]


def read_batches(source: Source, file: Path, kind: str) -> Iterator[tuple[float, list[Batch]]]:
    """(fraction of the file read, its next entries). Raises DataError for a file that is not what `kind` says."""
    readers = {"ndjson": _read_ndjson, "csv": _read_csv, "parquet": _read_parquet}
    try:
        yield from readers[kind](source, file)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as {kind}: {error}") from None
    except RequestError as error:
        raise DataError(f"{file}: {error}") from None


def _read_ndjson(source: Source, file: Path) -> Iterator[tuple[float, list[Batch]]]:
    size = max(1, file.stat().st_size)
    with file.open("rb") as lines:
        held: list[bytes] = []
        for line in lines:
            held.append(line)
            if len(held) == ENTRY_EVENTS:
                yield lines.tell() / size, ndjson_batches(source, b"".join(held))
                held = []
        yield 1.0, ndjson_batches(source, b"".join(held))


def _read_parquet(source: Source, file: Path) -> Iterator[tuple[float, list[Batch]]]:
    with pa.parquet.ParquetFile(file) as table:
        names = [column.name for column in source.columns if column.name in table.schema_arrow.names]
        total, done = max(1, table.metadata.num_rows), 0
        for rows in table.iter_batches(ENTRY_EVENTS, columns=names):
            done += rows.num_rows
            columns = {name: plain_values(rows.column(name)) for name in names}
            yield done / total, column_batches(source, columns)


def _read_csv(source: Source, file: Path) -> Iterator[tuple[float, list[Batch]]]:
    with file.open("rb") as head:
        names = pa.csv.open_csv(head, read_options=pa.csv.ReadOptions(block_size=1 << 20)).schema.names
    options = pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in names},
        include_columns=[column.name for column in source.columns if column.name in names],
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    size = max(1, file.stat().st_size)
    with pa.OSFile(str(file)) as raw, pa.csv.open_csv(raw, convert_options=options) as blocks:
        for block in blocks:
            for start in range(0, block.num_rows, ENTRY_EVENTS):
                yield raw.tell() / size, column_batches(source, _typed_cells(source, block.slice(start, ENTRY_EVENTS)))


def _typed_cells(source: Source, rows: pa.RecordBatch) -> dict[str, list[Any]]:
    return {
        column.name: csv_cells(column, rows.column(column.name))
        for column in source.columns
        if column.name in rows.schema.names
    }
