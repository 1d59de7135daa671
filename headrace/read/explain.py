"""What stands behind one value: the stored bytes of its key, and the archived rows that they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import redis

from headrace.catalog.definitions import Catalog, Column, FeatureView, Source
from headrace.compute.columns import typed_column
from headrace.compute.forgotten import living_rows
from headrace.dtypes import arrow_type
from headrace.errors import DataError, RequestError
from headrace.read.history import History, sources_of, view_values
from headrace.read.joins.view_history import archived_view_events
from headrace.read.online.values import newest_us, step_values
from headrace.stores.batch_files import read_batch_rows
from headrace.stores.codec.header import OLDEST_US, ROWS, TILES, build_of, unpack_header
from headrace.stores.codec.tiles import decode_tiles, tile_layout
from headrace.stores.keys import entity_key, entity_prefix, layout_field
from headrace.stores.markers import IMPORTS, Markers, import_places, places
from headrace.stores.offline import INDEX, OFFSET, PARTITION
from headrace.stores.online import OnlineStore
from headrace.windows.window import tail_us

__all__ = ["FROM", "STATUSES", "Explanation", "explain"]

STATUSES = ("PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE")
FROM = "row.from"
"""The column of `events` that says where a row came from: an event, an import, a direct write or the batch file."""

_MOMENT = pa.timestamp("us", "UTC")
_RANK = "row.rank"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything about one key of one view at `t_us`.

    `online` is what the store holds and shows (`values` None when it cannot speak for t, and `silent` why), `events`
    the archived rows that count, in the order in which later ones win, and `offline` what they come to (None when the
    archive cannot be read, and `unread` why). `differ` names the features that are not equal, None where one side
    does not speak. `behind` says which consumers have not caught up: then a difference may pass by itself.
    """

    view: FeatureView
    key: dict[str, Any]
    t_us: int
    online: dict[str, Any]
    offline: dict[str, Any] | None
    events: pa.Table | None
    differ: list[str] | None
    unread: str | None
    behind: list[str]

    @property
    def agree(self) -> bool | None:
        return None if self.differ is None else not self.differ


def explain(
    store: redis.Redis,
    history: History,
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
    try:
        events, shown, unread = *_offline(history, catalog, view, typed, moment), None
    except DataError as error:
        events, shown, unread = None, None, str(error)
    differ = None if online["values"] is None or shown is None else _differences(online["values"], shown)
    behind = _behind(store, catalog, view)
    return Explanation(view, typed, moment, online, shown, events, differ, unread, behind)


def _typed_key(catalog: Catalog, view: FeatureView, key: Sequence[str]) -> dict[str, Any]:
    columns = catalog.join_keys(view)
    if len(key) != len(columns):
        wanted = ", ".join(column.name for column in columns)
        raise RequestError(
            f"A key has one value per join key of its view, {view.name!r} has {wanted} and got {len(key)} values; "
            "give one of each, in this order."
        )
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
    """The given moment; else the present as a lookup takes it, moved past the newest event that the store holds."""
    if t_us is not None:
        return t_us
    present = now_us
    if catalog.clock == "event":
        sources = [catalog.source(view.source)] if view.source else list(catalog.sources)
        wanted = [(source.name, part) for source in sources for part in (IMPORTS, *range(source.partitions))]
        marks = Markers(store, catalog.project).applied("source", wanted).values()
        present = max((m.watermark_us + 1 for m in marks if m and m.watermark_us is not None), default=0)
    return newest + 1 if _precedes(view, present, newest) else present


def _precedes(view: FeatureView, t_us: int, newest: int) -> bool:
    """Whether the store already holds something that a lookup at `t_us` must not see."""
    return newest >= t_us if view.kind == "windowed" else newest > t_us


def _online(
    catalog: Catalog, store: redis.Redis, view: FeatureView, blob: bytes | None, t_us: int, newest: int
) -> dict[str, Any]:
    ready = Markers(store, catalog.project).ready(view) is not None
    facts: dict[str, Any] = {"layout": layout_field(view), "ready": ready, "bytes": len(blob or b"")}
    facts |= {"values": None, "status": None, "silent": None, "revision": 0, "newest_us": None}
    facts |= {"positions": {}, "tiles": []}
    if view.kind == "windowed" and not ready:
        facts["silent"] = "the view is not ready: its layout is still being built; see that a worker runs"
    elif _precedes(view, t_us, newest):
        facts["silent"] = "t precedes the newest event of the key: the online store keeps no past"
    else:
        shown = step_values(view, [blob], np.array([t_us]))
        facts["values"] = {name: column[0].as_py() for name, column in shown.columns.items()}
        facts["status"] = STATUSES[int(shown.row_statuses[0])]
    if blob is None:
        return facts
    header = unpack_header(blob, TILES if view.kind == "windowed" else ROWS)
    names = {0: view.source or "", 1: f"writes/{view.name}"}
    facts["positions"] = {f"{names[s]}|{part}": f"{offset}-{i}" for (s, part), (offset, i) in header.positions.items()}
    facts |= {"revision": header.revision, "newest_us": None if newest == OLDEST_US else newest}
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
    history: History, catalog: Catalog, view: FeatureView, key: dict[str, Any], t_us: int
) -> tuple[pa.Table, dict[str, Any]]:
    """The archived rows that count for `key` at `t_us`, and what a training row of that moment holds."""
    keys = catalog.sorted_join_keys(view)
    columns = [pa.array([key[column.name]], arrow_type(column.dtype)) for column in keys]
    features = [feature.name for feature in view.features]
    shown = view_values(catalog, view, features, columns, np.array([t_us]), history)
    values = {name: column[0].as_py() for name, column in shown.items()}
    return _rows_that_count(history, catalog, view, key, t_us), {name: values[name] for name in features}


