"""Markers: what is applied, archived and ready, in one hash per project and shard; a raise never lowers.

Fields:
    source|NAME|PARTITION     how far every view of the source holds its events (worker)
    archived|NAME|PARTITION   how far the offline store holds them (archiver)
    view|LAYOUT               this layout is complete (worker); what it was built from
    build|LAYOUT              when the layout was begun, by the store's clock: values of an older build count as none
Values are JSON. A lookup reads the markers before the values, so it never states a position ahead of what it read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import orjson
import redis

from headrace.catalog.definitions import Catalog, FeatureView, Source, write_source
from headrace.stores.keys import layout_field, markers_key

__all__ = ["Applied", "Markers", "Ready", "applied_field", "build_field", "places", "ready_field"]

Kind = Literal["source", "archived"]

_RAISE = """
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old then
  local held = cjson.decode(old)
  if held.offset == ARGV[3] and held.index >= tonumber(ARGV[4]) then return old end
  if #held.offset > #ARGV[3] or (#held.offset == #ARGV[3] and held.offset > ARGV[3]) then return old end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return old
"""


@dataclass(frozen=True, slots=True)
class Applied:
    """A place in one partition: the last event done, the events up to it, the largest event time among them."""

    offset: int = 0
    index: int = -1
    total: int = 0
    watermark_us: int | None = None

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
    return Applied(int(held["offset"]), held["index"], held["total"], held["watermark_us"])


def decode_ready(raw: bytes | None) -> Ready | None:
    return None if raw is None else Ready(**orjson.loads(raw))


def places(catalog: Catalog) -> list[tuple[Source, int]]:
    """Every (source, partition) that worker and archiver consume, the internal `writes/VIEW` included."""
    written = [write_source(catalog, view) for view in catalog.views if view.kind != "windowed"]
    return [(source, partition) for source in (*catalog.sources, *written) for partition in range(source.partitions)]


class Markers:
    """The markers of one project."""

    def __init__(self, store: redis.Redis, project: str) -> None:
        self._store = store
        self._key = markers_key(project)
        self._raise = store.register_script(_RAISE)

    def applied(self, kind: Kind, wanted: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Applied | None]:
        """The marker of every (source, partition), None where there is none yet."""
        asked = list(wanted)
        if not asked:
            return {}
        raw = self._store.hmget(self._key, [applied_field(kind, *place) for place in asked])
        return dict(zip(asked, map(decode_applied, cast(list[bytes | None], raw)), strict=True))

    def raise_applied(self, kind: Kind, source: str, partition: int, to: Applied) -> Applied | None:
        """Raises the marker to `to` unless it is there already; returns what it was before."""
        value = orjson.dumps({**asdict(to), "offset": str(to.offset)})
        args: list[Any] = [applied_field(kind, source, partition), value, str(to.offset), to.index]
        return decode_applied(cast(bytes | None, self._raise(keys=[self._key], args=args)))

    def ready(self, view: FeatureView) -> Ready | None:
        """Whether this layout of the view is complete."""
        return decode_ready(cast(bytes | None, self._store.hget(self._key, ready_field(view))))

    def begin_build(self, view: FeatureView) -> int:
        """The build of this layout, begun now unless it was before. A store that lost its markers begins a new one."""
        seconds, micros = cast(tuple[int, int], self._store.time())
        self._store.hsetnx(self._key, build_field(view), str(seconds * 1_000_000 + micros))
        return int(cast(bytes, self._store.hget(self._key, build_field(view))))

    def set_ready(self, view: FeatureView, ready: Ready) -> None:
        """States that the layout is complete; a statement once made stands."""
        self._store.hsetnx(self._key, ready_field(view), orjson.dumps(asdict(ready)).decode())

    def set_first_event(self, view: FeatureView, event_time_us: int) -> None:
        """Where a layout that was ready before its log's first event is complete from."""
        ready = self.ready(view)
        if ready is not None and ready.complete_from_us is None:
            begun = Ready(event_time_us, ready.applied)
            self._store.hset(self._key, ready_field(view), orjson.dumps(asdict(begun)).decode())
