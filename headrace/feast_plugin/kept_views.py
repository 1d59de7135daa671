"""Views that the catalog cannot hold, kept for Feast's SDK alone: a row is one text, the message of its values.

They lie in the hash of their entity like any other view, as a plain view of one string (`VIEW@feast.1`), so that the
newest event time wins by the same compare-and-set. As in Feast's own stores, what is past its ttl is still read.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import redis
from feast.protos.feast.types.Value_pb2 import Map
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog, Column, DType, Entity, FeatureView
from headrace.catalog.feast_types import duration_us
from headrace.feast_plugin.row_writes import Row, by_creation
from headrace.feast_plugin.shared import Shared
from headrace.feast_plugin.values import datetimes_of, micros_of
from headrace.stores.codec.rows import decode_rows, row_layout
from headrace.stores.keys import entity_key, entity_prefix, escape, layout_field
from headrace.stores.view_writes import Arrived, write_rows

__all__ = ["delete_kept", "read_kept", "write_kept"]

Answer = tuple[Any, dict[str, Any] | None]
_VALUES = Column("values", DType.STRING)
_SCANNED = 1_000


def write_kept(shared: Shared, table: Any, rows: Sequence[Row]) -> None:
    """Write rows of a view that is kept as Feast's values."""
    rows = by_creation(rows)
    names = sorted(rows[0][0].join_keys) if rows else []
    catalog, view = _place(shared.project, table, names)
    keys = np.array([_texts(row[0], names) for row in rows], object).reshape(len(rows), len(names))
    columns = {name: pa.array(keys[:, i], pa.string()) for i, name in enumerate(names)}
    columns[_VALUES.name] = pa.array([_encoded(row[1]) for row in rows], pa.string())
    run = time.time_ns() // 1_000
    times_us = micros_of([row[2] for row in rows])
    arrived = Arrived(columns, times_us, np.full(len(rows), run), np.arange(len(rows)))
    with shared.writing:
        write_rows(shared.online, catalog, view, arrived)


def read_kept(shared: Shared, table: Any, keys: Sequence[Any], wanted: Sequence[str] | None) -> list[Answer]:
    """Event time and values of every entity key, (None, None) where there is no row."""
    view, hashes = _hashes(shared.project, table, keys)
    pipe = shared.store.pipeline(transaction=False)
    for key in hashes:
        pipe.hget(cast(str, key), layout_field(view))
    return _decoded(view, pipe.execute(), wanted)


def delete_kept(shared: Shared, tables: Sequence[Any]) -> None:
    """Delete every row of views that were kept as Feast's values; walks all keys of the project."""
    fields = [layout_field(_place(shared.project, table, [])[1]) for table in tables]
    if not fields:
        return
    store: redis.Redis = shared.store
    pipe = store.pipeline(transaction=False)
    pattern = f"headrace:{_literal(escape(shared.project))}:*"
    for count, key in enumerate(store.scan_iter(match=pattern, count=_SCANNED), 1):
        pipe.hdel(key, *fields)
        if count % _SCANNED == 0:
            pipe.execute()
    pipe.execute()


def _literal(text: str) -> str:
    """`text` as a glob that matches nothing else."""
    return "".join(f"\\{c}" if c in "*?[]\\" else c for c in text)


def _place(project: str, table: Any, join_keys: Sequence[str]) -> tuple[Catalog, FeatureView]:
    """The one-column view that holds the rows, in a catalog of its own. A single join key goes by its entity's name,
    so that all views of the entity share a hash; several go by their own names."""
    entities = list(getattr(table, "entities", None) or [])
    names = entities if len(join_keys) == len(entities) == 1 else join_keys
    ttl = getattr(table, "ttl", None)
    view = FeatureView(
        table.name, "plain", tuple(names), (_VALUES,), "feast", ttl_us=duration_us(ttl) if ttl else 0, generation=1
    )
    keyed = tuple(Entity(name, key, DType.STRING) for name, key in zip(names, join_keys, strict=True))
    return Catalog(project, 0, "wall", keyed, views=(view,)), view


def _hashes(project: str, table: Any, keys: Sequence[Any]) -> tuple[FeatureView, list[bytes]]:
    names = sorted(keys[0].join_keys) if keys else []
    _, view = _place(project, table, names)
    prefix = entity_prefix(project, view.entities)
    return view, [entity_key(prefix, _texts(key, names)) for key in keys]


def _texts(key: Any, names: Sequence[str]) -> list[str]:
    """The values of an entity key as text, in the order of `names`."""
    held = dict(zip(key.join_keys, key.entity_values, strict=True))
    return [_text(held[name]) for name in names]


def _text(message: Any) -> str:
    kind = message.WhichOneof("val")
    value = getattr(message, kind) if kind is not None else ""
    return str(value) if isinstance(value, str | int) else base64.b64encode(message.SerializeToString()).decode()


def _encoded(values: dict[str, Any]) -> str:
    return base64.b64encode(Map(val=values).SerializeToString()).decode()


def _decoded(view: FeatureView, held: Sequence[bytes | None], wanted: Sequence[str] | None) -> list[Answer]:
    times_us: NDArray[np.int64]
    times_us, columns = decode_rows(row_layout(view), held)
    answers: list[Answer] = []
    for blob, time_at, text in zip(held, datetimes_of(times_us), columns[0].to_pylist(), strict=True):
        if blob is None:
            answers.append((None, None))
            continue
        values = Map.FromString(base64.b64decode(text)).val
        names = list(values) if wanted is None else [name for name in wanted if name in values]
        answers.append((time_at, {name: values[name] for name in names}))
    return answers
