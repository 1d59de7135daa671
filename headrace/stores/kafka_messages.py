"""Messages of a Kafka topic as entries: one message is one entry, at its Kafka offset + 1 (0 is before every entry), or
where the epochs of its partition put it (see kafka_epochs.py).

An entry's `total` is its offset: a topic does not say how many events it holds. Counts and lag are therefore messages,
exact as long as each holds one event and no offset is a gap (left by compaction, or taken by a transaction's marker).
"""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa

from headrace.stores.kafka_epochs import Epochs
from headrace.stores.stream import Entry

__all__ = ["end_entry", "entry_of"]

UNREADABLE: Literal["columns"] = "columns"
"""The format of what is no event at all: its reader refuses an empty payload and says so."""
ONE_EPOCH = Epochs()


def entry_of(message: Any, payload: Literal["json", "arrow"], epochs: Epochs = ONE_EPOCH) -> Entry:
    """The entry of a message without error, in a partition of these epochs. A message without a value (a tombstone), or
    an empty one, is an entry of one event that nobody can read, and so a dead letter."""
    offset, stamp_ms = epochs.position(message.offset()), message.timestamp()[1]
    value: bytes = message.value() or b""
    arrived_us = max(stamp_ms, 0) * 1_000
    if payload == "arrow" and value:
        return Entry(offset, "arrow", _rows(value), offset, value, 0, arrived_us)
    value = value.strip()
    if not value:
        return Entry(offset, UNREADABLE, 1, offset, b"", 0, arrived_us)
    lines = [value] if b"\n" not in value else _lines(value)
    return Entry(offset, "ndjson", len(lines), offset, b"\n".join(lines), 0, arrived_us)


def end_entry(offset: int) -> Entry:
    """An entry of no events: a reader has seen everything up to `offset`, though no message stands there."""
    return Entry(offset, UNREADABLE, 0, offset, b"{}", 0, 0)


def _lines(value: bytes) -> list[bytes]:
    """One event a line; an object written over several lines (which only ends with the last) is put on one."""
    lines = [line for line in value.split(b"\n") if line.strip()]
    is_one = not all(line.lstrip().startswith(b"{") and line.rstrip().endswith(b"}") for line in lines)
    return [b" ".join(lines)] if is_one else lines


def _rows(value: bytes) -> int:
    """How many events an Arrow IPC stream holds; what is none counts as one, which is then a dead letter."""
    try:
        with pa.ipc.open_stream(value) as reader:
            return sum(batch.num_rows for batch in reader)
    except (pa.ArrowException, OSError, ValueError):
        return 1
