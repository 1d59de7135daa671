"""What a plan asks the store for, compiled: the markers, then one HMGET for every distinct entity key.

The markers are read first: so a stated position is never ahead of the values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace.catalog.definitions import Catalog
from headrace.errors import UnavailableError
from headrace.read.online.lookup_requests import LookupRequest
from headrace.stores.keys import entity_prefix, escape_all, layout_field, markers_key
from headrace.stores.markers import (
    IMPORTS,
    Applied,
    Ready,
    applied_field,
    build_field,
    decode_applied,
    decode_ready,
    ready_field,
)
from headrace.stores.wire import pack_command

if TYPE_CHECKING:
    from headrace.read.plans import ViewStep

__all__ = ["Asked", "Blobs", "Marks", "Place", "StoreReads"]

_numbers = count()

Blobs = list[list[bytes | None]]
"""Stored values, None where there is none: by step, by row, or the other way round."""


@dataclass(frozen=True, slots=True)
class _Entity:
    """The HMGETs of one entity: `columns` holds, once each, the request columns that its keys are made from."""

    prefix: str
    columns: tuple[tuple[str, ...], ...]
    fields: tuple[str, ...]
    before: str
    after: str

    def pack(self, keys: Sequence[str]) -> bytes:
        """An HMGET of every key."""
        text = (self.after + self.before).join([f"{len(key)}\r\n{key}" for key in keys])
        text = f"{self.before}{text}{self.after}"
        packed = text.encode()
        if len(packed) == len(text):  # else a length in characters is none in bytes
            return packed
        fields = [field.encode() for field in self.fields]
        return b"".join([pack_command([b"HMGET", key.encode(), *fields]) for key in keys])


class Place(NamedTuple):
    """Where a step's values stand: which entity, which of its columns, which of its fields."""

    entity: int
    columns: int
    field: int


class Asked(NamedTuple):
    """What one request asks for. By entity: the distinct keys; and for each of its columns the number of every row's
    key, -1 for a null one."""

    rows: int
    keys: list[list[str]]
    numbers: list[list[list[int]]]


class Marks:
    """What the markers said: per step the build of its layout (None without one), and all else, decoded when asked
    for."""

    def __init__(self, reads: StoreReads, raw: list[bytes | None]) -> None:
        self._reads, self._raw = reads, raw
        n_places, n_views = len(reads.places), len(reads.views)
        ready = dict(zip(reads.views, raw[n_places:], strict=False))
        builds = dict(zip(reads.views, raw[n_places + n_views :], strict=False))
        self.builds = [_build(builds[layout_field(step.view)]) for step in reads.steps]
        windowed = [step.view for step in reads.steps if step.view.kind == "windowed"]
        self.unready = [view.name for view in windowed if ready[layout_field(view)] is None]

    @property
    def applied(self) -> dict[tuple[str, int], Applied | None]:
        """By (source, partition) of the plan's sources, the imports' among them."""
        return dict(zip(self._reads.places, map(decode_applied, self._raw), strict=False))

    @property
    def ready(self) -> dict[str, Ready | None]:
        """By layout field."""
        raw = self._raw[len(self._reads.places) :]
        return dict(zip(self._reads.views, map(decode_ready, raw[: len(self._reads.views)]), strict=True))

    @cached_property
    def watermark_us(self) -> int:
        """The largest of all partitions, -1 without one."""
        marks = [mark.watermark_us for mark in self.applied.values() if mark is not None]
        return max([time_us for time_us in marks if time_us is not None], default=-1)

    def refuse_unready(self) -> None:
        """Raises UnavailableError unless every windowed view's layout is complete."""
        if self.unready:
            raise UnavailableError(
                f"View {self.unready[0]!r} is not ready: its layout is still being built; "
                "see that a worker runs, then try again."
            )

    def refuse_newer(self, build: int, step: int) -> None:
        """Raises UnavailableError for a value that was built after the markers were read. One of an older build counts
        as none: a store left it behind which lost its markers."""
        held = self.builds[step]
        if held is not None and build > held:
            raise UnavailableError("The store lost this view and builds it anew at this moment; try again.")


def _build(raw: bytes | None) -> int | None:
    return None if raw is None else int(raw)


