"""The table of dead letters: its schema and its readers."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads

from headrace.stores.offline_reads import open_table, read_files, table_paths

__all__ = ["DEAD_LETTERS", "dead_letter_counts", "read_dead_letters"]

DEAD_LETTERS = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("partition", pa.int32()),
        pa.field("offset", pa.int64()),
        pa.field("index", pa.int32()),
        pa.field("reason", pa.string()),
        pa.field("payload", pa.binary()),
        pa.field("arrival_time", pa.timestamp("us", "UTC")),
        pa.field("view", pa.string()),
        pa.field("layout", pa.string()),
        pa.field("replayed", pa.bool_()),
    ]
)


def read_dead_letters(path: Path, source: str | None = None) -> pa.Table:
    """Dead letters (of one source, or all) in position order, in the schema DEAD_LETTERS."""
    condition = None if source is None else pads.field("source") == source
    found = read_files(lambda: _files(path), DEAD_LETTERS, condition=condition)
    rows = DEAD_LETTERS.empty_table() if found is None else found
    return rows.sort_by([(name, "ascending") for name in ("source", "partition", "offset", "index")])


def dead_letter_counts(path: Path) -> dict[tuple[str, str | None], int]:
    """How many dead letters there are by (source, layout of the view that skips them, None for all views), those
    that were replayed left out; reads no payload."""
    names = ["source", "layout", "replayed"]
    rows = read_files(lambda: _files(path), DEAD_LETTERS, names)
    counts: dict[tuple[str, str | None], int] = {}
    if rows is None:
        return counts
    for row in rows.group_by(names).aggregate([([], "count_all")]).to_pylist():
        place = (row["source"], row["layout"])
        counts[place] = counts.get(place, 0) + (-1 if row["replayed"] else 1) * row["count_all"]
    return {place: count for place, count in sorted(counts.items(), key=str) if count > 0}


def _files(path: Path) -> list[str]:
    table = open_table(path)
    return table_paths(table) if table else []
