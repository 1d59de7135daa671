"""Markers: what is applied, archived and ready, in one hash per project and shard; a raise never lowers.

Fields:
    source|NAME|PARTITION     how far every view of the source holds its events (worker)
    writing|NAME|PARTITION    on a cluster: how far values may hold them, raised before they are written (worker)
    archived|NAME|PARTITION   how far the offline store holds them (archiver)
    trimmed|NAME|PARTITION    up to where the stream was trimmed, written before it is (archiver)
    gap|..., loss|...         where a consumer stopped, and losses that were accepted (see gaps.py)
    view|LAYOUT               this layout is complete (worker); what it was built from
    build|LAYOUT              when the layout was begun, by the store's clock: values of an older build count as none
    materialized|LAYOUT       how far the layout has the rows of its batch file (see materialized.py)
    layouts                   when a layout was last completed, by the store's clock (see layout_markers.py)
Values are JSON. A lookup reads the markers before the values, so it never states a position ahead of what it read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import orjson
import redis

from headrace.catalog.definitions import Catalog, FeatureView, Source, write_source
from headrace.errors import LayoutsMovedError, StoreLostError
from headrace.stores.cluster import is_cluster
from headrace.stores.keys import layout_field, markers_key

__all__ = [
    "IMPORTS",
    "Applied",
    "Markers",
    "Ready",
    "applied_field",
    "build_field",
    "import_places",
    "places",
    "ready_field",
]

IMPORTS = -1
"""The partition of a source's imported events: archived, never streamed. An offset is the number of an append, an index
the row in its file, an event's arrival its event time."""

Kind = Literal["source", "archived", "trimmed", "writing"]

_RAISE = """#!lua flags=allow-oom
local function after(a, b) return #a > #b or (#a == #b and a > b) end
local copy = string.match(KEYS[1], '^[^:]*:[^:]*:(%d+)$')
if ARGV[6] ~= '' and (not copy or copy == '0') and (redis.call('HGET', KEYS[1], 'layouts') or '0') ~= ARGV[6] then
  return 'moved'
end
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old then
  local held = cjson.decode(old)
  if held.offset == ARGV[3] and held.index >= tonumber(ARGV[4]) then return old end
  if after(held.offset, ARGV[3]) or after(ARGV[5], held.offset) then return old end
elseif ARGV[5] ~= '0' then
  return old
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return old
"""


@dataclass(frozen=True, slots=True)
class Applied:
    """A place in one partition: the last event done, the events up to it, the largest event time among them, and when
    the log took the newest of them (where offsets do not say it)."""

    offset: int = 0
    index: int = -1
    total: int = 0
    watermark_us: int | None = None
    arrived_us: int | None = None

    def __str__(self) -> str:
        return f"{self.offset}-{self.index}"


@dataclass(frozen=True, slots=True)
class Ready:
    """A layout is complete: every event from `complete_from_us` on (None: from the first) is in it."""

    complete_from_us: int | None
    applied: Mapping[str, str]


def applied_field(kind: Kind, source: str, partition: int) -> str:
    return f"{kind}|{source}|{partition}"


def ready_field(view: FeatureView) -> str:
    return f"view|{layout_field(view)}"


def build_field(view: FeatureView) -> str:
    return f"build|{layout_field(view)}"


def decode_applied(raw: bytes | None) -> Applied | None:
    """A marker's value; offsets travel as text, for Lua's numbers are doubles."""
    if raw is None:
        return None
    held = orjson.loads(raw)
    return Applied(int(held["offset"]), held["index"], held["total"], held["watermark_us"], held.get("arrived_us"))


def decode_ready(raw: bytes | None) -> Ready | None:
    return None if raw is None else Ready(**orjson.loads(raw))


def places(catalog: Catalog) -> list[tuple[Source, int]]:
    """Every (source, partition) that has a stream, the internal `writes/VIEW` included."""
    written = [write_source(catalog, view) for view in catalog.views if view.kind != "windowed"]
    return [(source, partition) for source in (*catalog.sources, *written) for partition in range(source.partitions)]


