"""What was done to one installation from outside: sent and acknowledged, refused, imported, forgotten."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Place = tuple[str, int]
"""(source, partition)."""
RowId = tuple[str, Any]
"""(source, id). Rows of the internal source of direct writes have their `word` for an id, poisonous lines (of which no
event can be made) their text."""


@dataclass(frozen=True)
class Forgotten:
    """A key that was forgotten, as the receipt says it: by place the offset up to which its events are gone, and the
    moment up to which imported ones are."""

    who: str
    lines: Mapping[Place, int]
    at_us: int

    def takes(self, row: Mapping[str, Any] | None, place: Place, offset: int) -> bool:
        """Whether a row as it was sent, at this place, is gone."""
        return row is not None and row["who"] == self.who and offset <= self.lines.get(place, -1)


class Ledger:
    """Every row that was sent by its id, in all its versions, and where it was acknowledged, each time; what was
    imported, and what forgotten."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sent: dict[RowId, list[dict[str, Any]]] = {}
        self.acknowledged: dict[RowId, list[tuple[Place, int]]] = {}
        self.imported: dict[RowId, dict[str, Any]] = {}
        self.forgotten: list[Forgotten] = []
        self.poison: set[str] = set()
        self.refusals: list[str] = []
        self.retries = 0
        self.unanswered: dict[Place, int] = {}
        """Rows of pushes that nobody answered: they may be in the stream."""
        self.full = 0
        """Pushes that were refused because a stream's budget was used up."""

    def acknowledged_in(self, place: Place, after: int, upto: int) -> list[int]:
        """The offsets in (after, upto] at which deliveries were acknowledged."""
        ends = (end for (name, _), told in self.acknowledged.items() if name == place[0] for end in told)
        return [offset for where, offset in ends if place == where and after < offset <= upto]

    def is_forgotten(self, row_id: RowId, place: Place, offset: int) -> bool:
        """Whether an acknowledged row may be gone because its key was forgotten."""
        return any(item.takes(row, place, offset) for item in self.forgotten for row in self.sent[row_id])

    def was_ever_forgotten(self, row_id: RowId) -> bool:
        """Whether a version of the row had a key that was forgotten later."""
        keys = {item.who for item in self.forgotten}
        return any(row is not None and row["who"] in keys for row in self.sent[row_id])