def _rows_that_count(history: History, catalog: Catalog, view: FeatureView, key: dict[str, Any], t_us: int) -> pa.Table:
    shown = _shown_columns(catalog, view)
    since_us, until_us = _oldest_us(view, t_us), t_us - 1 if view.kind == "windowed" else t_us
    parts = []
    if view.batch is not None:
        columns = list(dict.fromkeys([*catalog.join_keys(view), *shown]))
        rows = read_batch_rows(view, columns, history.repo, since_us, until_us)
        rows = living_rows(catalog, view, rows, history.forgotten)
        parts.append(_part(_batch_table(rows.table, rows.event_time_us), shown, key, "batch file", 0))
    for rank, source in enumerate(sources_of(catalog, view), 1):
        wanted = list(dict.fromkeys([*key, *(column.name for column in shown), "event_time", "arrival_time"]))
        table = archived_view_events(
            history.offline, catalog, view, source, wanted, since_us=since_us, until_us=until_us
        )
        parts.append(_part(table, shown, key, _origin(view, source), rank))
    order = [(name, "ascending") for name in ("event_time", _RANK, PARTITION, OFFSET, INDEX)]
    return pa.concat_tables(parts).sort_by(order).drop_columns([_RANK])


def _origin(view: FeatureView, source: Source) -> str:
    return "event" if source.name == view.source else "direct write"


def _shown_columns(catalog: Catalog, view: FeatureView) -> list[Column]:
    """What to show of each row: the features, or the columns that the windows read and the event's id."""
    if view.kind != "windowed":
        return list(view.features)
    source = catalog.source(view.source or "")
    read = {source.event_id, *(agg.column for agg in view.aggregations)}
    own = view.transform.columns if view.transform is not None else source.columns
    return [column for column in own if column.name in read and column.name != source.timestamp]


def _batch_table(rows: pa.Table, times_us: Any) -> pa.Table:
    n = rows.num_rows
    added: dict[str, Any] = {"event_time": pa.array(times_us).cast(_MOMENT), "arrival_time": pa.nulls(n, _MOMENT)}
    added |= {PARTITION: pa.nulls(n, pa.int32()), OFFSET: pa.nulls(n, pa.int64()), INDEX: pa.nulls(n, pa.int32())}
    return pa.table({name: rows[name] for name in rows.column_names} | added)


def _part(table: pa.Table, shown: Sequence[Column], key: dict[str, Any], origin: str, rank: int) -> pa.Table:
    """The rows of `key` with where they came from, their times, their position and the columns to show."""
    for name, value in key.items():
        table = table.filter(pc.equal(table[name], pa.scalar(value, table[name].type)))
    n = table.num_rows
    imported = pc.fill_null(pc.equal(table[PARTITION], IMPORTS), False)
    columns: dict[str, Any] = {FROM: pc.if_else(imported, "import", pa.array([origin] * n, pa.string()))}
    columns |= {name: table[name] for name in ("event_time", "arrival_time", PARTITION, OFFSET, INDEX)}
    columns |= {column.name: table[column.name].cast(arrow_type(column.dtype)) for column in shown}
    return pa.table({**columns, _RANK: pa.array([rank] * n, pa.int8())})


def _oldest_us(view: FeatureView, t_us: int) -> int | None:
    if view.kind != "windowed":
        return t_us - view.ttl_us if view.ttl_us else None
    if any(agg.window_us is None for agg in view.aggregations):
        return None
    return min(int(tail_us(t_us, agg.window_us, agg.hop_us)) for agg in view.aggregations)


def _differences(online: dict[str, Any], offline: dict[str, Any]) -> list[str]:
    return [name for name, value in offline.items() if not _same(online[name], value)]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-9 * max(1.0, abs(other))
    return bool(one == other)


def _behind(store: redis.Redis, catalog: Catalog, view: FeatureView) -> list[str]:
    """The sources of the view of which worker and archiver hold different parts."""
    names = {source.name for source in sources_of(catalog, view)}
    every = [*places(catalog), *import_places(catalog)]
    wanted = [(source.name, part) for source, part in every if source.name in names]
    markers = Markers(store, catalog.project)
    applied, archived = markers.applied("source", wanted), markers.applied("archived", wanted)
    totals = [(place, _total(applied[place]), _total(archived[place])) for place in wanted]
    return [
        f"{'archiver' if done > kept else 'worker'} {abs(done - kept):,} events behind in {place[0]}"
        for place, done, kept in totals
        if done != kept
    ]


def _total(mark: Any) -> int:
    return mark.total if mark else 0