def import_places(catalog: Catalog) -> list[tuple[Source, int]]:
    """The partition of imports of every source."""
    return [(source, IMPORTS) for source in catalog.sources]


class Markers:
    """The markers of one project."""

    def __init__(self, store: redis.Redis, project: str) -> None:
        self._store = store
        self._key = markers_key(project)
        self._raise = store.register_script(_RAISE)
        self._announced: dict[tuple[str, int], tuple[int, int]] = {}

    def applied(self, kind: Kind, wanted: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Applied | None]:
        """The marker of every (source, partition), None where there is none yet."""
        asked = list(wanted)
        if not asked:
            return {}
        raw = self._store.hmget(self._key, [applied_field(kind, *place) for place in asked])
        return dict(zip(asked, map(decode_applied, cast(list[bytes | None], raw)), strict=True))

    def raise_applied(
        self, kind: Kind, source: str, partition: int, to: Applied, at_least: int = 0, completed: int | None = None
    ) -> Applied | None:
        """Raises the marker to `to` unless it is there already; returns what it was before.

        Left alone too is one below the offset `at_least`, or none at all: the store lost it since the caller saw it
        there, and counts anew. A store out of memory still takes it: what it lets be trimmed makes room.

        Raises LayoutsMovedError if a layout was completed at another moment than `completed`, the last that the caller
        knows: it may have left one out.
        """
        value = orjson.dumps({**asdict(to), "offset": str(to.offset)})
        args: list[Any] = [applied_field(kind, source, partition), value, str(to.offset), to.index, str(at_least)]
        old = cast(
            bytes | None, self._raise(keys=[self._key], args=[*args, "" if completed is None else str(completed)])
        )
        if old == b"moved":
            raise LayoutsMovedError("A layout was completed that this writer does not know; keep it up to date too.")
        return decode_applied(old)

    def announce(self, source: str, partition: int, upto: Applied) -> None:
        """To be called before values are written that hold events up to `upto`: on a cluster it says so on every shard,
        for a shard may lose events that the values of another hold. Of one server all is lost together."""
        place, announced = (source, partition), (upto.offset, upto.index)
        if is_cluster(self._store) and self._announced.get(place, (0, 0)) < announced:
            self.raise_applied("writing", source, partition, upto)
            self._announced[place] = announced

    def ready(self, view: FeatureView) -> Ready | None:
        """Whether this layout of the view is complete."""
        return decode_ready(cast(bytes | None, self._store.hget(self._key, ready_field(view))))

    def begin_build(self, view: FeatureView) -> int:
        """The build of this layout, begun now unless it was before. A store that lost its markers begins a new one."""
        seconds, micros = cast(tuple[int, int], self._store.time())
        self._store.hsetnx(self._key, build_field(view), str(seconds * 1_000_000 + micros))
        held = cast(bytes | None, self._store.hget(self._key, build_field(view)))
        if held is None:
            raise StoreLostError(
                f"A shard of the store has lost when view {view.name!r} was begun; see that a worker runs."
            )
        return int(held)

    def set_ready(self, view: FeatureView, ready: Ready) -> None:
        """States that the layout is complete; a statement once made stands."""
        self._store.hsetnx(self._key, ready_field(view), orjson.dumps(asdict(ready)).decode())

    def set_first_event(self, view: FeatureView, event_time_us: int) -> None:
        """Where a layout that was ready before its log's first event is complete from."""
        ready = self.ready(view)
        if ready is not None and ready.complete_from_us is None:
            begun = Ready(event_time_us, ready.applied)
            self._store.hset(self._key, ready_field(view), orjson.dumps(asdict(begun)).decode())

    def extend_back(self, view: FeatureView, event_time_us: int) -> None:
        """States that a layout that is ready is complete from an earlier moment on."""
        ready = self.ready(view)
        if ready is not None and (ready.complete_from_us is None or event_time_us < ready.complete_from_us):
            begun = Ready(event_time_us, ready.applied)
            self._store.hset(self._key, ready_field(view), orjson.dumps(asdict(begun)).decode())
