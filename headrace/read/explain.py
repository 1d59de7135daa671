"""What stands behind one value: the stored bytes of its key, and the archived events that they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import redis

from headrace.catalog.definitions import Catalog, FeatureView, Source
from headrace.compute.columns import typed_column
from headrace.errors import RequestError
from headrace.read.values import newest_us, step_values
from headrace.stores.codec.header import OLDEST_US, ROWS, TILES, build_of, unpack_header
from headrace.stores.codec.tiles import decode_tiles, tile_layout
from headrace.stores.keys import entity_key, entity_prefix, layout_field
from headrace.stores.markers import Markers
from headrace.stores.offline import INDEX, OFFSET, PARTITION, OfflineStore
from headrace.stores.online import OnlineStore
from headrace.windows.point_in_time import aggregate_windows
from headrace.windows.window import tail_us

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything about one key of one view at `t_us`.

    `online` is what the store holds and shows (values None when t precedes its newest event), `events` the
    archived events that count, in event-time order, and `offline` what they come to; `agree` compares both, None
    where one of them cannot speak for t.
    """

    view: str
    key: dict[str, Any]
    t_us: int
    online: dict[str, Any]
    offline: dict[str, Any] | None
    events: pa.Table | None
    agree: bool | None


def explain(
    store: redis.Redis,
    offline: OfflineStore,
    catalog: Catalog,
    view_name: str,
    key: Sequence[str],
    t_us: int | None,
    now_us: int,
) -> Explanation:
    """The explanation of `key` (texts of the join keys, in declared order) at `t_us`, by default the present.

    Raises UnknownNameError, RequestError for a key of the wrong length or type.
    """
    view = catalog.view(view_name)
    typed = _typed_key(catalog, view, key)
    redis_key = entity_key(
        entity_prefix(catalog.project, view.entities),
        [typed[column.name] for column in catalog.sorted_join_keys(view)],
    )
    (blob,) = OnlineStore(store).read([redis_key], layout_field(view))
    if blob is not None and build_of(blob) != Markers(store, catalog.project).begin_build(view):
        blob = None  # left behind by a store that lost its markers
    newest = int(newest_us(view, [blob])[0])
    moment = _moment_us(store, catalog, view, t_us, now_us, newest)
    online = _online(catalog, store, view, blob, moment, newest) | {"redis_key": redis_key.decode()}
    if view.source is None:
        return Explanation(view.name, typed, moment, online, None, None, None)
    events, shown = _offline(offline, catalog, view, typed, moment)
    agree = None if online["values"] is None or shown is None else _same(online["values"], shown)
    return Explanation(view.name, typed, moment, online, shown, events, agree)


def _typed_key(catalog: Catalog, view: FeatureView, key: Sequence[str]) -> dict[str, Any]:
    columns = catalog.join_keys(view)
    if len(key) != len(columns):
        wanted = " ".join(column.name.upper() for column in columns)
        raise RequestError(f"View {view.name!r} has the join keys {wanted}, got {len(key)} values; give one of each.")
    typed = {}
    for column, text in zip(columns, key, strict=True):
        value: Any = int(text) if column.dtype.is_integer and text.lstrip("-").isdigit() else text
        _, wrong = typed_column([value], column)
        if wrong:
            raise RequestError(f"A key must have its join key's type: {wrong[0]}.")
        typed[column.name] = value
    return typed


def _moment_us(
    store: redis.Redis, catalog: Catalog, view: FeatureView, t_us: int | None, now_us: int, newest: int
) -> int:
    if t_us is not None:
        return t_us
    present = now_us
    if catalog.clock == "event" and view.source is not None:
        places = [(view.source, part) for part in range(catalog.source(view.source).partitions)]
        marks = Markers(store, catalog.project).applied("source", places).values()
        present = max((m.watermark_us + 1 for m in marks if m and m.watermark_us is not None), default=0)
    return max(present, newest + 1)


