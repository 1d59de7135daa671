"""A small world with every kind of view, and an archive that is written as the archiver would write it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scenario import BY_WHO, SECOND_US, moment, ndjson

from headrace.catalog.definitions import (
    BatchSource,
    Catalog,
    Column,
    DType,
    Entity,
    FeatureView,
    OnDemandView,
    Service,
    Source,
    ViewReference,
)
from headrace.compute.events import Deduplicator, parse_entries
from headrace.read.history import History
from headrace.stores.offline import OfflineStore, event_rows
from headrace.stores.stream import Entry

MOMENT = pa.timestamp("us", "UTC")


class Archive:
    """Entries straight into an offline store, as the archiver would append them."""

    def __init__(self, folder: Path) -> None:
        self.store = OfflineStore(folder)
        self._state: dict[tuple[str, int], tuple[int, int | None, Deduplicator]] = {}

    def add(self, source: Source, rows: list[dict[str, Any]], partition: int = 0, arrived_us: int | None = None) -> int:
        """One entry, which arrived by the event clock or then; returns its offset."""
        offset, watermark_us, marker = self._state.get((source.name, partition), (0, None, Deduplicator(source)))
        offset += 1
        batch = parse_entries(
            source, partition, [Entry(offset, "ndjson", len(rows), 0, ndjson(rows))], "event", watermark_us
        )
        assert not batch.dead, batch.dead
        marker.mark(batch)
        self._state[source.name, partition] = (offset, batch.watermark_us, marker)
        appended = event_rows(
            batch.table,
            event_time_us=batch.event_time_us,
            arrival_us=batch.arrival_us if arrived_us is None else np.full(len(batch), arrived_us),
            partition=partition,
            offset=batch.offset,
            index=batch.index,
            is_repeat=batch.is_repeat,
        )
        self.store.append_events(source, appended, partition=partition, last_offset=offset)
        return offset


def times(*seconds: float) -> pa.Array:
    return pa.array([int(s * SECOND_US) for s in seconds], pa.int64()).cast(MOMENT)


FEATURES = (Column("score", DType.FLOAT32), Column("word", DType.STRING))
HITS = Source(
    "hits",
    (Column("who", DType.STRING), *FEATURES, Column("ts", DType.TIMESTAMP)),
    timestamp="ts",
)
FILE_COLUMNS = (Column("who", DType.STRING), *FEATURES, Column("seen", DType.TIMESTAMP))
LATEST = FeatureView(
    "latest",
    "plain",
    ("user",),
    FEATURES,
    "f",
    source="hits",
    batch=BatchSource("file", "latest.parquet", "seen", FILE_COLUMNS),
    ttl_us=10 * SECOND_US,
)
COUNTED = dataclasses.replace(
    BY_WHO, name="counted", entities=("user",), source="hits", features=BY_WHO.features[:1],
    aggregations=BY_WHO.aggregations[:1],
)  # fmt: skip
RATIO = OnDemandView(
    "ratio",
    (Column("per_hit", DType.FLOAT64), Column("shout", DType.STRING)),
    (ViewReference("latest", "latest", ("score", "word")), ViewReference("counted", "counted", ("count_*_60",))),
    (Column("bonus", DType.INT64),),
    "pandas",
    "import pandas as pd\ndef ratio(df):\n    out = pd.DataFrame()\n"
    "    out['per_hit'] = (df['score'] + df['bonus']) / df['count_*_60']\n"
    "    out['shout'] = df['word'].str.upper()\n    return out\n",
    "ratio",
    "f",
)
COUNT = ("count_*_60",)
WORLD = Catalog(
    "test",
    1,
    "event",
    (Entity("user", "who", DType.STRING),),
    (HITS,),
    (LATEST, COUNTED),
    (RATIO,),
    (
        Service("all", (
            ViewReference("ratio", "ratio", ("shout", "per_hit")),
            ViewReference("latest", "latest", ("word",)),
        )),
        Service("pair", (
            ViewReference("latest", "payer", ("word", "score"), (("who", "payer"),)),
            ViewReference("latest", "payee", ("word", "score"), (("who", "payee"),)),
            ViewReference("counted", "counted", COUNT),
        )),
        Service("last", (ViewReference("latest", "latest", ("word", "score")),)),
        Service("count", (ViewReference("counted", "counted", COUNT),)),
    ),
)  # fmt: skip


def hit(who: str | None, seconds: float, score: float | None = 1.0, word: str | None = "w") -> dict[str, Any]:
    return {"who": who, "ts": moment(int(seconds * SECOND_US)), "score": score, "word": word}


def file_rows(history: History, *rows: tuple[str | None, float, str]) -> None:
    """The batch file of `latest`: (who, seconds, word), score 9."""
    table = pa.table({
        "who": pa.array([row[0] for row in rows], pa.string()),
        "score": pa.array([9.0 for _ in rows]),
        "word": pa.array([row[2] for row in rows], pa.string()),
        "seen": times(*(row[1] for row in rows)),
    })  # fmt: skip
    pq.write_table(table, history.repo / "latest.parquet")


def labels(*rows: tuple[Any, float], **more: Any) -> pa.Table:
    who, at = pa.array([row[0] for row in rows], pa.string()), times(*(row[1] for row in rows))
    return pa.table({"who": who, "event_timestamp": at, **more})


GOOD = {"who": ["a"], "event_timestamp": times(1)}
