"""Batches of events into the values of one view: the merges that `OnlineStore.update` is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog, FeatureView
from headrace.stores.codec.header import ROWS, TILES, Header, Headers, Place, pack_header, unpack_header
from headrace.stores.codec.rows import BATCH, ORDER, decode_order, encode_rows, row_layout
from headrace.stores.codec.tiles import TileLayout, Tiles, columns_of, decode_tiles, encode_tiles, tile_layout
from headrace.stores.keys import entity_prefix, group_keys, layout_field
from headrace.stores.online import RENEW_MS, OnlineStore, Update
from headrace.windows.entries import Places, lift_entries, merge_entries
from headrace.windows.suffix_tiles import drop_old, lift_events, merge_rows, partial_rows

__all__ = ["SPARE_MS", "Arrived", "expiry_ms", "row_update", "window_update", "write_rows"]

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

    def only(self, names: Collection[str]) -> Arrived:
        """The events with these columns alone."""
        return replace(self, columns={name: column for name, column in self.columns.items() if name in names})

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
    for other in catalog.stored_views:
        if sorted(other.entities) == sorted(view.entities):
            windows = [agg.window_us and agg.window_us + agg.hop_us for agg in other.aggregations]
            lengths += windows if other.kind == "windowed" else [other.ttl_us]
    if catalog.clock == "event" or not all(lengths):
        return 0
    skew_us = max((source.max_future_us for source in catalog.sources), default=0)
    return (max(length or 0 for length in lengths) + skew_us) // 1_000 + SPARE_MS + RENEW_MS


def window_update(catalog: Catalog, view: FeatureView, events: Arrived, build: int = 0) -> tuple[Update, int]:
    """What merges events (none of them a repeat) into a windowed view, and how many had a null join key."""
    codes, keys = group_keys(entity_prefix(catalog.project, view.entities), _key_columns(catalog, view, events))
    layout = tile_layout(view)
    needed, runs = events.only(columns_of(layout)), _Runs(codes, len(keys))

    def merge(numbers: Sequence[int], held: list[bytes | None]) -> list[bytes | None]:
        headers = Headers(held, TILES, (events.stream, events.partition), build)
        chosen, mine = runs.of(np.asarray(numbers))
        offset, index = events.offset[chosen], events.index[chosen]
        later = (offset > headers.offset[mine]) | ((offset == headers.offset[mine]) & (index > headers.index[mine]))
        return _merged_tiles(layout, headers, held, mine[later], needed.take(chosen[later]))

    return Update(keys, layout_field(view), merge, expiry_ms(catalog, view), build), int((codes < 0).sum())


class _Runs:
    """Events by key: `codes` holds the number of each event's key among `n_keys`, -1 for none."""

    def __init__(self, codes: Ints, n_keys: int) -> None:
        self._order = np.argsort(codes, kind="stable")
        self._bounds = np.searchsorted(codes[self._order], np.arange(n_keys + 1))

    def of(self, numbers: Ints) -> tuple[Ints, Ints]:
        """The events of these keys, key after key, each key's in order; and which of `numbers` each belongs to."""
        first, counts = self._bounds[numbers], self._bounds[numbers + 1] - self._bounds[numbers]
        mine = np.repeat(np.arange(len(numbers)), counts)
        before = np.cumsum(counts) - counts
        return self._order[np.arange(len(mine)) + (first - before)[mine]], mine


def _key_columns(catalog: Catalog, view: FeatureView, events: Arrived) -> list[pa.Array]:
    return [events.columns[column.name] for column in catalog.sorted_join_keys(view)]