def _online(
    catalog: Catalog, store: redis.Redis, view: FeatureView, blob: bytes | None, t_us: int, newest: int
) -> dict[str, Any]:
    ready = Markers(store, catalog.project).ready(view)
    facts: dict[str, Any] = {"layout": layout_field(view), "ready": ready is not None, "bytes": len(blob or b"")}
    precedes = newest >= t_us if view.kind == "windowed" else newest > t_us
    values = None if precedes else step_values(view, [blob], np.array([t_us]))
    facts["values"] = None if values is None else {f: column[0].as_py() for f, column in values.columns.items()}
    if blob is None:
        return facts | {"revision": 0, "newest_us": None, "positions": {}, "tiles": []}
    header = unpack_header(blob, TILES if view.kind == "windowed" else ROWS)
    names = {0: view.source or "", 1: f"writes/{view.name}"}
    positions = {f"{names[s]}|{part}": f"{offset}-{i}" for (s, part), (offset, i) in header.positions.items()}
    facts |= {"revision": header.revision, "newest_us": None if newest == OLDEST_US else newest, "positions": positions}
    return facts | {"tiles": _tiles(view, blob) if view.kind == "windowed" else []}


def _tiles(view: FeatureView, blob: bytes) -> list[dict[str, Any]]:
    """Every suffix row of the value: its hop, where its tile starts, and its state."""
    layout = tile_layout(view)
    found = []
    for group, rows in zip(layout.groups, decode_tiles(layout, [blob]).rows, strict=True):
        for i in range(len(rows)):
            state = {f"{field.kind}({field.column})": rows.state[field][i].item() for field in group.fields}
            found.append({"hop_us": group.hop_us, "tile_start_us": int(rows.tiles[i]) * group.hop_us, "state": state})
    return found


def _offline(
    offline: OfflineStore, catalog: Catalog, view: FeatureView, key: dict[str, Any], t_us: int
) -> tuple[pa.Table, dict[str, Any] | None]:
    source = catalog.source(view.source or "")
    rows = _events_of(offline, source, key, _oldest_us(view, t_us), t_us, include_t=view.kind != "windowed")
    if view.kind != "windowed":
        return rows, None
    columns = {column.name: rows[column.name].combine_chunks() for column in source.columns}
    times = np.asarray(rows["event_time"].cast(pa.int64()))
    zero = np.zeros(1, np.int64)
    in_order = np.lexsort([np.asarray(rows[name]) for name in (INDEX, OFFSET, PARTITION)])
    columns = {name: column.take(pa.array(in_order)) for name, column in columns.items()}
    keys = np.zeros(len(times), np.int64)
    shown = aggregate_windows(keys, times[in_order], columns, zero, np.array([t_us]), view.aggregations)
    return rows, {name: column[0].as_py() for name, column in shown.items()}


def _oldest_us(view: FeatureView, t_us: int) -> int | None:
    if view.kind != "windowed":
        return t_us - view.ttl_us if view.ttl_us else None
    if any(agg.window_us is None for agg in view.aggregations):
        return None
    return min(int(tail_us(t_us, agg.window_us, agg.hop_us)) for agg in view.aggregations)


def _events_of(
    offline: OfflineStore, source: Source, key: dict[str, Any], since_us: int | None, t_us: int, include_t: bool
) -> pa.Table:
    columns = list(dict.fromkeys([*(column.name for column in source.columns), "event_time", "arrival_time"]))
    rows = offline.read_events(source, columns, since_us=since_us, until_us=t_us if include_t else t_us - 1)
    for name, value in key.items():
        rows = rows.filter(pc.equal(rows[name], pa.scalar(value, rows[name].type)))
    return rows.sort_by(
        [("event_time", "ascending"), (PARTITION, "ascending"), (OFFSET, "ascending"), (INDEX, "ascending")]
    )


def _same(online: dict[str, Any], offline: dict[str, Any]) -> bool:
    return all(
        abs(online[name] - value) <= 1e-9 * max(1.0, abs(value))
        if isinstance(value, float) and isinstance(online[name], float)
        else online[name] == value
        for name, value in offline.items()
    )
