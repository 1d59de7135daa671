"""Batches of events into the values of one view: the merges that `OnlineStore.update` is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog, FeatureView
from headrace.stores.codec.header import ROWS, TILES, Header, pack_header, unpack_header
from headrace.stores.codec.rows import BATCH, ORDER, decode_order, encode_rows, row_layout
from headrace.stores.codec.tiles import TileLayout, Tiles, decode_tiles, encode_tiles, tile_layout
from headrace.stores.keys import entity_prefix, group_keys, layout_field
from headrace.stores.online import OnlineStore
from headrace.windows.entries import Places, lift_entries, merge_entries
from headrace.windows.suffix_tiles import drop_old, merge_rows, partial_rows

__all__ = ["SPARE_MS", "Arrived", "expiry_ms", "write_rows", "write_windows"]

Ints = NDArray[np.int64]
SPARE_MS = 86_400_000
"""How much longer than what counts in it a key lives."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """Events of one partition for one view, in position order, all arrays of n.

    `columns` holds the source's columns; `stream` is 0 for the view's source, 1 for its direct writes; `part` numbers
    the rows that a transform made of one event, all 0 without one.
    """

    columns: Mapping[str, pa.Array]
    event_time_us: Ints
    offset: Ints
    index: Ints
    partition: int = 0
    stream: int = 0
    part: Ints | None = None

    @property
    def place(self) -> Ints:
        """The order of events of one entry: index x 2^16 + part."""
        return (self.index << 16) + (0 if self.part is None else self.part)

    def take(self, chosen: Ints) -> Arrived:
        """The events by number."""
        columns = {name: column.take(pa.array(chosen)) for name, column in self.columns.items()}
        return replace(
            self,
            columns=columns,
            event_time_us=self.event_time_us[chosen],
            offset=self.offset[chosen],
            index=self.index[chosen],
            part=None if self.part is None else self.part[chosen],
        )


def expiry_ms(catalog: Catalog, view: FeatureView) -> int:
    """How long a key of the view's entities lives after a write: one constant for all of its views, 0 for ever."""
    lengths: list[int | None] = []
    for other in catalog.views:
        if sorted(other.entities) == sorted(view.entities):
            windows = [agg.window_us and agg.window_us + agg.hop_us for agg in other.aggregations]
            lengths += windows if other.kind == "windowed" else [other.ttl_us]
    if catalog.clock == "event" or not all(lengths):
        return 0
    skew_us = max((source.max_future_us for source in catalog.sources), default=0)
    return (max(length or 0 for length in lengths) + skew_us) // 1_000 + SPARE_MS


def write_windows(store: OnlineStore, catalog: Catalog, view: FeatureView, events: Arrived, build: int = 0) -> int:
    """Merges events (none of them a repeat) into a windowed view; returns how many had a null join key."""
    codes, keys = group_keys(entity_prefix(catalog.project, view.entities), _key_columns(catalog, view, events))
    layout, place = tile_layout(view), (events.stream, events.partition)

    def merge(numbers: list[int], held: list[bytes | None]) -> list[bytes | None]:
        headers = [Header(TILES, build=build) if blob is None else unpack_header(blob, TILES) for blob in held]
        local = np.full(len(keys), -1, np.int64)
        local[numbers] = np.arange(len(numbers))
        after = np.array([header.after(place) for header in headers], np.int64).reshape(-1, 2)
        mine = np.where(codes >= 0, local[codes], -1)
        chosen = np.flatnonzero(mine >= 0)
        late = (events.offset[chosen] > after[mine[chosen], 0]) | (
            (events.offset[chosen] == after[mine[chosen], 0]) & (events.index[chosen] > after[mine[chosen], 1])
        )
        chosen = chosen[late]
        return _merged_tiles(layout, headers, held, mine[chosen], events.take(chosen))

    store.update(keys, layout_field(view), merge, expiry_ms(catalog, view), build)
    return int((codes < 0).sum())


def _key_columns(catalog: Catalog, view: FeatureView, events: Arrived) -> list[pa.Array]:
    return [events.columns[column.name] for column in catalog.sorted_join_keys(view)]


