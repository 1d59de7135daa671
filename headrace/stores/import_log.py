"""What the tables know of a source's imports: their end, and up to which row each file is in.

All of it are versions of applications in the events' Delta table, so that every append of imported rows states, in
its own commit, the offset, the place in the file and the end of the log that it makes:

    SOURCE/-1                the offset of the last append
    SOURCE/-1/index, total   the number of its last row in its file, and of all rows so far, dead ones included
    SOURCE/-1/first, last    the smallest and the largest event time, in microseconds
    SOURCE/-1/file/HASH      how many rows of this file are in, also known by the table of dead letters
    SOURCE/-1/whole/HASH     the same, once those are all
    SOURCE/-1/path/HASH      60 bits of the content that was last imported from this path
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.catalog.definitions import Source
from headrace.stores.import_files import ImportFile
from headrace.stores.markers import IMPORTS, Applied
from headrace.stores.offline import OfflineStore
from headrace.stores.offline_reads import read_events

__all__ = ["FilePart", "ImportLog"]


@dataclass(frozen=True, slots=True)
class FilePart:
    """Rows of a file that one append brings: up to number `end`, `is_last` if there are no more."""

    file: ImportFile
    digest: str
    end: int
    is_last: bool


class ImportLog:
    """The imports of one source; the appends are for the archiver alone."""

    def __init__(self, offline: OfflineStore, source: str) -> None:
        self._offline = offline
        self._name = f"{source}/{IMPORTS}"
        self._path = offline.events_path(source)

    def end(self) -> Applied:
        """The last append's place."""
        offset, index, total, last = self._versions("", "/index", "/total", "/last")
        return Applied() if offset is None else Applied(offset, index or 0, total or 0, last)

    def first_event_us(self) -> int | None:
        """The smallest event time that was imported, None without one."""
        return self._versions("/first")[0]

    def next_offset(self) -> int:
        """The offset of the next append: one that neither table has seen."""
        (letters,) = self._offline.versions(self._offline.dead_letters_path, [self._name])
        return max(self._versions("")[0] or 0, letters or 0) + 1

    def rows_done(self, digest: str) -> tuple[int, bool]:
        """How many rows of a file are in, and whether these are all."""
        done, whole = self._versions(f"/file/{digest}", f"/whole/{digest}")
        return done or 0, whole is not None

    def letters_done(self, digest: str) -> int:
        """Up to which row the file's dead letters are in; it is ahead of `rows_done` after a crash."""
        return self._offline.versions(self._offline.dead_letters_path, [f"{self._name}/file/{digest}"])[0] or 0

    def has_changed(self, file: ImportFile, digest: str) -> bool:
        """Whether other content was imported from this path before."""
        (known,) = self._versions(_path_id(file))
        return known is not None and known != _content(digest)

    def append(self, source: Source, events: pa.Table, letters: pa.Table, end: Applied, part: FilePart) -> None:
        """Append rows (of `event_rows`) at the offset of `end`, their dead letters (of DEAD_LETTERS) before them."""
        place = {"partition": IMPORTS, "last_offset": end.offset}
        letters = letters.filter(pc.greater_equal(letters["index"], self.letters_done(part.digest)))
        file = {f"{self._name}/file/{part.digest}": part.end}
        if letters.num_rows:
            self._offline.append_dead_letters(source, letters, **place, also=file)
        also = {**file, **self._state(events, end), self._name + _path_id(part.file): _content(part.digest)}
        if part.is_last:
            also[f"{self._name}/whole/{part.digest}"] = part.end
        self._offline.append_events(source, events, **place, also=also)

    def times_of(self, source: Source, ids: pa.Array, first_us: int, last_us: int) -> Mapping[object, list[int]]:
        """The event times by id of the imported events with one of `ids` that happened from `first_us` to `last_us`."""
        if source.event_id is None or self._versions("")[0] is None:
            return {}
        rows = read_events(
            self._path,
            source,
            list(dict.fromkeys([source.event_id, "event_time"])),
            up_to={IMPORTS: np.iinfo(np.int64).max},
            since_us=first_us,
            until_us=last_us,
            repeats=True,
            among=(source.event_id, ids),
        )
        found: dict[object, list[int]] = {}
        numbers = np.asarray(rows["event_time"].cast(pa.int64()).combine_chunks()).tolist()
        for event_id, time_us in zip(rows[source.event_id].to_pylist(), numbers, strict=True):
            found.setdefault(event_id, []).append(time_us)
        return found

    def between(self, source: Source, columns: Sequence[str], after: int, upto: int) -> pa.Table:
        """The imported events at offsets in (after, upto], repeats among them, as `OfflineStore.read_events` gives
        them."""
        return read_events(self._path, source, columns, repeats=True, up_to={IMPORTS: upto}, after={IMPORTS: after})

    def _state(self, events: pa.Table, end: Applied) -> dict[str, int]:
        """What `end` and `first_event_us` come to after an append."""
        state = {"/index": end.index, "/total": end.total}
        if end.watermark_us is not None:
            state["/last"] = end.watermark_us
        if events.num_rows:
            first = int(np.asarray(events["event_time"].cast(pa.int64())).min())
            known = self.first_event_us()
            state["/first"] = first if known is None else min(first, known)
        return {self._name + name: value for name, value in state.items()}

    def _versions(self, *names: str) -> list[int | None]:
        return self._offline.versions(self._path, [self._name + name for name in names])


def _path_id(file: ImportFile) -> str:
    return f"/path/{hashlib.sha256(file.path.encode(errors='surrogateescape')).hexdigest()}"


def _content(digest: str) -> int:
    return int(digest[:15], 16)
