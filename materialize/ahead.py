"""What the worker reads before it needs it: the next batch, parsed while the store takes the present one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headrace.compute.events import EventBatch
from headrace.stores.markers import Applied
from headrace.stores.stream import Entry

__all__ = ["Ahead", "first_of"]

Place = tuple[str, int]


@dataclass(slots=True)
class Ahead:
    """What was read and parsed while the store took the batch before; `behind` is where that batch ends, if it is the
    last of its round."""

    found: dict[Place, list[Entry]] = field(default_factory=dict)
    batches: dict[Place, EventBatch] = field(default_factory=dict)
    behind: dict[Place, Applied] | None = None

    def take(self) -> dict[Place, list[Entry]]:
        found, self.found = self.found, {}
        return found

    def leave_out(self, place: Place) -> None:
        """Drops what is of one place. The others' batches stay: their ids are remembered, read again they would
        repeat."""
        self.found.pop(place, None)
        self.batches.pop(place, None)
        self.behind = None


def first_of(entries: list[Entry], most: int) -> list[Entry]:
    """The first entries, of at most `most` events together; one at least."""
    events = np.cumsum([entry.count for entry in entries])
    return entries[: max(1, int(np.searchsorted(events, most, side="right")))]
