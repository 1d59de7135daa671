"""Random histories for one small catalog, and what the oracle says of them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from naive import UNSEEN, NaiveEvent, agree, magnitude, plain_row, window_value
from strategies import DTYPES, aggregation

from headrace.catalog.definitions import (
    Catalog,
    Column,
    DType,
    Entity,
    FeatureView,
    Service,
    Source,
    ViewReference,
)

SECOND_US = 1_000_000
WORDS = ["", "a", "b:c", "ü{x}", "line\nbreak", "50%,"]

PARTS = Source(
    "parts",
    (
        Column("id", DType.STRING),
        Column("who", DType.STRING),
        Column("site", DType.INT64),
        *(Column(name, dtype) for name, dtype in DTYPES.items()),
        Column("ts", DType.TIMESTAMP),
    ),
    timestamp="ts",
    event_id="id",
)
WINDOWED = tuple(
    aggregation(function, column, window)
    for column, function, window in [
        ("*", "count", 60),
        ("*", "count", None),
        ("real", "sum", 60),
        ("real", "mean", 600),
        ("real", "max", 7),
        ("whole", "sum", 60),
        ("whole", "min", 600),
        ("short", "max", None),
        ("word", "last", 600),
        ("moment", "last", 60),
        ("flag", "last", None),
        ("moment", "max", 60),
        ("word", "count", 60),
        ("real", "var", 60),
        ("short", "std", 600),
        ("word", "first", 60),
        ("word", "last_3", 600),
        ("moment", "first_2", None),
        ("word", "count_distinct", 60),
        ("whole", "count_distinct_2", 600),
        ("word", "approx_count_distinct", None),
        ("real", "approx_p50", 60),
        ("short", "approx_p95", None),
    ]
)
FEATURES = tuple(Column(agg.feature, agg.dtype) for agg in WINDOWED)
BY_WHO = FeatureView("by_who", "windowed", ("who",), FEATURES, "f1", source="parts", aggregations=WINDOWED)
BY_BOTH = FeatureView("by_both", "windowed", ("who", "site"), FEATURES, "f2", source="parts", aggregations=WINDOWED)
NEWEST = FeatureView(
    "newest",
    "plain",
    ("site",),
    tuple(Column(name, dtype) for name, dtype in DTYPES.items()),
    "f3",
    source="parts",
    ttl_us=60 * SECOND_US,
)
EVERYTHING = Service(
    "everything",
    tuple(ViewReference(v.name, v.name, tuple(c.name for c in v.features)) for v in (BY_WHO, BY_BOTH, NEWEST)),
)


def catalog(clock: str = "event", project: str = "test") -> Catalog:
    """Two windowed views (one of a composite key) and a plain view over one source."""
    return Catalog(
        project,
        1,
        clock,  # type: ignore[arg-type]
        (Entity("who", "who", DType.STRING), Entity("site", "site", DType.INT64)),
        (PARTS,),
        (BY_WHO, BY_BOTH, NEWEST),
        (),
        (EVERYTHING,),
    )


def moment(time_us: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat()


def random_rows(rng: random.Random, n: int, start_us: int, ids: int = 10**9) -> list[dict[str, Any]]:
    """Rows as a producer pushes them: mostly near the present, some late, some repeated (`ids` small), some null."""
    rows = []
    for i in range(n):
        late = rng.choice([0, 0, 0, rng.randrange(100 * SECOND_US), rng.randrange(1000 * SECOND_US)])
        time_us = start_us + i * rng.randrange(SECOND_US) - late
        time_us -= time_us % rng.choice([1, 1, SECOND_US, 5 * SECOND_US])
        row = {
            "id": str(rng.randrange(ids)),
            "who": rng.choice([*WORDS, None]),
            "site": rng.choice([-1, 0, 7, None]),
            "whole": rng.choice([rng.randrange(-9, 9), 2**62, -(2**62)]),
            "short": rng.randrange(-(2**31), 2**31),
            "real": rng.choice([rng.uniform(-1, 1), rng.uniform(-1e9, 1e9)]),
            "word": rng.choice(WORDS),
            "flag": rng.choice([True, False]),
            "moment": moment(rng.randrange(2**50)),
            "ts": moment(time_us),
        }
        for name in DTYPES:
            if rng.random() < 0.2:
                row[name] = None
        rows.append(row)
    return rows


def ndjson(rows: Iterable[dict[str, Any]]) -> bytes:
    return b"\n".join(orjson.dumps(row) for row in rows)


def micros(text: str) -> int:
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def naive_event(row: dict[str, Any], position: tuple[int, int, int], arrival_us: int) -> NaiveEvent:
    """The oracle's event; its key is (who, site)."""
    values = {name: row[name] for name in DTYPES}
    values["moment"] = None if row["moment"] is None else micros(row["moment"])
    return NaiveEvent((row["who"], row["site"]), micros(row["ts"]), position, values, row["id"], arrival_us)


def with_key(events: Iterable[NaiveEvent], parts: tuple[int, ...]) -> list[NaiveEvent]:
    """The events by a part of their key, those with a null in it left out."""
    keyed = ((tuple(event.key[i] for i in parts), event) for event in events)
    return [
        NaiveEvent(key, e.time_us, e.position, e.values, e.event_id, e.arrival_us)
        for key, e in keyed
        if None not in key
    ]


def plain_value(value: Any) -> Any:
    """A value as the oracle writes it: timestamps as microseconds."""
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    if isinstance(value, datetime):
        return (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return value


def assert_equals_oracle(view: FeatureView, got: dict[str, Any], events: list[NaiveEvent], key: Any, t_us: int) -> None:
    """One row of one view against the loop over `events` (already by the view's key)."""
    if view.kind == "plain":
        truth = plain_row(events, key, t_us, view.ttl_us)
        expected = dict.fromkeys(DTYPES) if truth in (UNSEEN, None) else truth
        assert got == expected, (view.name, key, t_us)
        return
    for agg in view.aggregations:
        expected = window_value(agg, events, key, t_us)
        scale = magnitude(agg, events, key, t_us)
        assert agree(got[agg.feature], expected, scale), (agg.feature, key, t_us, got[agg.feature], expected)
