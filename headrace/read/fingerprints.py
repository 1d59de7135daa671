"""What rows and files are known by: hashes that say whether they are the same again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from headrace.errors import DataError
from headrace.stores.offline_reads import open_table, table_paths

__all__ = ["ColumnHash", "FileStamp", "file_sha256", "rows_sha256"]


@dataclass(frozen=True, slots=True)
class FileStamp:
    """A file, a folder of files or a Delta table as it was seen: how large, and when last written."""

    path: Path
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Raises DataError where there is nothing."""
        try:
            found = [os.stat(file) for file in _files(path)]
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}; create it or correct the path.") from None
        return cls(path, sum(item.st_size for item in found), max((item.st_mtime_ns for item in found), default=0))

    def sha256(self) -> str:
        """The hash of the content. Raises DataError if it was written since it was seen."""
        found = file_sha256(self.path)
        if FileStamp.of(self.path) != self:
            raise DataError(f"{self.path} was changed while rows were built from it; build them again.")
        return found


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes; of a folder or a Delta table that of its files' names and bytes."""
    if not path.is_dir():
        return _sha256(path)
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{_sha256(file)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}; create it or correct the path.") from None


def _files(path: Path) -> list[Path]:
    """The files that are read of `path`, sorted."""
    if not path.is_dir():
        return [path]
    table = open_table(path)
    if table is not None:
        return sorted(Path(file) for file in table_paths(table))
    return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith((".", "_")))


class ColumnHash:
    """The hash of a column's values in their order, however it is cut into pieces and whatever lies under its nulls."""

    def __init__(self) -> None:
        self._rows = 0
        self._nulls, self._values, self._lengths = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        self._items: ColumnHash | None = None

    def update(self, column: pa.ChunkedArray[Any]) -> None:
        """Add the values that come next."""
        for chunk in column.chunks:
            if len(chunk):
                self._add(chunk)

    def hexdigest(self) -> str:
        """The hash of what was added."""
        parts = [self._nulls.hexdigest(), self._values.hexdigest(), self._lengths.hexdigest()]
        parts += [] if self._items is None else [self._items.hexdigest()]
        return hashlib.sha256(f"{self._rows} {' '.join(parts)}".encode()).hexdigest()

    def _add(self, values: Any) -> None:
        if pat.is_dictionary(values.type):
            values = values.dictionary_decode()
        if values.null_count:
            self._nulls.update((np.flatnonzero(np.asarray(values.is_null())) + self._rows).tobytes())
        self._rows += len(values)
        if pat.is_null(values.type):
            return
        if pat.is_list(values.type) or pat.is_large_list(values.type):
            self._lengths.update(_bytes(pc.fill_null(pc.list_value_length(values), 0).cast(pa.int64())))
            self._items = self._items or ColumnHash()
            self._items.update(pa.chunked_array([values.flatten()]))
            return
        numbers = _numbers(values)
        if numbers is not None:
            self._values.update(_bytes(numbers))
        else:
            self._add_texts(_texts(values).drop_null())

    def _add_texts(self, texts: Any) -> None:
        if len(texts):
            _, places, data = texts.buffers()
            ends = np.frombuffer(places, np.int64)[texts.offset : texts.offset + len(texts) + 1]
            self._lengths.update(np.diff(ends).tobytes())
            self._values.update(memoryview(data or b"")[ends[0] : ends[-1]])


def _numbers(values: Any) -> Any:
    """Values of a fixed width as numbers without nulls, None for others."""
    kind = values.type
    if pat.is_boolean(kind):
        values = values.cast(pa.uint8())
    elif pat.is_timestamp(kind) or pat.is_date(kind) or pat.is_time(kind) or pat.is_duration(kind):
        values = values.view(pa.int64() if kind.bit_width == 64 else pa.int32())
    elif not (pat.is_integer(kind) or pat.is_float32(kind) or pat.is_float64(kind)):
        return None
    return values.fill_null(0)


def _texts(values: Any) -> Any:
    """Texts and bytes as large_binary; whatever else by how Python writes it."""
    kind = values.type
    if pat.is_string(kind) or pat.is_large_string(kind) or pat.is_string_view(kind):
        return values.cast(pa.large_string()).cast(pa.large_binary())
    if pat.is_binary(kind) or pat.is_large_binary(kind):
        return values.cast(pa.large_binary())
    written = [None if value is None else repr(value) for value in values.to_pylist()]
    return pa.array(written, pa.large_string()).cast(pa.large_binary())


def _bytes(values: Any) -> bytes:
    return bytes(values.to_numpy(zero_copy_only=False).tobytes())


def rows_sha256(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> str:
    """The hash of rows: names, types and values, in their order."""
    hashes = [ColumnHash() for _ in schema]
    for batch in batches:
        for held, column in zip(hashes, batch.columns, strict=True):
            held.update(pa.chunked_array([column]))
    digest = hashlib.sha256()
    for field, held in zip(schema, hashes, strict=True):
        digest.update(f"{field.name}\0{field.type}\0{held.hexdigest()}\n".encode())
    return digest.hexdigest()
