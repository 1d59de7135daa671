"""What a live server answers, and what a training set holds, for the catalog of `scenario`, against the loop."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
from naive import NaiveEvent
from scenario import (
    BY_BOTH,
    BY_WHO,
    NEWEST,
    SECOND_US,
    WORDS,
    assert_equals_oracle,
    micros,
    plain_value,
    with_key,
)
from shop import Live
from strategies import DTYPES

from headrace.catalog.definitions import DType
from headrace.dtypes import arrow_type
from headrace.read.training_set import training_set
from headrace.settings import Settings

PARTS_OF = {BY_WHO.name: (0,), BY_BOTH.name: (0, 1), NEWEST.name: (1,)}
KEYS = [(who, site) for who in [*WORDS, "unseen", None] for site in (-1, 7, 9, None)]


def check_online(live: Live, kept: list[NaiveEvent], rng: random.Random) -> None:
    newest_us = max(event.time_us for event in kept)
    body: dict[str, Any] = {
        "feature_service": "everything",
        "full_feature_names": True,
        "entities": {"who": [who for who, _ in KEYS], "site": [site for _, site in KEYS]},
    }
    if rng.random() < 0.5:
        body["as_of"] = moment_of(newest_us + rng.randrange(1, 800 * SECOND_US))
    reply = live.post("/get-online-features", body, metadata="full", timestamps="rfc3339")
    columns = {
        name: [typed(name, value) for value in result["values"]]
        for name, result in zip(reply["metadata"]["feature_names"], reply["results"], strict=True)
    }
    check_rows(columns, kept, KEYS, [micros(t) for t in reply["metadata"]["t"]])
    check_lane(live, kept, rng, newest_us + rng.randrange(1, 800 * SECOND_US))


def check_lane(live: Live, kept: list[NaiveEvent], rng: random.Random, t_us: int) -> None:
    """Some rows at a time, few and many, by requests that take the fast lane where there is one."""
    left = list(KEYS)
    while left:
        n = rng.choice([1, 1, 2, 5, 16, 17])
        keys, left = left[:n], left[n:]
        body = {
            "feature_service": "everything",
            "full_feature_names": True,
            "entities": {"who": [who for who, _ in keys], "site": [site for _, site in keys]},
            "as_of": moment_of(t_us),
        }
        reply = live.post("/get-online-features", body, timestamps="rfc3339")
        columns = {
            name: [typed(name, value) for value in result["values"]]
            for name, result in zip(reply["metadata"]["feature_names"], reply["results"], strict=True)
        }
        check_rows(columns, kept, keys, [t_us] * len(keys))


def check_rows(
    columns: dict[str, list[Any]], kept: list[NaiveEvent], keys: list[tuple[Any, Any]], t_us: list[int]
) -> None:
    for view in (BY_WHO, BY_BOTH, NEWEST):
        parts = PARTS_OF[view.name]
        events = with_key(kept, parts)
        for row, key in enumerate(keys):
            got = {f.name: columns[f"{view.name}__{f.name}"][row] for f in view.features}
            assert_equals_oracle(view, got, events, tuple(key[i] for i in parts), t_us[row])


def typed(name: str, value: Any) -> Any:
    """A value of a JSON reply as the oracle has it."""
    is_time = "moment" in name and "count" not in name
    if isinstance(value, list):
        return [typed(name, item) for item in value]
    return micros(value) if is_time and value is not None else value


def moment_of(time_us: int) -> str:
    return str(pa.scalar(time_us).cast(arrow_type(DType.TIMESTAMP)).as_py().isoformat())


def random_label(rng: random.Random, kept: list[NaiveEvent], tied: bool) -> tuple[Any, Any, int]:
    near = rng.choice(kept).time_us + (0 if tied else rng.randrange(-100 * SECOND_US, 700 * SECOND_US))
    return *rng.choice(KEYS), near


def check_dataset(settings: Settings, kept: list[NaiveEvent], labels: list[tuple[Any, Any, int]]) -> None:
    table = pa.table(
        {
            "who": pa.array([who for who, _, _ in labels], pa.string()),
            "site": pa.array([site for _, site, _ in labels], pa.int64()),
            "event_timestamp": pa.array([t for _, _, t in labels]).cast(arrow_type(DType.TIMESTAMP)),
        }
    )
    rows = training_set("everything", table, settings=settings, full_feature_names=True).to_arrow()
    columns = {name: [plain_value(value) for value in rows[name].to_pylist()] for name in rows.column_names[3:]}
    assert len(columns) == 2 * len(BY_WHO.features) + len(DTYPES)
    check_rows(columns, kept, [(who, site) for who, site, _ in labels], [t for _, _, t in labels])
