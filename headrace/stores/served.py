"""Served rows: what lookups answered, on their way to the archiver and in the offline store.

A server appends sampled rows to an internal stream, as tables of the schema SERVED by service; the archiver, sole owner
of the tables, appends them to `served/{service}` under the stream's offset and takes them out, as it does with dead
letters. What a service answers may change with every apply, so keys, values, statuses and views are JSON texts and the
table's schema never changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import redis
import redis.asyncio
from numpy.typing import NDArray

from headrace.stores.keys import escape, stream_key
from headrace.stores.offline_reads import open_table, read_files, table_paths
from headrace.stores.stream import pack_offset, unpack_offset
from headrace.stores.tombstones import Tombstones, part_key

__all__ = [
    "MOST_WAITING",
    "SERVED",
    "Pending",
    "gone_served",
    "pending_served",
    "read_served",
    "send_served",
    "served_paths",
    "take_out_served",
]

_MOMENT = pa.timestamp("us", "UTC")
SERVED = pa.schema(
    [
        pa.field("event_date", pa.date32()),  # of served_at: what the table is partitioned by
        pa.field("served_at", _MOMENT),
        pa.field("request_id", pa.string()),
        pa.field("row", pa.int32()),
        pa.field("rate", pa.float64()),
        pa.field("catalog_version", pa.int64()),
        pa.field("t", _MOMENT),
        pa.field("entity_keys", pa.list_(pa.string())),
        pa.field("keys", pa.string()),
        pa.field("values", pa.string()),
        pa.field("statuses", pa.string()),
        pa.field("views", pa.string()),
    ]
)
STREAM = "archive/served"
MOST_WAITING = 10_000
"""Entries that wait for an archiver; beyond, servers drop what they would log."""

Bools = NDArray[np.bool_]


class Pending(NamedTuple):
    """Rows of one service that wait, the offset of each one's entry, and that of the last entry that holds some."""

    service: str
    rows: pa.Table
    offsets: NDArray[np.int64]
    last: int


async def send_served(store: redis.asyncio.Redis, project: str, service: str, rows: pa.Table) -> bool:
    """Hands rows of SERVED to the archiver; False if too many wait already."""
    key = stream_key(project, STREAM, 0)
    if await store.xlen(key) >= MOST_WAITING:
        return False
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SERVED) as writer:
        writer.write_table(rows)
    await store.xadd(key, cast(Any, {"service": service, "rows": sink.getvalue().to_pybytes()}))
    return True


def pending_served(store: redis.Redis, project: str, count: int) -> tuple[list[Pending], int]:
    """What waits, at most `count` entries, the oldest first: by service, and the offset of the last entry (0: none)."""
    found = cast(list[Any], store.xrange(stream_key(project, STREAM, 0), count=count))
    held: dict[str, list[tuple[int, pa.Table]]] = {}
    for entry_id, fields in found:
        rows = pa.ipc.open_stream(fields[b"rows"]).read_all()
        held.setdefault(fields[b"service"].decode(), []).append((pack_offset(entry_id), rows))
    pending = []
    for service, entries in held.items():
        offsets = np.repeat(np.array([at for at, _ in entries], np.int64), [rows.num_rows for _, rows in entries])
        pending.append(Pending(service, pa.concat_tables([rows for _, rows in entries]), offsets, entries[-1][0]))
    return pending, max([of.last for of in pending], default=0)


def take_out_served(store: redis.Redis, project: str, upto: int) -> None:
    """Takes out the entries at or below the offset `upto`: the offline store has them."""
    store.xtrim(stream_key(project, STREAM, 0), minid=unpack_offset(upto + 1), approximate=False)


def served_paths(root: Path) -> dict[str, Path]:
    """The tables of served rows below the offline store's root, by service."""
    folder = root / "served"
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: path for path in found if (path / "_delta_log").is_dir()}


def read_served(root: Path, service: str, since_us: int | None = None, until_us: int | None = None) -> pa.Table:
    """The rows of a service that were served in [since, until), in the order in which they were."""

    def paths() -> list[str]:
        table = open_table(root / "served" / service)
        return table_paths(table) if table else []

    moment = pads.field("served_at")
    terms = [] if since_us is None else [moment >= pa.scalar(since_us, _MOMENT)]
    terms += [] if until_us is None else [moment < pa.scalar(until_us, _MOMENT)]
    condition = None
    for term in terms:
        condition = term if condition is None else condition & term
    names = [name for name in SERVED.names if name != "event_date"]
    found = read_files(paths, SERVED, names, condition=condition)
    rows = SERVED.empty_table().select(names) if found is None else found
    return rows.sort_by([("served_at", "ascending"), ("request_id", "ascending"), ("row", "ascending")])


def gone_served(rows: pa.Table, tombstones: Tombstones) -> Bools:
    """Which rows were served before one of their keys was forgotten."""
    until_us: dict[str, int] = {}
    found = np.zeros(rows.num_rows, np.int64)
    for row, keys in enumerate(rows["entity_keys"].to_pylist() if tombstones else ()):
        for key in keys:
            if key not in until_us:
                until_us[key] = _forgotten_us(key, tombstones)
        found[row] = max([until_us[key] for key in keys], default=0)
    gone: Bools = np.asarray(rows["served_at"].cast(pa.int64())) <= found
    return gone


def _forgotten_us(key: str, tombstones: Tombstones) -> int:
    """When a part of an entity key was last forgotten, by the wall clock; 0: never."""
    head, project, held, tail = key.split(":", 3)
    latest = 0
    for entities in tombstones.entity_sets():
        names = [escape(name) for name in entities]
        if set(names) <= set(held.split(",")):
            prefix = ":".join((head, project, ",".join(names), ""))
            item = tombstones.items.get(tombstones.digest(part_key(prefix, held.split(","), names, tail)))
            latest = latest if item is None else max(latest, item.made_us)
    return latest
