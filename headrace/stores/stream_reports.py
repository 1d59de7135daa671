"""How far each source's stream is applied and archived, as `GET /streams` and `headrace streams` show it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.catalog.definitions import Catalog
from headrace.moments import rfc3339
from headrace.stores.gaps import ROLES, gap_field
from headrace.stores.markers import IMPORTS, Applied, applied_field, decode_applied, import_places, places
from headrace.stores.stream import EntryHead, arrival_us

__all__ = ["ReportQuery"]

Place = tuple[str, int]


class ReportQuery:
    """What to read for a report (markers first, then heads, so that lag is never negative), and the report."""

    def __init__(self, catalog: Catalog) -> None:
        self.places: list[Place] = [(source.name, part) for source, part in places(catalog)]
        self.topic_places = [(source.name, part) for source, part in places(catalog) if source.kafka is not None]
        self.stream_places = [place for place in self.places if place not in self.topic_places]
        self.fields = [applied_field("source", *place) for place in self.places]
        self.fields += [applied_field("archived", *place) for place in self.places]
        self.fields += [gap_field(role, *place) for role in ROLES for place in self.places]
        self._imports: list[Place] = [(source.name, part) for source, part in import_places(catalog)]
        self._streamed = len(self.fields)
        self.fields += [applied_field(kind, *place) for kind in ("source", "archived") for place in self._imports]

    def report(self, markers: Sequence[bytes | None], heads: Mapping[Place, EntryHead | None]) -> dict[str, Any]:
        """By source: `head`, `applied`, `archived` ({partition: "offset-index"}), `lag` in events, `lag_seconds` (how
        much later than the last applied event the newest arrived), `watermark`, `events` so far by stage, and `stopped`
        where a consumer stopped at a gap: what it says, by role.

        `heads` are those of `places`; without one of a place, whose topic cannot be reached, its source's lag is None.
        `markers` are the values of `fields`. The internal `writes/VIEW` are left out until they hold something, imports
        too; the head of these is what is archived.
        """
        n = len(self.places)
        if not n:
            return {}
        parts = [dict(zip(self.places, markers[at : at + n], strict=True)) for at in range(0, self._streamed, n)]
        applied, archived = ({place: decode_applied(raw) for place, raw in part.items()} for part in parts[:2])
        reports, imports = {}, self._of_imports(markers[self._streamed :])
        for name in dict.fromkeys(name for name, _ in self.places):
            stopped = {role: b" ".join(_of(name, gaps).values()) for role, gaps in zip(ROLES, parts[2:], strict=True)}
            imported, kept = imports.get(name, (None, None))
            row = _report(_of(name, heads), _of(name, applied), _of(name, archived), imported)
            _add_imports(row, imported, kept)
            if any(place not in heads for place in self.places if place[0] == name):
                row["lag"] = row["lag_seconds"] = None
            row["stopped"] = {role: text.decode() for role, text in stopped.items() if text}
            if row["head"] or row["stopped"] or not name.startswith("writes/"):
                reports[name] = row
        return reports

    def _of_imports(self, markers: Sequence[bytes | None]) -> dict[str, tuple[Applied | None, Applied | None]]:
        """By source, how far its imports are applied and archived."""
        marks, n = [decode_applied(raw) for raw in markers], len(self._imports)
        return {name: (marks[i], marks[n + i]) for i, (name, _) in enumerate(self._imports)}


def _add_imports(row: dict[str, Any], applied: Applied | None, archived: Applied | None) -> None:
    """Count the imports of a source in."""
    if archived is None:
        return
    done = applied if applied is not None and applied.offset else Applied()
    for stage, mark in (("head", archived), ("applied", done), ("archived", archived)):
        if mark.offset:
            row[stage][str(IMPORTS)] = str(mark)
        row["events"]["pushed" if stage == "head" else stage] += mark.total
    row["lag"] += max(archived.total - done.total, 0)


def _of(name: str, held: Mapping[Place, Any]) -> dict[int, Any]:
    return {part: value for (source, part), value in held.items() if source == name and value is not None}


def _report(
    head: dict[int, EntryHead], applied: dict[int, Applied], archived: dict[int, Applied], imported: Applied | None
) -> dict[str, Any]:
    every = [*applied.values(), *([] if imported is None else [imported])]
    watermarks = [mark.watermark_us for mark in every if mark.watermark_us is not None]
    behind = [_behind_us(entry, applied.get(part)) for part, entry in head.items()]
    return {
        "head": {str(part): f"{entry.offset}-{entry.count - 1}" for part, entry in head.items()},
        "applied": {str(part): str(mark) for part, mark in applied.items() if mark.offset},
        "archived": {str(part): str(mark) for part, mark in archived.items() if mark.offset},
        "lag": max(sum(entry.total for entry in head.values()) - sum(mark.total for mark in applied.values()), 0),
        "lag_seconds": max(behind, default=0) / 1e6,
        "watermark": rfc3339(max(watermarks)) if watermarks else None,
        "events": {
            "pushed": sum(entry.total for entry in head.values()),
            "applied": sum(mark.total for mark in applied.values()),
            "archived": sum(mark.total for mark in archived.values()),
        },
    }


def _behind_us(head: EntryHead, applied: Applied | None) -> int:
    """How much later than the last applied event the newest one arrived; of a partition never applied, its age."""
    arrived_us = arrival_us(head.offset) if head.arrived_us is None else head.arrived_us
    if applied is None or not applied.offset:
        return max(time.time_ns() // 1_000 - arrived_us, 0)
    if head.arrived_us is None:
        return max(arrived_us - arrival_us(applied.offset), 0)
    return max(arrived_us - (applied.arrived_us or arrived_us), 0)
