"""The newest rows of a batch file on their way into the store: made into commands in one thread, sent in another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import redis
from numpy.typing import NDArray

from headrace.catalog.definitions import Column
from headrace.compute.forgotten import gone_file_rows
from headrace.read.joins.prefetch import prefetched
from headrace.stores.batch_files import BatchPart
from headrace.stores.codec.rows import BATCH, ORDER, decode_order, encode_first_rows, row_layout
from headrace.stores.keys import entity_keys, entity_prefix, layout_field
from headrace.stores.online import OnlineStore, Update
from headrace.stores.row_writes import RowWriter
from headrace.stores.tombstones import Tombstones
from headrace.stores.view_writes import Arrived, expiry_ms, row_update
from materialize.erase import ForgottenKeys, held_keys
from materialize.layouts import Kept
from materialize.newest import NewestRows, winning

__all__ = ["kept_columns", "write_winners"]

Ints = NDArray[np.int64]

CHUNK_ROWS = 20_000
CHUNK_ROWS_BY_SLOT = 400_000
CHUNK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows without those that `tombstones` tell to leave out, and the commands that write them. Rows of keys that were
    forgotten before they happened are merged by `update`: what the store holds of such a key may be what is gone."""

    table: pa.Table
    times_us: Ints
    tombstones: Tombstones
    keys: list[bytes]
    commands: list[bytes]
    update: Update | None


def kept_columns(kept: Kept) -> list[Column]:
    """What a layout needs of its file: join keys and features."""
    return list(dict.fromkeys([*kept.catalog.sorted_join_keys(kept.view), *kept.view.features]))


def write_winners(
    store: redis.Redis,
    kept: Kept,
    parts: Iterable[BatchPart],
    newest: NewestRows,
    forgotten: ForgottenKeys,
    on_rows: Callable[[int], None],
) -> tuple[int, int]:
    """Writes the winners among `parts` into the layout; returns how many rows the store took, and how many were left
    out as forgotten. `on_rows` is told of rows done."""
    view = kept.view
    writer = RowWriter(store, layout_field(view), kept.build, expiry_ms(kept.catalog, view))
    encoder = _Encoder(kept, writer)
    most = CHUNK_ROWS_BY_SLOT if writer.by_slot else CHUNK_ROWS
    chunks = (encoder.chunk(*rows, forgotten.tombstones) for rows in _chunked(winning(parts, newest), most))
    written = gone = 0
    try:
        with closing(prefetched(chunks)) as ready:
            for chunk in ready:
                while True:  # once more after a forgetting: what is no more may have kept a row from being written
                    if chunk.tombstones is not forgotten.tombstones:
                        chunk = encoder.chunk(chunk.table, chunk.times_us, forgotten.tombstones)
                    taken = writer.write(chunk.commands) + encoder.merge(store, chunk.update, forgotten)
                    if not forgotten.settle([(kept, chunk.keys)]):
                        break
                written += taken
                gone += chunk.table.num_rows - len(chunk.keys)
                on_rows(chunk.table.num_rows)
    finally:
        writer.close()
    return written, gone


def _chunked(rows: Iterable[tuple[pa.Table, Ints]], most_rows: int) -> Iterator[tuple[pa.Table, Ints]]:
    """The same rows, many or large ones at a time."""
    tables: list[pa.Table] = []
    times: list[Ints] = []
    size = n = 0
    for table, times_us in rows:
        step = max(1, min(most_rows, CHUNK_BYTES * len(times_us) // max(table.nbytes, 1)))
        for at in range(0, len(times_us), step):
            tables.append(table.slice(at, step))
            times.append(times_us[at : at + step])
            size, n = size + tables[-1].nbytes, n + len(times[-1])
            if n >= most_rows or size >= CHUNK_BYTES:
                yield pa.concat_tables(tables), np.concatenate(times)
                tables, times, size, n = [], [], 0, 0
    if tables:
        yield pa.concat_tables(tables), np.concatenate(times)


class _Encoder:
    """Makes chunks; the place of a batch row in the order is the run that wrote it."""

    def __init__(self, kept: Kept, writer: RowWriter) -> None:
        self._kept, self._writer = kept, writer
        self._layout = row_layout(kept.view)
        self._prefix = entity_prefix(kept.catalog.project, kept.view.entities)
        self._keys = [column.name for column in kept.catalog.sorted_join_keys(kept.view)]
        self._run = time.time_ns() // 1_000

    def chunk(self, table: pa.Table, times_us: Ints, tombstones: Tombstones) -> _Chunk:
        rows, rows_us = self._living(table, times_us, tombstones)
        keys = self._keys_of(rows)
        named = keys.to_pylist()
        before = {key for key, _ in held_keys(self._kept, named, tombstones)} if tombstones else set()
        if not before:
            return _Chunk(table, times_us, tombstones, named, self._commands(rows, rows_us, keys), None)
        doubted = np.array([key in before for key in named])
        sure, other = rows.filter(pa.array(~doubted)), rows.filter(pa.array(doubted))
        commands = self._commands(sure, rows_us[~doubted], self._keys_of(sure))
        return _Chunk(table, times_us, tombstones, named, commands, self._update(other, rows_us[doubted]))

    def merge(self, store: redis.Redis, update: Update | None, forgotten: ForgottenKeys) -> int:
        """Merges the rows of `update`; returns how many the store took."""
        if update is None:
            return 0
        online = OnlineStore(store)
        online.update(forgotten.without_gone_rows(self._kept, update))
        held = decode_order(self._layout, online.read(update.keys, update.field))
        return int(((held["rank"] == BATCH) & (held["offset"] == self._run)).sum())

    def _keys_of(self, rows: pa.Table) -> pa.Array:
        return entity_keys(self._prefix, [rows[name].combine_chunks() for name in self._keys])

    def _commands(self, rows: pa.Table, times_us: Ints, keys: pa.Array) -> list[bytes]:
        order = np.zeros(len(times_us), ORDER)
        order["time_us"], order["rank"], order["offset"] = times_us, BATCH, self._run
        return self._writer.commands(keys, encode_first_rows(self._layout, order, rows, self._kept.build))

    def _update(self, rows: pa.Table, times_us: Ints) -> Update:
        columns = {name: rows[name].combine_chunks() for name in rows.column_names}
        n = len(times_us)
        arrived = Arrived(columns, times_us, np.full(n, self._run), np.zeros(n, np.int64))
        return row_update(self._kept.catalog, self._kept.view, arrived, BATCH, self._kept.build)[0]

    def _living(self, table: pa.Table, times_us: Ints, tombstones: Tombstones) -> tuple[pa.Table, Ints]:
        if not tombstones:
            return table, times_us
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        gone = gone_file_rows(self._kept.catalog, self._kept.view, columns, times_us, tombstones)
        return (table.filter(pa.array(~gone)), times_us[~gone]) if gone.any() else (table, times_us)
