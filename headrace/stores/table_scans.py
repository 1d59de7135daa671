"""Users' tables read batch by batch, as often as asked, in one order: Parquet, Delta and CSV of any size."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from headrace.errors import DataError

__all__ = ["CsvScan", "DatasetScan", "TableScan", "open_scan"]

BATCH_ROWS = 32_768
CSV_BLOCK_BYTES = 16 << 20
CSV_ROW_BYTES = 40
READ_BYTES = 1 << 18
_Identity = tuple[str, int, int, int]


class DatasetScan:
    """Parquet files: one, a folder of them, or those of a Delta table as it was when opened."""

    def __init__(self, path: Path, file_format: str) -> None:
        self._reading = _reading(path, file_format)
        with self._reading():
            self._rows = _delta_files(path) if file_format == "delta" else _parquet_files(path)
        self.schema: pa.Schema = self._rows.schema
        self._before = _identities(self._rows.files)

    def batches(self, columns: Sequence[str], only: pads.Expression | None = None) -> Iterator[pa.Table]:
        """`columns` of the row groups that may have a row which `only` lets pass, the same rows in the same order each
        time.

        Raises DataError for what cannot be read, and where a file is another than when it was opened.
        """
        with self._reading():
            self._refuse_changed()
            for fragment in self._rows.get_fragments(only):
                for table in self._tables(fragment, columns, only):
                    if table.num_rows:
                        yield table
            self._refuse_changed()

    def _tables(self, fragment: Any, columns: Sequence[str], only: pads.Expression | None) -> Iterator[pa.Table]:
        """Row groups are read in parts: whole ones may be larger than memory."""
        part = fragment if only is None else fragment.subset(only, schema=self.schema)
        groups = [group.id for group in part.row_groups]
        known = pads.get_partition_keys(fragment.partition_expression)
        with pq.ParquetFile(fragment.path, pre_buffer=False, buffer_size=READ_BYTES) as file:
            held = [name for name in columns if name not in known and name in file.schema_arrow.names]
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=held):
                arrays = [self._column(batch, name, known) for name in columns]
                yield pa.Table.from_arrays(arrays, names=list(columns))

    def _column(self, batch: pa.RecordBatch, name: str, known: Mapping[str, Any]) -> pa.Array:
        kind = self.schema.field(name).type
        if name in known:
            return pa.repeat(pa.scalar(known[name]), batch.num_rows).cast(kind)
        return batch.column(name).cast(kind) if name in batch.schema.names else pa.nulls(batch.num_rows, kind)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        with self._reading():
            return sum(fragment.metadata.num_rows for fragment in self._rows.get_fragments())

    def is_finite(self, column: str) -> bool:
        """Whether the files' statistics say that no value of a floating column is infinite."""
        with self._reading():
            return all(_is_finite(fragment.metadata, column) for fragment in self._rows.get_fragments())

    def _refuse_changed(self) -> None:
        for old, new in zip(self._before, _identities(self._rows.files), strict=True):
            if old != new:
                raise DataError(f"{old[0]} was changed while it was read; run it again.")


class CsvScan:
    """A CSV file, also compressed. Each block's values are typed by what they are; columns of `text` are strings.

    An empty cell is null, `""` an empty string. `schema` has the names alone, of null type.
    """

    def __init__(self, path: Path, text: Collection[str]) -> None:
        self._path, self._text = path, frozenset(text)
        self._reading = _reading(path, "csv")
        with self._reading():
            (self._before,) = _identities([str(path)])
            names = self._read(next(self._blocks(), b""), None, None).schema.names
        self.schema = pa.schema([(name, pa.null()) for name in names])

    def batches(self, columns: Sequence[str], only: pads.Expression | None = None) -> Iterator[pa.Table]:
        """As those of DatasetScan; `only` lets all pass."""
        names: list[str] | None = None
        with self._reading():
            for block in self._blocks():
                table = self._read(block, names, columns)
                names = self.schema.names
                if table.num_rows:
                    yield table
            if _identities([str(self._path)]) != [self._before]:
                raise DataError(f"{self._path} was changed while it was read; run it again.")

    def is_finite(self, column: str) -> bool:
        return False

    @property
    def rows(self) -> int:
        """About how many rows there are."""
        return self._before[2] // CSV_ROW_BYTES

    def _blocks(self) -> Iterator[bytes]:
        """The file's bytes, cut between lines."""
        with pa.input_stream(str(self._path)) as file:
            rest = b""
            while block := file.read(CSV_BLOCK_BYTES):
                whole, newline, rest_of = (rest + block).rpartition(b"\n")
                rest = rest_of
                if newline:
                    yield whole + newline
            if rest:
                yield rest

    def _read(self, block: bytes, names: list[str] | None, columns: Sequence[str] | None) -> pa.Table:
        """Some lines; `names` None says that the first has the names, `columns` None asks for all."""
        options = pacsv.ConvertOptions(
            column_types={name: pa.string() for name in self._text},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            include_columns=columns,
        )
        return pacsv.read_csv(io.BytesIO(block), pacsv.ReadOptions(column_names=names), convert_options=options)


TableScan = DatasetScan | CsvScan


def open_scan(path: Path, file_format: str, columns: Collection[str], text: Collection[str] = ()) -> TableScan:
    """The file (or folder of files) at `path`, which must have `columns`; `text` names those that a CSV must not take
    for numbers or times. Raises DataError for what is not there or cannot be read, and for missing columns."""
    if not path.exists():
        raise DataError(f"There is no {file_format} file at {path}; create it or correct the path.")
    scan = CsvScan(path, text) if file_format == "csv" else DatasetScan(path, file_format)
    present = scan.schema.names
    missing = [name for name in columns if name not in present]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}; it has: {', '.join(present)}.")
    return scan


def _parquet_files(path: Path) -> Any:
    return pads.dataset(str(path), format="parquet", partitioning="hive")


def _delta_files(path: Path) -> Any:
    files = [unquote(uri) for uri in DeltaTable(str(path)).file_uris()]
    return pads.dataset(files, format="parquet", partitioning="hive", partition_base_dir=str(path))


def _reading(path: Path, file_format: str) -> Callable[[], Any]:
    """A context in which what goes wrong with the file is a DataError that names it."""

    @contextmanager
    def reading() -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, DeltaError, OSError) as error:
            raise DataError(f"{path} cannot be read as {file_format}: {error}.") from None

    return reading


def _identities(paths: Sequence[str]) -> list[_Identity]:
    found = [(path, Path(path).stat()) for path in paths]
    return [(path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in found]


def _is_finite(metadata: Any, column: str) -> bool:
    names = list(metadata.schema.names)
    if names.count(column) != 1 or metadata.num_columns != len(names):
        return False
    at = names.index(column)
    for group in range(metadata.num_row_groups):
        found = metadata.row_group(group).column(at).statistics
        if found is None or not found.has_min_max or not -_LARGEST <= found.min <= found.max <= _LARGEST:
            return False
    return True


_LARGEST = 1.7976931348623157e308
