"""The work of the stream benchmark: its definitions, and events with Zipf keys as JSON lines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace.catalog.definitions import Aggregation, Catalog, Column, Entity, FeatureView, Source
from headrace.dtypes import DType
from headrace.stores.stream import EventStream
from headrace.windows.window import default_hop_us

__all__ = ["CHUNK", "PROJECT", "SOURCE", "WINDOWS_US", "Events", "catalog", "windowed_view"]

PROJECT = "bench"
SOURCE = "payments"
KEYS = 50_000
EXPONENT = 1.0
CHUNK = 1_000
MINUTE_US = 60_000_000
WINDOWS_US = (10 * MINUTE_US, 60 * MINUTE_US, 24 * 60 * MINUTE_US)
FUNCTIONS = ("count", "sum", "mean", "max")


def windowed_view(name: str, entity: str, windows_us: tuple[int, ...] = WINDOWS_US, tiles: int = 0) -> FeatureView:
    """count, sum, mean and max over each window, which is cut into `tiles` hops; 0 takes its own hop."""
    aggregations = tuple(
        Aggregation(
            feature=f"{function}_{window_us // 1_000_000}s",
            function=function,
            column="*" if function == "count" else "amount",
            window_us=window_us,
            hop_us=window_us // tiles if tiles else default_hop_us(window_us),
            input_dtype=DType.INT64 if function == "count" else DType.FLOAT64,
            dtype=DType.INT64 if function == "count" else DType.FLOAT64,
        )
        for window_us in windows_us
        for function in FUNCTIONS
    )
    features = tuple(Column(agg.feature, agg.dtype) for agg in aggregations)
    return FeatureView(name, "windowed", (entity,), features, f"{name}-1", source=SOURCE, aggregations=aggregations)


def catalog() -> Catalog:
    """Two views of 3 windows x (count, sum, mean, max), one by card, one by shop, over one source with ids."""
    columns = (
        Column("id", DType.STRING),
        Column("card", DType.STRING),
        Column("shop", DType.STRING),
        Column("amount", DType.FLOAT64),
        Column("ts", DType.TIMESTAMP),
    )
    return Catalog(
        project=PROJECT,
        version=1,
        clock="wall",
        entities=(Entity("card", "card", DType.STRING), Entity("shop", "shop", DType.STRING)),
        sources=(Source(SOURCE, columns, timestamp="ts", event_id="id"),),
        views=(windowed_view("card_spend", "card"), windowed_view("shop_sales", "shop")),
    )


class Events:
    """Events one after another: each has a new id, two Zipf keys of 50,000 and an amount; about 105 bytes of JSON."""

    def __init__(self, seed: int = 7) -> None:
        self._rng = np.random.default_rng(seed)
        weights = 1.0 / np.arange(1, KEYS + 1) ** EXPONENT
        self._upto = np.cumsum(weights) / weights.sum()
        self._names = self._rng.permutation(KEYS)
        self.made = 0

    def keys(self, n: int) -> NDArray[np.int64]:
        """`n` key numbers."""
        ranks = np.minimum(np.searchsorted(self._upto, self._rng.random(n)), KEYS - 1)
        names: NDArray[np.int64] = self._names[ranks]
        return names

    def lines(self, times_us: NDArray[np.int64]) -> bytes:
        """One JSON line per time."""
        n = len(times_us)
        ids = range(self.made, self.made + n)
        self.made += n
        amounts = np.round(self._rng.gamma(2.0, 30.0, n), 2)
        moments = np.datetime_as_string(times_us.astype("datetime64[us]"))
        values = zip(ids, self.keys(n).tolist(), self.keys(n).tolist(), amounts.tolist(), moments.tolist(), strict=True)
        return b"\n".join(_LINE % (i, card, shop, amount, moment.encode()) for i, card, shop, amount, moment in values)

    def feed(self, stream: EventStream, n: int, first_us: int, spacing_us: float) -> int:
        """Appends `n` events in entries of CHUNK, `spacing_us` apart in event time; returns the bytes of JSON."""
        size = 0
        for start in range(0, n, CHUNK):
            count = min(CHUNK, n - start)
            times_us = first_us + ((start + np.arange(count)) * spacing_us).astype(np.int64)
            payload = self.lines(times_us)
            stream.append(SOURCE, "ndjson", payload, count)
            size += len(payload)
        return size


_LINE = b'{"id":"e%09d","card":"c%05d","shop":"s%05d","amount":%.2f,"ts":"%sZ"}'
