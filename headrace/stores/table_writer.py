"""Tables of any length written row group by row group, so that a reader sees the whole file or none.

Until a file is whole it lies in a hidden folder beside its place, named after the machine and the process that writes
it. The folder goes when the writing ends, however it ends; what a killed process left goes with the next one.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pyarrow.types as pat

from headrace.errors import DataError

__all__ = ["TableWriter", "move_into_place", "scratch_beside"]

GROUP_ROWS = 131_072
GROUP_BYTES = 64 << 20


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """An empty folder on the disk of `path`, there for the length of the block.

    Raises DataError where `path` is a folder, or lies in one that cannot be written.
    """
    if path.is_dir():
        raise DataError(f"A table is written to a file, {path} is a folder; name a file in it.")
    own = f".{path.name}.{_machine()}-"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{own}{os.getpid()}-", dir=path.parent))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}; choose another file.") from None
    try:
        _remove_leftovers(path.parent, own)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", socket.gethostname())


def _remove_leftovers(parent: Path, prefix: str) -> None:
    """Folders of processes of this machine that are gone."""
    for left in parent.glob(f"{prefix.replace('[', '[[]')}*"):
        process = left.name.removeprefix(prefix).partition("-")[0]
        if process.isdigit() and not _is_alive(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def move_into_place(half: Path, path: Path) -> None:
    """Make the finished file `half` the one at `path`, whatever was there. Raises DataError where it cannot be."""
    try:
        with half.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(half, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}; choose another file.") from None


class TableWriter:
    """A Parquet or CSV file, written as tables of one schema come.

    Row groups have about 131,072 rows, fewer where they are wide: no more than that and one table is held. Raises
    DataError for a list in a CSV, and for a disk that takes no more.
    """

    def __init__(self, path: Path, schema: pa.Schema, file_format: Literal["parquet", "csv"]) -> None:
        self._path = path
        self._held: list[pa.Table] = []
        self._rows = self._bytes = 0
        if file_format == "csv":
            _refuse_nested(schema)
        with _writing(path):
            self._file: Any = _WRITERS[file_format](str(path), schema)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is None:
            self._flush()
        with _writing(self._path):
            self._file.close()

    def write(self, table: pa.Table) -> None:
        """Append the rows of `table`."""
        self._held.append(table)
        self._rows += table.num_rows
        self._bytes += table.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            table = pa.concat_tables(self._held).combine_chunks()
            with _writing(self._path):
                self._file.write_table(table)
        self._held, self._rows, self._bytes = [], 0, 0


def _parquet_writer(path: str, schema: pa.Schema) -> pq.ParquetWriter:
    """Floats seldom repeat: a dictionary of them takes as long as all else, and room."""
    return pq.ParquetWriter(path, schema, use_dictionary=[f.name for f in schema if not pat.is_floating(f.type)])


_WRITERS = {"csv": pacsv.CSVWriter, "parquet": _parquet_writer}


def _refuse_nested(schema: pa.Schema) -> None:
    for field in schema:
        if pat.is_nested(field.type):
            raise DataError(f"A CSV file has no lists, column {field.name!r} is {field.type}; write a .parquet file.")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} cannot be written: {error}; free space, or choose another file.") from None
