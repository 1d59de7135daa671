"""What the crash suite runs on: a catalog of several sources, partitions, keys and aggregates, and its random rows."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from naive import NaiveEvent
from scenario import BY_BOTH, BY_WHO, NEWEST, PARTS, SECOND_US, micros, moment, random_rows
from strategies import DTYPES, aggregation

from headrace.catalog.definitions import Catalog, Column, Entity, FeatureView, Service, Source, ViewReference
from headrace.dtypes import DType

PROJECT = "crash"
SERVICE = "all_of_it"
WHO = [f"w{i}" for i in range(20)] + ["ü{x}", "b:c,%", ""]
FORGETTABLE = WHO[15:20]
"""Keys that may be forgotten; what a watcher sees of the others can only grow."""
SITES = [-1, 0, 7, 9, 10, 11, 2**40]

HORIZON_US = 3_600 * SECOND_US  # under the event clock the first event of a partition may be many minutes late
ORDERS = replace(PARTS, name="orders", partitions=3, dedup_horizon_us=HORIZON_US)
VISITS = replace(
    ORDERS,
    name="visits",
    columns=(Column("id", DType.INT64), *(c for c in PARTS.columns if c.name != "id")),
    partitions=2,
)
CALLS = replace(ORDERS, name="calls", partitions=1)

_AGGREGATIONS = tuple(
    aggregation(function, column, window)
    for column, function, window in [
        ("*", "count", None),
        ("*", "count", 7),
        ("real", "sum", 60),
        ("whole", "sum", 60),
        ("short", "mean", 600),
        ("short", "max", None),
        ("moment", "min", 60),
        ("word", "last", 600),
        ("word", "last_3", None),
        ("flag", "first_2", 60),
        ("real", "var", 60),
        ("short", "count_distinct", 60),
        ("word", "approx_count_distinct", None),
        ("real", "approx_p95", 7),
    ]
)
_FEATURES = tuple(Column(agg.feature, agg.dtype) for agg in _AGGREGATIONS)
TOTAL = _AGGREGATIONS[0].feature


def _windowed(view: FeatureView, name: str, source: Source, entities: tuple[str, ...]) -> FeatureView:
    parts: dict[str, Any] = {"name": name, "source": source.name, "entities": entities, "fingerprint": f"f_{name}"}
    return replace(view, **parts, features=_FEATURES, aggregations=_AGGREGATIONS)


ORDERS_BY_WHO = _windowed(BY_WHO, "orders_by_who", ORDERS, ("who",))
ORDERS_BY_BOTH = _windowed(BY_BOTH, "orders_by_both", ORDERS, ("who", "site"))
VISITS_BY_SITE = _windowed(BY_WHO, "visits_by_site", VISITS, ("site",))
LAST_CALL = replace(NEWEST, name="last_call", source=CALLS.name, entities=("who",), fingerprint="f_last_call")

SOURCES = (ORDERS, VISITS, CALLS)
VIEWS = (ORDERS_BY_WHO, ORDERS_BY_BOTH, VISITS_BY_SITE, LAST_CALL)
WRITES = f"writes/{LAST_CALL.name}"
KEYS = [(who, site) for who in [*WHO, "unseen", None] for site in (*SITES, None)]


def catalog(clock: str, horizon_us: int = HORIZON_US) -> Catalog:
    """Three sources of 3, 2 and 1 partitions; windowed views of one and of two keys, a plain view."""
    sources = tuple(replace(source, dedup_horizon_us=horizon_us) for source in SOURCES)
    references = tuple(ViewReference(v.name, v.name, tuple(c.name for c in v.features)) for v in VIEWS)
    entities = (Entity("who", "who", DType.STRING), Entity("site", "site", DType.INT64))
    services = (Service(SERVICE, references),)
    return Catalog(PROJECT, 1, clock, entities, sources, VIEWS, (), services)  # type: ignore[arg-type]


def key_of(view: FeatureView, key: tuple[Any, Any]) -> tuple[Any, ...]:
    """The part of (who, site) that is the view's key."""
    return tuple(dict(zip(("who", "site"), key, strict=True))[name] for name in view.entities)


def rows_of(rng: random.Random, n: int, now_us: int) -> list[dict[str, Any]]:
    """Rows without an id, out of order, many late, some ahead of the present."""
    rows = random_rows(rng, n, now_us)
    for row in rows:
        row["who"] = rng.choice([*WHO, None])
        row["site"] = rng.choice([*SITES, None])
    return rows


def direct_rows(rng: random.Random, n: int, now_us: int) -> list[dict[str, Any]]:
    """Rows as they are written into the plain view, each with a `word` of its own to know it by."""
    rows = []
    for row in rows_of(rng, n, now_us):
        kept = {name: row[name] for name in ("who", *DTYPES)}
        rows.append({**kept, "word": f"direct {rng.random()}", "event_timestamp": row["ts"], "created": None})
    return rows


def event_of(row: dict[str, Any], position: tuple[int, int, int], arrival_us: int) -> NaiveEvent:
    """The oracle's event of a row as it was sent; its key is (who, site)."""
    values = {name: row[name] for name in DTYPES}
    values["moment"] = None if row["moment"] is None else micros(row["moment"])
    time_us = micros(row.get("ts") or row["event_timestamp"])
    return NaiveEvent((row["who"], row.get("site")), time_us, position, values, row.get("id"), arrival_us)


def text_of(time_us: int) -> str:
    """RFC 3339."""
    return moment(time_us)


def present_us() -> int:
    return int(datetime.now(UTC).timestamp() * SECOND_US)
