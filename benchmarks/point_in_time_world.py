"""What the point-in-time benchmark joins: an archive of payments with Zipf keys, a file of rows, and labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from headrace.catalog.definitions import Aggregation, BatchSource, Catalog, Column, Entity, FeatureView, Service, Source
from headrace.catalog.definitions import ViewReference as Reference
from headrace.dtypes import DType
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.connection import open_store
from headrace.stores.offline import OfflineStore, event_rows
from headrace.windows.window import default_hop_us

__all__ = [
    "DAY_US",
    "FEATURES",
    "FUNCTIONS",
    "PROJECT",
    "TTL_DAYS",
    "WINDOWS_DAYS",
    "World",
    "settings_of",
    "write_few",
]

PROJECT = "bench"
CARDS = 50_000
EXPONENT = 1.0
SHOPS = 10_000
FEATURES = 10
TTL_DAYS = 7
DAYS = 30
DAY_US = 86_400_000_000
START_US = 19_700 * DAY_US
WINDOWS_DAYS = (1, 7, 30)
FUNCTIONS = ("count", "sum", "max")
APPEND_ROWS = 1_000_000
MOMENT = pa.timestamp("us", "UTC")

PAYMENTS = Source(
    "payments",
    (Column("card", DType.INT64), Column("amount", DType.FLOAT64), Column("ts", DType.TIMESTAMP)),
    timestamp="ts",
)


def settings_of(folder: Path) -> Settings:
    """The settings of a project in `folder`, with a store of its own."""
    return Settings(repo=folder / "repo", data_dir=folder / "data", redis_url=None)


@dataclass(frozen=True, slots=True)
class World:
    """A project in `folder` with the services `windows` (over the archive) and `rows` (over a file)."""

    folder: Path

    def begin(self) -> None:
        """Writes the definitions."""
        settings = settings_of(self.folder)
        settings.repo.mkdir(parents=True)
        (settings.repo / "feature_store.yaml").write_text(f"project: {PROJECT}\nprovider: local\n")
        with open_store(settings) as store:
            save_catalog(store, settings, _catalog(self.rows_path))

    @property
    def rows_path(self) -> Path:
        return self.folder / "rows.parquet"

    def write_events(self, events: int) -> list[Path]:
        """Archives so many events of 30 days; returns the files."""
        rng, offline = np.random.default_rng(events), OfflineStore(settings_of(self.folder).data_dir)
        parts = -(-events // APPEND_ROWS)
        for part in range(parts):
            n = min(APPEND_ROWS, events - part * APPEND_ROWS)
            times = START_US + ((np.sort(rng.random(n)) + part) / parts * DAYS * DAY_US).astype(np.int64)
            amounts = np.round(rng.gamma(2.0, 30.0, n), 2)
            table = pa.table({"card": _zipf(rng, n), "amount": amounts, "ts": pa.array(times).cast(MOMENT)})
            rows = event_rows(
                table,
                event_time_us=times,
                arrival_us=times,
                partition=0,
                offset=np.full(n, part + 1),
                index=np.arange(n),
                is_repeat=np.zeros(n, np.bool_),
            )
            offline.append_events(PAYMENTS, rows, partition=0, last_offset=part + 1)
        return sorted(offline.events_path(PAYMENTS.name).rglob("*.parquet"))

    def write_rows(self, rows: int) -> None:
        """Writes a file of so many rows with ten features, of shops that all come as often."""
        rng = np.random.default_rng(rows)
        times = START_US + (np.sort(rng.random(rows)) * DAYS * DAY_US).astype(np.int64)
        features = {f"f{i}": rng.random(rows) for i in range(FEATURES)}
        moments = pa.array(times).cast(MOMENT)
        keys = rng.integers(0, SHOPS, rows)
        pq.write_table(pa.table({"shop": keys, "event_timestamp": moments, **features}), self.rows_path)

    def write_labels(self, labels: int) -> Path:
        """Writes so many labels, their keys and times as those of events and rows; returns the file."""
        rng, path = np.random.default_rng(-labels & 0xFFFF), self.folder / f"labels_{labels}.parquet"
        times = START_US + (rng.random(labels) * DAYS * DAY_US).astype(np.int64)
        columns = {"n": np.arange(labels), "card": _zipf(rng, labels), "shop": rng.integers(0, SHOPS, labels)}
        pq.write_table(pa.table({**columns, "event_timestamp": pa.array(times).cast(MOMENT)}), path)
        return path


def write_few(labels: Path, beside: Path) -> Path:
    """A file of the first hundred labels, beside another."""
    few = beside.with_name(f"few_{labels.name}")
    pq.write_table(pq.read_table(labels).slice(0, 100), few)
    return few


def _zipf(rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    share = np.cumsum(1 / np.arange(1, CARDS + 1) ** EXPONENT)
    found: NDArray[np.int64] = np.searchsorted(share, rng.random(n) * share[-1])
    return found


def _catalog(rows_path: Path) -> Catalog:
    aggregations = tuple(
        Aggregation(
            feature=f"{function}_{days}d",
            function=function,
            column="*" if function == "count" else "amount",
            window_us=days * DAY_US,
            hop_us=default_hop_us(days * DAY_US),
            input_dtype=DType.INT64 if function == "count" else DType.FLOAT64,
            dtype=DType.INT64 if function == "count" else DType.FLOAT64,
        )
        for days in WINDOWS_DAYS
        for function in FUNCTIONS
    )
    spend = FeatureView(
        "spend",
        "windowed",
        ("card",),
        tuple(Column(agg.feature, agg.dtype) for agg in aggregations),
        "spend-1",
        source=PAYMENTS.name,
        aggregations=aggregations,
    )
    features = tuple(Column(f"f{i}", DType.FLOAT64) for i in range(FEATURES))
    batch = BatchSource("rows", str(rows_path), "event_timestamp", (Column("shop", DType.INT64), *features))
    stats = FeatureView("stats", "batch", ("shop",), features, "stats-1", batch=batch, ttl_us=TTL_DAYS * DAY_US)
    services = [("windows", spend), ("rows", stats)]
    return Catalog(
        PROJECT,
        1,
        "wall",
        (Entity("card", "card", DType.INT64), Entity("shop", "shop", DType.INT64)),
        (PAYMENTS,),
        (spend, stats),
        services=tuple(
            Service(name, (Reference(view.name, view.name, tuple(item.name for item in view.features)),))
            for name, view in services
        ),
    )