def _merged_tiles(
    layout: TileLayout, headers: Headers, held: list[bytes | None], keys: Ints, events: Arrived
) -> list[bytes | None]:
    """The values with `events` merged in, which are sorted by `keys` and in order within each; None where none is."""
    last = np.full(len(held), -1, np.int64)
    last[keys] = np.arange(len(keys))
    newest = headers.newest_us.copy()
    np.maximum.at(newest, keys, events.event_time_us)
    old, rows = decode_tiles(layout, held), []
    lifted = lift_events(layout.groups, keys, events.event_time_us, events.columns)
    for group, before in zip(layout.groups, old.rows, strict=True):
        merged = merge_rows(before, partial_rows(group, lifted))
        rows.append(drop_old(group, merged, newest[merged.keys]))
    places = Places(np.full(len(keys), events.partition), events.offset, events.place)
    entries = []
    for held_list, known in zip(layout.lists, old.entries, strict=True):
        delta = lift_entries(held_list, keys, events.event_time_us, events.columns, places)
        entries.append(merge_entries(held_list, known, delta, newest))
    raised = headers.raised(newest, np.append(events.offset, 0)[last], np.append(events.index, 0)[last])
    blobs = encode_tiles(layout, raised, Tiles(rows, entries))
    return [blob if at >= 0 else None for blob, at in zip(blobs, last.tolist(), strict=True)]


def write_rows(
    store: OnlineStore, catalog: Catalog, view: FeatureView, events: Arrived, rank: int = BATCH, build: int = 0
) -> int:
    """Writes rows into a plain or batch view, the newest winning; returns how many had a null join key.

    `columns` of `events` holds the join keys and the features. Rows of rank BATCH have no position: their offset
    is 0, their order among equals their index.
    """
    update, skipped = row_update(catalog, view, events, rank, build)
    store.update(update)
    return skipped


def row_update(
    catalog: Catalog, view: FeatureView, events: Arrived, rank: int = BATCH, build: int = 0
) -> tuple[Update, int]:
    """What `write_rows` does to the store, to be done with others, and how many rows had a null join key."""
    codes, keys = group_keys(entity_prefix(catalog.project, view.entities), _key_columns(catalog, view, events))
    given = np.flatnonzero(codes >= 0)
    given = given[np.lexsort((given, events.event_time_us[given], codes[given]))]
    winners = given[np.r_[codes[given][1:] != codes[given][:-1], True]] if len(given) else given
    order = _order(events, winners, rank)
    layout = row_layout(view)
    table = pa.table({f.name: events.columns[f.name].take(pa.array(winners)) for f in view.features})
    place = None if rank == BATCH else (events.stream, events.partition)

    def merge(numbers: Sequence[int], held: list[bytes | None]) -> list[bytes | None]:
        newer = np.flatnonzero(_wins(order[np.asarray(numbers)], decode_order(layout, held)))
        chosen = [numbers[i] for i in newer.tolist()]
        headers = _raised([held[i] for i in newer.tolist()], order[chosen], place, build)
        blobs = encode_rows(layout, headers, order[chosen], table.take(pa.array(chosen, pa.int64())))
        out: list[bytes | None] = [None] * len(numbers)
        for i, blob in zip(newer.tolist(), blobs, strict=True):
            out[i] = blob
        return out

    return Update(keys, layout_field(view), merge, expiry_ms(catalog, view), build), int((codes < 0).sum())


def _raised(held: list[bytes | None], order: NDArray[Any], place: Place | None, build: int) -> list[bytes]:
    """The headers of values that rows of this order take the place of; `place` None is a writer outside every
    stream."""
    if place is None:
        old = [Header(ROWS, build=build) if blob is None else unpack_header(blob, ROWS) for blob in held]
        times_us = order["time_us"].tolist()
        return [pack_header(header.raised(us, None, (0, 0))) for header, us in zip(old, times_us, strict=True)]
    headers = Headers(held, ROWS, place, build)
    offset, index = order["offset"], order["index"].astype(np.int64)
    later = (offset > headers.offset) | ((offset == headers.offset) & (index > headers.index))
    newest_us = np.maximum(headers.newest_us, order["time_us"])
    return headers.raised(newest_us, np.where(later, offset, headers.offset), np.where(later, index, headers.index))


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