class StoreReads:
    """The reads of one plan's steps."""

    def __init__(self, catalog: Catalog, steps: Sequence[ViewStep]) -> None:
        self.number = next(_numbers)
        self.steps = tuple(steps)
        names = dict.fromkeys(step.view.source for step in steps if step.view.source is not None)
        self.places = [(name, part) for name in names for part in (IMPORTS, *range(catalog.source(name).partitions))]
        views = {layout_field(step.view): step.view for step in steps}
        self.views = tuple(views)
        marks = [applied_field("source", *place) for place in self.places]
        marks += [field(view) for field in (ready_field, build_field) for view in views.values()]
        self.marks = (markers_key(catalog.project), marks)
        self._entities, self.step_places = _compile(catalog.project, self.steps)
        self._is_simple = self.step_places == [Place(0, 0, i) for i in range(len(steps))] and bool(steps)
        self._packed_marks = pack_command([part.encode() for part in ("HMGET", self.marks[0], *marks)])
        self._seen: tuple[list[bytes | None], Marks] | None = None

    def ask(self, request: LookupRequest) -> Asked:
        """The keys of a request."""
        keys, numbers = [], []
        for entity in self._entities:
            seen: dict[str, int] = {}
            numbers.append([_number(entity.prefix, request, columns, seen) for columns in entity.columns])
            keys.append(list(seen))
        return Asked(request.rows, keys, numbers)

    def pack(self, asked: Asked) -> tuple[bytes, int]:
        """All commands as the server reads them, and how many replies they get: 0 where nothing is stored."""
        if not self.steps:
            return b"", 0
        packed, replies = self._packed_marks, 1
        for entity, keys in zip(self._entities, asked.keys, strict=True):
            if keys:
                packed += entity.pack(keys)
                replies += len(keys)
        return packed, replies

    def commands(self, asked: Asked) -> Iterator[tuple[str, Sequence[str]]]:
        """The same commands for a client that packs them itself: each HMGET's key and fields."""
        if self.steps:
            yield self.marks
        for entity, keys in zip(self._entities, asked.keys, strict=True):
            for key in keys:
                yield key, entity.fields

    def marks_of(self, replies: Sequence[Any]) -> Marks:
        """What the first reply says; kept, for it seldom changes from one request to the next."""
        raw = replies[0] if replies else []
        if self._seen is None or self._seen[0] != raw:
            self._seen = (raw, Marks(self, raw))
        return self._seen[1]

    def rows_of(self, asked: Asked, replies: Sequence[Any]) -> Blobs:
        """By row, by step: the values that the other replies hold."""
        if self._is_simple and -1 not in asked.numbers[0][0]:
            return [replies[1 + number] for number in asked.numbers[0][0]]
        if not self.steps:
            return [[] for _ in range(asked.rows)]
        return [list(row) for row in zip(*self.steps_of(asked, replies), strict=True)]

    def steps_of(self, asked: Asked, replies: Sequence[Any]) -> Blobs:
        """The same by step, by row."""
        by_entity: list[list[Sequence[bytes | None]]] = []
        start = 1
        for entity, keys in zip(self._entities, asked.keys, strict=True):
            held = replies[start : start + len(keys)]
            start += len(keys)
            by_entity.append(list(zip(*held, strict=True)) if held else [()] * len(entity.fields))
        return [
            _picked(by_entity[place.entity][place.field], asked.numbers[place.entity][place.columns])
            for place in self.step_places
        ]


def _picked(held: Sequence[bytes | None], numbers: list[int]) -> list[bytes | None]:
    return [held[number] if number >= 0 else None for number in numbers]


def _number(prefix: str, request: LookupRequest, columns: Sequence[str], seen: dict[str, int]) -> list[int]:
    """The number of every row's key, -1 for a null one; keys that are new get the next numbers."""
    values = [request.values(name) for name in columns]
    missing = {row for column in values if None in column for row, value in enumerate(column) if value is None}
    texts = [escape_all(column) for column in values]
    rows = texts[0] if len(texts) == 1 else map(",".join, zip(*texts, strict=True))
    if not missing:
        return [seen.setdefault(prefix + text, len(seen)) for text in rows]
    return [-1 if row in missing else seen.setdefault(prefix + text, len(seen)) for row, text in enumerate(rows)]


def _compile(project: str, steps: Sequence[ViewStep]) -> tuple[list[_Entity], list[Place]]:
    """The entities of the steps, and where each step's values stand."""
    columns: dict[str, dict[tuple[str, ...], None]] = {}
    fields: dict[str, dict[str, None]] = {}
    for step in steps:
        prefix = entity_prefix(project, step.view.entities)
        columns.setdefault(prefix, {})[step.request_keys] = None
        fields.setdefault(prefix, {})[layout_field(step.view)] = None
    entities = [_entity(prefix, tuple(columns[prefix]), tuple(fields[prefix])) for prefix in columns]
    prefixes, places = list(columns), []
    for step in steps:
        number = prefixes.index(entity_prefix(project, step.view.entities))
        entity = entities[number]
        place = (entity.columns.index(step.request_keys), entity.fields.index(layout_field(step.view)))
        places.append(Place(number, *place))
    return entities, places


def _entity(prefix: str, columns: tuple[tuple[str, ...], ...], fields: tuple[str, ...]) -> _Entity:
    after = "".join([f"\r\n${len(field.encode())}\r\n{field}" for field in fields]) + "\r\n"
    return _Entity(prefix, columns, fields, f"*{2 + len(fields)}\r\n$5\r\nHMGET\r\n$", after)
