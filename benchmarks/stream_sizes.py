"""What windows cost at rest: bytes of the store per entity and view, and the time to decode them for a lookup."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import redis

from benchmarks.stream_events import PROJECT, SOURCE, windowed_view
from headrace.catalog.definitions import Catalog, Column, Entity, FeatureView, Source
from headrace.dtypes import DType
from headrace.read.online.few import FewReader
from headrace.read.online.window_reader import WindowReader
from headrace.stores.codec.header import TILES, unpack_header
from headrace.stores.keys import entity_key, entity_prefix, layout_field
from headrace.stores.online import OnlineStore
from headrace.stores.view_writes import Arrived, window_update

__all__ = ["RowTimes", "bytes_per_entity", "row_times"]

ENTITIES = 50
T_US = 1_700_006_400_000_000
HOUR_US = 3_600_000_000
VIEWS = 10


def _write(store: redis.Redis, project: str, view: FeatureView, tiles: int) -> list[bytes]:
    """One event in each of the newest `tiles` tiles of every window, for every entity; returns the entities' keys."""
    columns = (Column("card", DType.STRING), Column("amount", DType.FLOAT64), Column("ts", DType.TIMESTAMP))
    source = Source(SOURCE, columns, timestamp="ts")
    catalog = Catalog(project, 1, "event", (Entity("card", "card", DType.STRING),), (source,), (view,))
    hops = sorted({agg.hop_us for agg in view.aggregations})
    times = np.unique(np.concatenate([T_US - 1 - np.arange(tiles) * hop for hop in hops]))
    names = [f"c{i}" for i in range(ENTITIES)]
    n = len(times) * ENTITIES
    amounts = np.random.default_rng(3).random(n)
    held = {"card": pa.array(np.repeat(names, len(times))), "amount": pa.array(amounts)}
    events = Arrived(held, np.tile(times, ENTITIES), np.ones(n, np.int64), np.arange(n))
    OnlineStore(store).update(window_update(catalog, view, events)[0])
    return [entity_key(entity_prefix(project, ["card"]), [name]) for name in names]


def bytes_per_entity(store: redis.Redis, tiles: int) -> float:
    """Bytes of a key that holds one view of count, sum, mean and max over one window of `tiles` tiles."""
    view = windowed_view("sizes", "card", (100 * 60_000_000,), tiles=100)
    keys = _write(store, f"{PROJECT}-{tiles}", view, tiles)
    sizes: list[Any] = [store.memory_usage(key) for key in keys]
    return float(np.mean(sizes))


@dataclass(frozen=True, slots=True)
class RowTimes:
    """Microseconds, at best, for one row of 10 views x 3 windows: to decode the values of its features alone, and to
    make the columns of a lookup of them."""

    decode: float
    columns: float


def row_times(store: redis.Redis, tiles: int, repeats: int = 200) -> RowTimes:
    """What a row costs whose values hold `tiles` tiles per window."""
    view = windowed_view("decode", "card", (HOUR_US // 2, HOUR_US, 3 * HOUR_US), tiles=180)
    keys = _write(store, f"{PROJECT}-decode-{tiles}", view, tiles)
    held = OnlineStore(store).read(keys[:1], layout_field(view))
    assert held[0] is not None
    blob, header = held[0], unpack_header(held[0], TILES)
    positions, newest_us = len(header.positions), header.newest_us
    reader, few, last = WindowReader(view), FewReader([view]), len(view.features)
    return RowTimes(
        _best_us(lambda: reader.line(blob, positions, T_US, newest_us), repeats),
        _best_us(lambda: _columns(few, held, [(positions, newest_us)], last), repeats),
    )


def _columns(few: FewReader, held: list[bytes | None], heads: list[tuple[int, int]], n: int) -> list[pa.Array]:
    rows = few.rows(0, [few.lines(held, heads, T_US, {})], {})
    return [rows.array(feature) for feature in range(n)]


def _best_us(read: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(VIEWS):
            read()
        best = min(best, time.perf_counter() - start)
    return best * 1e6
