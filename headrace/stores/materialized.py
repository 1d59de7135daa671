"""How far a layout's batch file was materialized: where `materialize-incremental` goes on.

A field of the markers' hash per layout (`materialized|LAYOUT`), valid for the layout's build alone: a view that is
built anew, or whose values a store lost, has none, and is materialized whole.
"""

from __future__ import annotations

from typing import cast

import orjson
import redis

from headrace.catalog.definitions import FeatureView
from headrace.errors import StoreLostError
from headrace.moments import EARLIEST_US
from headrace.stores.keys import layout_field, markers_key
from headrace.stores.markers import build_field

__all__ = ["MaterializedMarks", "materialized_field"]

_RAISE = """
local function after(a, b) return #a > #b or (#a == #b and a > b) end
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 'lost' end
local old = redis.call('HGET', KEYS[1], ARGV[3])
if old then
  local held = cjson.decode(old)
  if held.build == ARGV[2] and not after(ARGV[4], held.upto) then return 'held' end
end
redis.call('HSET', KEYS[1], ARGV[3], cjson.encode({build = ARGV[2], upto = ARGV[4]}))
return 'raised'
"""


def materialized_field(view: FeatureView) -> str:
    return f"materialized|{layout_field(view)}"


class MaterializedMarks:
    """The marks of one project. Numbers travel as text, microseconds since the year 1: Lua's are doubles."""

    def __init__(self, store: redis.Redis, project: str) -> None:
        self._store, self._key = store, markers_key(project)
        self._raise = store.register_script(_RAISE)

    def upto_us(self, view: FeatureView, build: int) -> int | None:
        """The event time up to which this build of the layout has its file's rows, None where nobody can tell."""
        raw = cast(bytes | None, self._store.hget(self._key, materialized_field(view)))
        held = {} if raw is None else orjson.loads(raw)
        return int(held["upto"]) + EARLIEST_US if held.get("build") == str(build) else None

    def raise_to(self, view: FeatureView, build: int, upto_us: int) -> None:
        """States that the layout has every row up to that event time; never lowers. Raises StoreLostError where the
        store has lost the layout's build."""
        args = [build_field(view), str(build), materialized_field(view), str(upto_us - EARLIEST_US)]
        if self._raise(keys=[self._key], args=args) == b"lost":
            raise StoreLostError(
                f"The store has lost view {view.name!r} while it was materialized; run it again when it is back."
            )
