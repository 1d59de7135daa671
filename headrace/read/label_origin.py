"""What labels were made from: opened once, recorded in a manifest, and found again by what was recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.errors import RequestError
from headrace.read.batch_scoring import known_keys, present_us
from headrace.read.dataset import sources_behind
from headrace.read.fingerprints import FileStamp, rows_sha256
from headrace.read.grid import Grid, GridLabels, Times
from headrace.read.history import History
from headrace.read.label_files import open_labels, open_rows
from headrace.read.labels import Labels, needed_text
from headrace.read.plans import LookupPlan

__all__ = ["LabelOrigin", "given_again", "is_same", "open_with_origin"]


@dataclass(frozen=True, slots=True)
class LabelOrigin:
    """`rows` with the file that they are of, if any; of a grid, `entities` are the origin of its list (None: all that
    were known) and `times` its moments."""

    rows: Labels
    stamp: FileStamp | None = None
    entities: LabelOrigin | None = None
    times: Times | None = None

    def record(self) -> dict[str, Any]:
        """What a manifest says of them. Raises DataError if a file was written since it was opened."""
        if self.times is not None:
            listed = {"kind": "all"} if self.entities is None else self.entities.record()
            grid = {"first_us": self.times.first_us, "every_us": self.times.every_us, "count": self.times.count}
            return {"kind": "grid", "entities": listed, **grid}
        if self.stamp is not None:
            return {"kind": "file", "path": str(self.stamp.path.absolute()), "sha256": self.stamp.sha256()}
        return {"kind": "table", "sha256": rows_sha256(self.rows.schema, self.rows.batches())}


def open_with_origin(given: Any, plan: LookupPlan, history: History, memory_bytes: int) -> LabelOrigin:
    """Labels for `plan` from whatever `training_set` takes. Raises DataError and RequestError for what does not fit."""
    if isinstance(given, Grid):
        return _open_grid(given, plan, history, memory_bytes)
    rows = open_labels(given, plan, memory_bytes)
    return LabelOrigin(rows, _stamp(given))


def _stamp(given: Any) -> FileStamp | None:
    return FileStamp.of(Path(given)) if isinstance(given, str | Path) else None


def _open_grid(given: Grid, plan: LookupPlan, history: History, memory_bytes: int) -> LabelOrigin:
    times = given.times or Times(present_us(plan.catalog, sources_behind(plan.catalog, plan), history))
    if given.entities is None:
        labels = GridLabels(known_keys(plan, history, times.last_us), times)
        return LabelOrigin(open_labels(labels, plan, memory_bytes), times=times)
    rows = open_rows(given.entities, needed_text(plan), memory_bytes)
    labels = GridLabels(pa.Table.from_batches(list(rows.batches()), rows.schema), times)
    listed = LabelOrigin(rows, _stamp(given.entities))
    return LabelOrigin(open_labels(labels, plan, memory_bytes), entities=listed, times=times)


def given_again(record: Mapping[str, Any], given: Any) -> Any:
    """What to open for the labels of a manifest; `given` stands for a file that has moved, and for a table (of a grid:
    for its list of entities). Raises RequestError where it is needed."""
    if record["kind"] == "grid":
        listed = record["entities"]
        entities = None if listed["kind"] == "all" else given_again(listed, given)
        return Grid(entities, Times(record["first_us"], record["every_us"], record["count"]))
    if given is not None:
        return given
    if record["kind"] == "file":
        return Path(record["path"])
    raise RequestError(
        "These rows were built from labels in memory, of which a manifest keeps a hash; give them (labels=, --labels)."
    )


def is_same(known: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether two records are of the same labels, wherever they lie."""
    if known["kind"] == found["kind"] == "grid":
        moments = all(known[name] == found[name] for name in ("first_us", "every_us", "count"))
        return moments and is_same(known["entities"], found["entities"])
    return known["kind"] == found["kind"] and known.get("sha256") == found.get("sha256")
