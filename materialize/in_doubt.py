"""Commits in doubt: appends to the archive of which nobody has seen yet that they were no loss to anybody meanwhile.

Between the archiver's look at the stream and its commit the store may come back with less, and a worker may read the
archive, go on behind its end with newer entries, and so pass by what is committed then. Or somebody accepts as lost
what the archiver has read and the stream has no more. Each commit is therefore noted first; after it the stream is
looked at again, and the losses that were accepted. Still there: whoever starts later, in whichever store, finds it in
the archive. Gone: the views that it feeds are built anew. The note is for the next archiver, if this one dies in
between; it need not outlive the machine, for then every worker starts after the commit too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import redis

from headrace.catalog.definitions import Catalog, FeatureView
from headrace.compute.events import EventBatch
from headrace.stores.gaps import any_within, losses
from headrace.stores.keys import markers_key
from headrace.stores.logs import Logs
from headrace.stores.markers import applied_field, build_field, places, ready_field
from headrace.stores.offline import OFFSET, OfflineStore
from headrace.stores.offline_reads import read_events
from headrace.stores.offline_records import APPENDING, read_record, remove_record, write_record
from headrace.stores.tombstones import place_name

__all__ = ["InDoubt", "build_anew", "fed_by", "is_given_up", "is_streamed", "was_lost"]

Place = tuple[str, int]


Offsets = tuple[int, int]
"""After the first, up to the second."""


class InDoubt:
    """What one data directory has in doubt: by place the offsets that an append holds."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._held: dict[Place, Offsets] = {
            _place(name): (a, b) for name, (a, b) in read_record(root, APPENDING).items()
        }

    @property
    def held(self) -> dict[Place, Offsets]:
        return dict(self._held)

    def note(self, place: Place, offsets: Offsets) -> None:
        """Before a commit. Raises OSError when it cannot be written; then nothing may be committed."""
        self._write(self._held | {place: offsets})

    def settle(self, place: Place) -> None:
        self._write({other: offsets for other, offsets in self._held.items() if other != place})

    def _write(self, held: dict[Place, Offsets]) -> None:
        if held:
            write_record(self._root, APPENDING, {place_name(*place): offsets for place, offsets in held.items()}, False)
        else:
            remove_record(self._root, APPENDING)
        self._held = held


def _place(name: str) -> Place:
    source, _, partition = name.rpartition("|")
    return source, int(partition)


def is_streamed(stream: Logs, place: Place, offset: int) -> bool:
    """Whether the stream still holds the entry at `offset`. A topic's broker keeps its own."""
    if place[0] in stream.topics:
        return True
    last = stream.last_upto(*place, offset)
    return last is not None and last.offset == offset


def is_given_up(stream: Logs, place: Place, batches: Sequence[EventBatch]) -> bool:
    """Whether somebody has accepted as lost what is in these batches: consumers have gone on behind it."""
    accepted = losses(stream.store, stream.project, *place) if place[0] not in stream.topics else []
    return any(any_within(batch.offset, accepted) for batch in batches)


def was_lost(stream: Logs, offline: OfflineStore, catalog: Catalog, place: Place, offsets: Offsets) -> bool:
    """Whether what was committed is gone from the stream, or was accepted as lost."""
    if not is_streamed(stream, place, offsets[1]):
        return True
    source = next((source for source, part in places(catalog) if (source.name, part) == place), None)
    accepted = losses(stream.store, stream.project, *place)
    if source is None or not accepted:
        return False
    path, upto, after = offline.events_path(place[0]), {place[1]: offsets[1]}, {place[1]: offsets[0]}
    rows = read_events(path, source, [], up_to=upto, repeats=True, after=after)
    return any_within(np.asarray(rows[OFFSET]), accepted)


def fed_by(catalog: Catalog, sources: Collection[str]) -> list[FeatureView]:
    """Every layout that one of the sources feeds, those that arrive or retire among them."""
    return [view for view in catalog.stored_views if view.source in sources or f"writes/{view.name}" in sources]


def build_anew(store: redis.Redis, catalog: Catalog, sources: Collection[str], goes_back: bool) -> list[str]:
    """Has what these sources feed count as never built: a worker begins anew, lookups answer 503 until it is done.
    Where it held events that are no longer in the log, it `goes_back` to where the log stands; where it missed some, it
    will not be ready before it is where it was. Returns the names of the views."""
    views = fed_by(catalog, sources)
    fields = [name(view) for view in views for name in (ready_field, build_field)]
    if goes_back:
        fields += [applied_field("source", it.name, part) for it, part in places(catalog) if it.name in sources]
    if fields:
        store.hdel(markers_key(catalog.project), *fields)
    return sorted({view.name for view in views})
