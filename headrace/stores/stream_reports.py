"""How far each source's stream is applied and archived, as `GET /streams` and `headrace streams` show it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.catalog.definitions import Catalog
from headrace.moments import rfc3339
from headrace.stores.markers import Applied, applied_field, decode_applied, places
from headrace.stores.stream import Entry, arrival_us

__all__ = ["ReportQuery"]

Place = tuple[str, int]


class ReportQuery:
    """What to read for a report (markers first, then heads, so that lag is never negative), and the report."""

    def __init__(self, catalog: Catalog) -> None:
        self.places: list[Place] = [(source.name, part) for source, part in places(catalog)]
        self.fields = [applied_field("source", *place) for place in self.places]
        self.fields += [applied_field("archived", *place) for place in self.places]

    def report(self, markers: Sequence[bytes | None], heads: Mapping[Place, Entry | None]) -> dict[str, Any]:
        """By source: `head`, `applied`, `archived` ({partition: "offset-index"}), `lag` in events, `lag_seconds` (how
        much later than the last applied event the newest arrived), `watermark`, `events` so far by stage.

        `markers` are the values of `fields`. The internal `writes/VIEW` are left out until they hold something.
        """
        marks = [decode_applied(raw) for raw in markers]
        applied = dict(zip(self.places, marks[: len(self.places)], strict=True))
        archived = dict(zip(self.places, marks[len(self.places) :], strict=True))
        names = dict.fromkeys(name for name, _ in self.places)
        reports = {name: _report(_of(name, heads), _of(name, applied), _of(name, archived)) for name in names}
        return {name: report for name, report in reports.items() if report["head"] or not name.startswith("writes/")}


def _of(name: str, held: Mapping[Place, Any]) -> dict[int, Any]:
    return {part: value for (source, part), value in held.items() if source == name and value is not None}


def _report(head: dict[int, Entry], applied: dict[int, Applied], archived: dict[int, Applied]) -> dict[str, Any]:
    watermarks = [mark.watermark_us for mark in applied.values() if mark.watermark_us is not None]
    behind = [_behind_us(entry, applied.get(part)) for part, entry in head.items()]
    return {
        "head": {str(part): f"{entry.offset}-{entry.count - 1}" for part, entry in head.items()},
        "applied": {str(part): str(mark) for part, mark in applied.items() if mark.offset},
        "archived": {str(part): str(mark) for part, mark in archived.items() if mark.offset},
        "lag": sum(entry.total for entry in head.values()) - sum(mark.total for mark in applied.values()),
        "lag_seconds": max(behind, default=0) / 1e6,
        "watermark": rfc3339(max(watermarks)) if watermarks else None,
        "events": {
            "pushed": sum(entry.total for entry in head.values()),
            "applied": sum(mark.total for mark in applied.values()),
            "archived": sum(mark.total for mark in archived.values()),
        },
    }


def _behind_us(head: Entry, applied: Applied | None) -> int:
    """How much later than the last applied event the newest one arrived; of a partition never applied, its age."""
    if applied is None or not applied.offset:
        return max(time.time_ns() // 1_000 - arrival_us(head.offset), 0)
    return max(arrival_us(head.offset) - arrival_us(applied.offset), 0)