def _merged_tiles(
    layout: TileLayout, headers: list[Header], held: list[bytes | None], keys: Ints, events: Arrived
) -> list[bytes | None]:
    touched = np.zeros(len(headers), np.bool_)
    touched[keys] = True
    newest = np.array([header.newest_us for header in headers], np.int64)
    np.maximum.at(newest, keys, events.event_time_us)
    old, rows = decode_tiles(layout, held), []
    for group, before in zip(layout.groups, old.rows, strict=True):
        merged = merge_rows(before, partial_rows(group, keys, events.event_time_us, events.columns))
        rows.append(drop_old(group, merged, newest[merged.keys]))
    places = Places(np.full(len(keys), events.partition), events.offset, events.place)
    entries = []
    for held_list, known in zip(layout.lists, old.entries, strict=True):
        delta = lift_entries(held_list, keys, events.event_time_us, events.columns, places)
        entries.append(merge_entries(held_list, known, delta, newest))
    raised = _raised(headers, newest, keys, events)
    blobs = encode_tiles(layout, [pack_header(header) for header in raised], Tiles(rows, entries))
    return [blob if there else None for blob, there in zip(blobs, touched, strict=True)]


def _raised(headers: list[Header], newest: Ints, keys: Ints, events: Arrived) -> list[Header]:
    final = np.full(len(headers), -1, np.int64)
    final[keys] = np.arange(len(keys))
    place = (events.stream, events.partition)
    return [
        header if at < 0 else header.raised(int(newest[k]), place, (int(events.offset[at]), int(events.index[at])))
        for k, (header, at) in enumerate(zip(headers, final.tolist(), strict=True))
    ]


def write_rows(
    store: OnlineStore, catalog: Catalog, view: FeatureView, events: Arrived, rank: int = BATCH, build: int = 0
) -> int:
    """Writes rows into a plain or batch view, the newest winning; returns how many had a null join key.

    `columns` of `events` holds the join keys and the features. Rows of rank BATCH have no position: their offset
    is 0, their order among equals their index.
    """
    codes, keys = group_keys(entity_prefix(catalog.project, view.entities), _key_columns(catalog, view, events))
    given = np.flatnonzero(codes >= 0)
    given = given[np.lexsort((given, events.event_time_us[given], codes[given]))]
    winners = given[np.r_[codes[given][1:] != codes[given][:-1], True]] if len(given) else given
    order = _order(events, winners, rank)
    layout = row_layout(view)
    table = pa.table({f.name: events.columns[f.name].take(pa.array(winners)) for f in view.features})
    place = None if rank == BATCH else (events.stream, events.partition)

    def merge(numbers: list[int], held: list[bytes | None]) -> list[bytes | None]:
        newer = np.flatnonzero(_wins(order[numbers], decode_order(layout, held)))
        chosen = [numbers[i] for i in newer.tolist()]
        headers = []
        for i, k in zip(newer.tolist(), chosen, strict=True):
            blob = held[i]
            header = Header(ROWS, build=build) if blob is None else unpack_header(blob, ROWS)
            position = (int(order["offset"][k]), int(order["index"][k]))
            headers.append(pack_header(header.raised(int(order["time_us"][k]), place, position)))
        blobs = encode_rows(layout, headers, order[chosen], table.take(pa.array(chosen, pa.int64())))
        out: list[bytes | None] = [None] * len(numbers)
        for i, blob in zip(newer.tolist(), blobs, strict=True):
            out[i] = blob
        return out

    store.update(keys, layout_field(view), merge, expiry_ms(catalog, view), build)
    return int((codes < 0).sum())


def _order(events: Arrived, winners: Ints, rank: int) -> NDArray[Any]:
    order = np.zeros(len(winners), ORDER)
    order["time_us"], order["rank"], order["partition"] = events.event_time_us[winners], rank, events.partition
    order["offset"], order["index"] = events.offset[winners], events.index[winners]
    return order


def _wins(new: NDArray[Any], held: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of `new` come after `held` in the order of rows."""
    wins: NDArray[np.bool_] = np.zeros(len(new), np.bool_)
    for name in ("index", "offset", "partition", "rank", "time_us"):
        wins = np.where(new[name] == held[name], wins, new[name] > held[name])
    return wins
