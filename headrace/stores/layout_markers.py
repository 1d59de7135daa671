"""Which layouts are complete, and the promise that they stay so: nobody raises a source's marker who leaves one out.

A layout is completed by one script on the markers' hash: it must hold everything that the markers say is applied. The
script notes when (field `layouts`), and every raise of a `source|` marker states the moment that its writer knows. So a
writer that knew nothing of the layout, however long it slept, is refused before the marker passes it. A moment never
comes again, as a count would in a store that lost its markers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import orjson
import redis

from headrace.catalog.definitions import Catalog, FeatureView
from headrace.catalog.layouts import new_views
from headrace.errors import DefinitionError
from headrace.stores.keys import layout_field, markers_key
from headrace.stores.markers import Ready, applied_field, build_field, ready_field
from headrace.stores.materialized import materialized_field

__all__ = ["HeldLayouts", "LayoutMarkers", "NewLayout", "refuse_gap", "store_time_us"]

_COMPLETE = """
local function after(a, b) return #a > #b or (#a == #b and a > b) end
local n = tonumber(ARGV[1])
local fresh = false
for i = 3, 4 * n + 2, 4 do
  if redis.call('HGET', KEYS[1], ARGV[i]) ~= ARGV[i + 1] then return 'lost' end
  fresh = fresh or redis.call('HEXISTS', KEYS[1], ARGV[i + 2]) == 0
end
if not fresh then return 'complete' end
for i = 4 * n + 3, #ARGV, 2 do
  local held = redis.call('HGET', KEYS[1], ARGV[i])
  if held and after(cjson.decode(held).offset, ARGV[i + 1]) then return 'behind' end
end
for i = 3, 4 * n + 2, 4 do redis.call('HSETNX', KEYS[1], ARGV[i + 2], ARGV[i + 3]) end
redis.call('HSET', KEYS[1], 'layouts', ARGV[2])
return 'complete'
"""

Outcome = Literal["complete", "behind", "lost"]


@dataclass(frozen=True, slots=True)
class HeldLayouts:
    """What the markers say at one moment: when a layout was last `completed` (0: never), the layout fields that are
    `ready`, and the build of every layout that has one."""

    completed: int
    ready: frozenset[str]
    builds: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class NewLayout:
    """A layout that may be complete: its build, and what its marker will say."""

    view: FeatureView
    build: int
    ready: Ready


class LayoutMarkers:
    """The layouts of one project."""

    def __init__(self, store: redis.Redis, project: str) -> None:
        self._store = store
        self._key = markers_key(project)
        self._complete = store.register_script(_COMPLETE)

    def held(self) -> HeldLayouts:
        """All layouts, read at once."""
        fields = cast(dict[bytes, bytes], self._store.hgetall(self._key))
        plain = {name.decode(): value for name, value in fields.items()}
        ready = frozenset(name.removeprefix("view|") for name in plain if name.startswith("view|"))
        builds = {name.removeprefix("build|"): int(plain[name]) for name in plain if name.startswith("build|")}
        return HeldLayouts(int(plain.get("layouts", b"0")), ready, builds)

    def complete(self, layouts: Sequence[NewLayout], built: Mapping[tuple[str, int], int]) -> Outcome:
        """States that the layouts hold every event up to the offsets `built`, by (source, partition): all that feed
        them.

        `behind`: a marker is beyond. `lost`: a layout was begun anew since its build, by a store that lost it. Neither
        states anything. What is complete already stays as it is.
        """
        args: list[Any] = [len(layouts), store_time_us(self._store)]
        for new in layouts:
            ready = orjson.dumps(asdict(new.ready)).decode()
            args += [build_field(new.view), str(new.build), ready_field(new.view), ready]
        for place, offset in built.items():
            args += [applied_field("source", *place), str(offset)]
        return cast(Outcome, cast(bytes, self._complete(keys=[self._key], args=args)).decode())

    def forget_ready(self, view: FeatureView) -> None:
        """The layout no longer counts as complete: a reader that still asks for it gets no value, and no zero."""
        self._store.hdel(self._key, ready_field(view))

    def forget_build(self, view: FeatureView) -> None:
        """Nothing of the layout is left."""
        self._store.hdel(self._key, build_field(view), materialized_field(view))

    def is_swept(self, view: FeatureView) -> bool:
        """Whether nothing of the layout is left, or ever was."""
        return layout_field(view) not in self.held().builds


def store_time_us(store: redis.Redis) -> int:
    """The present by the store's clock."""
    seconds, micros = cast(tuple[int, int], store.time())
    return seconds * 1_000_000 + micros


def refuse_gap(previous: Catalog | None, target: Catalog, ready: Collection[str]) -> None:
    """Raises DefinitionError for views that serve and would not until a worker has built them anew; `ready` are the
    layout fields that are complete."""
    serving = {view.name for view in previous.views if layout_field(view) in ready} if previous else set()
    new = [view for view in new_views(previous, target) if layout_field(view) not in ready]
    changed = [view.name for view in new if view.name in serving]
    if changed:
        raise DefinitionError(
            f"A view that serves is not taken away to be built anew, and the values of {', '.join(changed)} would "
            "mean something else; run headrace apply --rebuild, which builds the new ones while the present ones serve."
        )
