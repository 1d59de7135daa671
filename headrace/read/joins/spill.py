"""Rows put into buckets: in memory as long as they fit, else in one file on disk."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.errors import DataError

__all__ = ["Buckets", "Space"]

Ints = NDArray[np.int64]


@dataclass(slots=True)
class Space:
    """Where rows may lie: `limit_bytes` of memory (None: no limit), `held_bytes` of which are taken, and beyond that
    files in `folder`."""

    folder: Path | None = None
    limit_bytes: int | None = None
    held_bytes: int = 0

    def is_full(self, more_bytes: int = 0) -> bool:
        return self.limit_bytes is not None and self.held_bytes + more_bytes > self.limit_bytes


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of one bucket: a table, or where they lie in the file."""

    rows: int
    n_bytes: int
    table: pa.Table | None = None
    offset: int = 0


@dataclass(slots=True)
class _Bucket:
    pieces: list[_Piece] = field(default_factory=list)
    rows: int = 0


class Buckets:
    """Rows of one schema in n buckets, in which they keep the order in which they came.

    When the space is full all that is held goes to a file, and what comes after it.
    """

    def __init__(self, schema: pa.Schema, n: int, space: Space) -> None:
        self._schema, self._space = schema, space
        self._buckets = [_Bucket() for _ in range(n)]
        self._file: IO[bytes] | None = None
        self._path: Path | None = None
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self._buckets)

    def rows(self, bucket: int) -> int:
        return self._buckets[bucket].rows

    @property
    def on_disk(self) -> bool:
        return self._file is not None

    def add(self, table: pa.Table, buckets: Ints) -> None:
        """Adds rows, each to its bucket, 0 to n - 1. Raises DataError where the disk is full."""
        if not table.num_rows:
            return
        small: NDArray[Any] = buckets.astype(np.uint8 if len(self) <= 256 else np.uint16)
        counts = np.bincount(small, minlength=len(self))
        if bool(np.any(buckets[1:] < buckets[:-1])):
            table = table.take(pa.array(np.argsort(small, kind="stable")))
        starts = np.r_[0, np.cumsum(counts)]
        for bucket in np.flatnonzero(counts).tolist():
            self._append(bucket, table.slice(int(starts[bucket]), int(counts[bucket])))
        if self._file is None and self._space.is_full():
            self._spill()

    def _append(self, bucket: int, table: pa.Table) -> None:
        held, n_bytes = self._buckets[bucket], int(table.nbytes)
        held.rows += table.num_rows
        if self._file is not None:
            held.pieces.append(self._written(table))
            return
        held.pieces.append(_Piece(table.num_rows, n_bytes, table))
        self._held_bytes += n_bytes
        self._space.held_bytes += n_bytes

    def _spill(self) -> None:
        assert self._space.folder is not None
        self._path = self._space.folder / f"{uuid.uuid4().hex}.arrow"
        self._file = self._path.open("w+b", buffering=0)
        for held in self._buckets:
            if held.pieces:
                whole = pa.concat_tables([piece.table for piece in held.pieces])
                held.pieces = [self._written(whole)]
        self._release()

    def _release(self) -> None:
        self._space.held_bytes -= self._held_bytes
        self._held_bytes = 0

    def _written(self, table: pa.Table) -> _Piece:
        assert self._file is not None
        offset, n_bytes = self._file.seek(0, os.SEEK_END), 0
        try:
            for batch in table.combine_chunks().to_batches():
                message = memoryview(batch.serialize())
                n_bytes += len(message)
                while message:
                    message = message[self._file.write(message) :]
        except OSError as error:
            raise DataError(
                f"Rows that do not fit into memory are written to {self._space.folder}, which failed: {error}; make "
                "room there, or allow more memory (--memory)."
            ) from None
        return _Piece(table.num_rows, n_bytes, None, offset)

    def tables(self, bucket: int, most_rows: int | None = None) -> Iterator[pa.Table]:
        """The rows of a bucket, pieces together up to about `most_rows` at a time (None: all); none for an empty one.

        May be asked from several threads.
        """
        group: list[_Piece] = []
        rows = 0
        for piece in self._buckets[bucket].pieces:
            if group and most_rows is not None and rows + piece.rows > most_rows:
                yield self._read(group)
                group, rows = [], 0
            group.append(piece)
            rows += piece.rows
        if group:
            yield self._read(group)

    def table(self, bucket: int) -> pa.Table:
        """All rows of a bucket."""
        return next(self.tables(bucket), self._schema.empty_table())

    def _read(self, pieces: list[_Piece]) -> pa.Table:
        return pa.concat_tables([piece.table if piece.table is not None else self._loaded(piece) for piece in pieces])

    def _loaded(self, piece: _Piece) -> pa.Table:
        assert self._file is not None
        message = pa.py_buffer(os.pread(self._file.fileno(), piece.n_bytes, piece.offset))
        return pa.Table.from_batches([pa.ipc.read_record_batch(message, self._schema)])

    def close(self) -> None:
        """Gives all rows up."""
        self._buckets = []
        self._release()
        if self._file is not None and self._path is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)
            self._file = None
