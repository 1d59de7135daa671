"""Dead letters on their way to the archiver: an internal stream that holds them until they are in the offline store.

A view's dead letters are written by the worker, marks of replayed ones by `headrace dead-letters replay`. An entry is
a table of the schema DEAD_LETTERS; the archiver appends it under the stream's offset, then takes it out.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa
import redis

from headrace.stores.keys import stream_key
from headrace.stores.offline import DEAD_LETTERS
from headrace.stores.stream import pack_offset, unpack_offset

__all__ = ["LETTERS", "forget_letters", "letter_entry", "pending_letters", "send_letters"]

# A source's name holds no slash of its own, so this meets none.
LETTERS = "archive/letters"


def letter_entry(project: str, rows: pa.Table) -> tuple[str, dict[str, bytes]]:
    """The key and the fields of the entry that holds `rows`, for XADD."""
    sink = pa.BufferOutputStream()
    rows = pa.table({name: _column(rows, name) for name in DEAD_LETTERS.names}, schema=DEAD_LETTERS)
    with pa.ipc.new_stream(sink, DEAD_LETTERS) as writer:
        writer.write_table(rows)
    return stream_key(project, LETTERS, 0), {"letters": sink.getvalue().to_pybytes()}


def _column(rows: pa.Table, name: str) -> Any:
    return rows[name] if name in rows.column_names else pa.nulls(rows.num_rows, DEAD_LETTERS.field(name).type)


def send_letters(store: redis.Redis, project: str, rows: pa.Table) -> None:
    """Hand `rows` (columns of DEAD_LETTERS, those left out null) to the archiver."""
    key, fields = letter_entry(project, rows)
    store.xadd(key, cast(Any, fields))


def pending_letters(store: redis.Redis, project: str, count: int | None = None) -> tuple[pa.Table, Any, int]:
    """What waits, oldest entries first: its rows, the offset of each (int64 array), and that of the last entry (0 for
    none)."""
    found = cast(list[Any], store.xrange(stream_key(project, LETTERS, 0), count=count))
    tables = [pa.ipc.open_stream(fields[b"letters"]).read_all() for _, fields in found]
    offsets = [pack_offset(entry_id) for entry_id, _ in found]
    spread = np.repeat(np.array(offsets, np.int64), [table.num_rows for table in tables])
    return pa.concat_tables([DEAD_LETTERS.empty_table(), *tables]), spread, offsets[-1] if offsets else 0


def forget_letters(store: redis.Redis, project: str, upto: int) -> None:
    """Take out the entries at or below the offset `upto`: the offline store has them."""
    store.xtrim(stream_key(project, LETTERS, 0), minid=unpack_offset(upto + 1), approximate=False)
