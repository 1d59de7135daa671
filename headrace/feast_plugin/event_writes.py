"""Events for windowed views through Feast's SDK: a push appends them to the source's stream, once.

Feast asks each view of a push source in turn to write, and looks for the view's features in the frame, where events
have the source's columns. So three methods of its FeatureStore are told to hand frames for windowed views of this
plug-in over to us; for every other view and store they do what they did.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import pandas as pd
import pyarrow as pa
from feast import FeatureStore

from headrace.catalog.definitions import Catalog, FeatureView, Source
from headrace.errors import RequestError
from headrace.feast_plugin.shared import Shared
from headrace.stores.payloads import arrow_batches, refuse_topic
from headrace.stores.stream import EventStream

__all__ = ["Deliveries", "append_events", "let_feast_write_events"]

MOST_FRAMES = 1_000
"""How many frames are remembered, to know the same push when another view brings it."""

Online = bool
WRITES: dict[str, Online] = {
    "write_to_online_store": True,
    "write_to_online_store_async": True,
    "write_to_offline_store": False,
}


class Deliveries:
    """Which frames were appended. A push brings a frame once for each view of its source, and once more for the
    offline store: only what a view brings oftener than it was appended is new."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: OrderedDict[bytes, Counter[tuple[str, Online]]] = OrderedDict()

    def is_new(self, frame: bytes, view: str, online: Online) -> bool:
        """Whether the frame must be appended now.

        Raises RequestError for a frame that goes to the offline store alone: one log feeds both.
        """
        with self._lock:
            counts = self._seen.setdefault(frame, Counter())
            self._seen.move_to_end(frame)
            if len(self._seen) > MOST_FRAMES:
                self._seen.popitem(last=False)
            appended = max((count for (_, to_online), count in counts.items() if to_online), default=0)
            if not online and counts[view, False] >= appended:
                raise RequestError(
                    f"The events of view {view!r} reach online and offline store by one log; push them to=online, or "
                    "online_and_offline."
                )
            counts[view, online] += 1
            return online and counts[view, True] > appended


_DELIVERIES: dict[tuple[Any, ...], Deliveries] = {}


def append_events(shared: Shared, catalog: Catalog, view: FeatureView, frame: pd.DataFrame, online: Online) -> int:
    """Append the events of a push to the stream of a windowed view's source; returns how many, 0 if another view of
    the source has brought them already.

    Raises RequestError for a frame without the event time, for values that no column holds and for a Kafka source,
    StreamFullError when the stream's budget is used up.
    """
    source = catalog.source(view.source or "")
    refuse_topic(source)
    body = _arrow_bytes(source, frame)
    place = (shared.settings.data_dir, shared.settings.redis_url, shared.project, source.name)
    deliveries = _DELIVERIES.setdefault(place, Deliveries())
    if not deliveries.is_new(hashlib.sha256(body).digest(), view.name, online):
        return 0
    stream = EventStream(shared.store, shared.project, shared.settings.stream_budget)
    for batch in arrow_batches(source, body):
        stream.append(source.name, batch.format, batch.payload, batch.count, batch.partition, catalog.version)
    return len(frame)


def _arrow_bytes(source: Source, frame: pd.DataFrame) -> bytes:
    """The frame's columns that the source has, as one Arrow stream."""
    names = [column.name for column in source.columns if column.name in frame.columns]
    try:
        table = pa.Table.from_pandas(frame[names], preserve_index=False).replace_schema_metadata()
    except pa.ArrowException as error:
        raise RequestError(f"Events of {source.name!r} must have one type per column: {error}.") from None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def let_feast_write_events() -> None:
    """Teach Feast's FeatureStore, once, to bring us frames of events for windowed views."""
    for name, online in WRITES.items():
        method = getattr(FeatureStore, name)
        if not hasattr(method, "before_headrace"):
            wrapped = _wrapped_async(method, online) if name.endswith("_async") else _wrapped(method, online)
            wrapped.before_headrace = method
            setattr(FeatureStore, name, wrapped)


def _wrapped(method: Callable[..., Any], online: Online) -> Any:
    @functools.wraps(method)
    def write(store: FeatureStore, feature_view_name: str, df: Any = None, *rest: Any, **named: Any) -> Any:
        if not _took(store, feature_view_name, _given(df, rest, named), online):
            return method(store, feature_view_name, df, *rest, **named)
        return None

    return write


def _wrapped_async(method: Callable[..., Any], online: Online) -> Any:
    @functools.wraps(method)
    async def write(store: FeatureStore, feature_view_name: str, df: Any = None, *rest: Any, **named: Any) -> Any:
        if not await asyncio.to_thread(_took, store, feature_view_name, _given(df, rest, named), online):
            return await method(store, feature_view_name, df, *rest, **named)
        return None

    return write


def _given(df: Any, rest: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The rows of a write: Feast takes them as `df` or, next to it, as `inputs`."""
    return df if df is not None else named.get("inputs", rest[0] if rest else None)


def _took(store: FeatureStore, name: str, given: Any, online: Online) -> bool:
    """Append the events if the view is a windowed one of ours; whether it is."""
    from headrace.feast_plugin.online import HeadraceOnlineStore

    ours = getattr(store._get_provider(), "online_store", None)
    if not isinstance(ours, HeadraceOnlineStore):
        return False
    shared = ours.shared(store.config)
    catalog = shared.catalog_of(name)
    if not catalog.has_view(name) or catalog.view(name).kind != "windowed":
        return False
    append_events(shared, catalog, catalog.view(name), pd.DataFrame(given), online)
    return True
