"""Batch rows on a cluster: every command has keys of one slot, and how far a view came is known to every shard."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cluster.nodes import Node

from headrace.catalog.definitions import BatchSource, Catalog, Column, DType, Entity, FeatureView
from headrace.settings import Settings
from headrace.stores.catalogs import save_catalog
from headrace.stores.codec.rows import decode_rows, row_layout
from headrace.stores.connection import open_store
from headrace.stores.keys import entity_key, entity_prefix, layout_field
from headrace.stores.online import OnlineStore
from materialize.batch import materialize, materialize_incremental

COLUMNS = (Column("who", DType.INT64), Column("word", DType.STRING))
BATCH = BatchSource("rows", "rows.parquet", "seen", (*COLUMNS, Column("seen", DType.TIMESTAMP)))
VIEW = FeatureView("rows", "batch", ("who",), COLUMNS[1:], "f", batch=BATCH)
N = 3_000


def write(settings: Settings, seconds: np.ndarray, word: str) -> None:
    table = pa.table(
        {"who": np.arange(N), "word": [f"{word} {k}" for k in range(N)], "seen": pa.array(seconds * 10**6)}
    )
    seen = table["seen"].cast(pa.timestamp("us", "UTC"))
    pq.write_table(table.set_column(2, "seen", seen), settings.repo / "rows.parquet")


def test_the_newer_rows_stand_on_every_shard(nodes: list[Node], clustered: Settings) -> None:
    settings = clustered.model_copy(update={"redis_url": f"redis+cluster://127.0.0.1:{nodes[0].port}"})
    settings.repo.mkdir(parents=True)
    catalog = Catalog("spread", 1, "event", (Entity("who", "who", DType.INT64),), views=(VIEW,))
    with open_store(settings) as store:
        save_catalog(store, settings, catalog)
        write(settings, np.arange(N), "first")
        assert materialize(settings, "rows", progress=False).written == N
        assert all(node.client.dbsize() > N // 10 for node in nodes[:3])
        write(settings, np.full(N, N // 2), "second")
        done = materialize(settings, "rows", progress=False)
        assert (done.written, done.kept) == (N // 2 + 1, N // 2 - 1)
        keys = [entity_key(entity_prefix("spread", ["who"]), [k]) for k in range(N)]
        _, (words,) = decode_rows(row_layout(VIEW), OnlineStore(store).read(keys, layout_field(VIEW)))
    assert words.to_pylist() == [f"{'second' if k <= N // 2 else 'first'} {k}" for k in range(N)]
    assert materialize_incremental(settings, "rows", progress=False).start_us == (N - 1) * 10**6
    assert materialize_incremental(settings, "rows", progress=False).keys == 0
