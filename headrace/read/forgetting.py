"""Forgetting as its caller sees it: which keys, the orders to worker and archiver, and the receipt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import orjson
import redis

from headrace.catalog.definitions import Catalog, Column, Entity
from headrace.compute.columns import typed_column
from headrace.errors import RequestError, UnavailableError
from headrace.moments import rfc3339
from headrace.stores.orders import Role, give_order, last_receipt, receipts_after

__all__ = ["forget_keys", "parse_keys"]

LOG_DAYS = 1
"""How long a table's log names the smallest and largest values of files that it no longer has."""
_DAY_US = 86_400_000_000

Keys = list[list[int | str]]


def parse_keys(catalog: Catalog, words: Sequence[str]) -> tuple[list[str], Keys]:
    """`ENTITY KEY [KEY...]`, or `ENTITY=VALUE ENTITY=VALUE` for one key of several entities: the entities' names,
    sorted, and the typed values of every key in their order.

    Raises UnknownNameError for an entity, RequestError for words of neither form and values of another type.
    """
    known = {entity.name for entity in catalog.entities}
    if "=" in words[0] and words[0] not in known:
        pairs = dict(word.partition("=")[::2] for word in words if "=" in word)
        if len(pairs) != len(words):
            raise RequestError(
                f"A key of several entities is written ENTITY=VALUE for each of them once, got {' '.join(words)!r}; "
                "write it like card=c1 shop=7."
            )
        entities = [catalog.entity(name) for name in sorted(pairs)]
        return sorted(pairs), [[_typed(entity, pairs[entity.name]) for entity in entities]]
    entity = catalog.entity(words[0])
    if len(words) == 1:
        raise RequestError(f"forget takes an entity and its keys, got {words[0]!r} alone; add the keys.")
    return [entity.name], [[_typed(entity, text)] for text in dict.fromkeys(words[1:])]


def _typed(entity: Entity, text: str) -> int | str:
    column = Column(entity.join_key, entity.dtype)
    value: Any = int(text) if column.dtype.is_integer and text.lstrip("-").isdecimal() else text
    _, wrong = typed_column([value], column)
    if wrong:
        raise RequestError(f"A key must have its join key's type: {wrong[0]}.")
    return value  # type: ignore[no-any-return]


def forget_keys(
    store: redis.Redis, catalog: Catalog, entities: Sequence[str], keys: Keys, keep_s: float, timeout_s: float = 60.0
) -> dict[str, Any]:
    """Have worker and archiver forget the keys; returns the receipt, which holds no plain value.

    `keep_s` is the stream's (see Settings.stream_keep). Raises UnavailableError when no worker carried it out within
    `timeout_s`; the order stays. An archiver that has not done its part by then leaves `archive` as `waiting`.
    """
    project, deadline_s = catalog.project, time.monotonic() + timeout_s
    after, later = last_receipt(store, project, "worker"), last_receipt(store, project, "archive")
    order = give_order(store, project, "forget", "", {"entities": list(entities), "keys": keys}, "worker")
    online = _answer(store, project, "worker", order, after, deadline_s)
    if online is None:
        raise UnavailableError(
            f"Forgetting needs the worker, and it was not done within {timeout_s:g} s; start one with headrace worker "
            "(or headrace up): it will carry the order out, then the archiver."
        )
    archived = _answer(store, project, "archive", online["archive_order"], later, deadline_s)
    names = {place.rpartition("|")[0] for place in online["places"]}
    return {
        "entities": list(entities),
        "tombstones": online["digests"],
        "forgotten_up_to": rfc3339(online["at_us"]),
        "positions": online["places"],
        "online": {"values_deleted": online["values"]},
        "archive": {"state": "waiting"} if archived is None else {"state": "done", **archived},
        "stream": {name: _raw_until(catalog, name, keep_s) for name in sorted(names)},
        "table_log_until": rfc3339(time.time_ns() // 1_000 + LOG_DAYS * _DAY_US),
        "still_in_until_rebuilt": online["still_in"],
    }


def _raw_until(catalog: Catalog, name: str, keep_s: float) -> str:
    """When the stream lets go of the raw entries."""
    sources = {source.name: source for source in catalog.sources}
    source = sources.get(name)
    if source is not None and source.kafka is not None:
        return f"as long as topic {source.kafka.topic!r} keeps them"
    horizon_us = source.dedup_horizon_us if source is not None else 600_000_000
    keep_us = max(horizon_us, int(keep_s * 1_000_000))
    until = rfc3339(time.time_ns() // 1_000 + keep_us)
    return f"trimmed after {until}; the newest entry once another has come"


def _answer(
    store: redis.Redis, project: str, role: Role, order: str, after: bytes, deadline_s: float
) -> dict[str, Any] | None:
    """What the receipt of a finished order says, None when there is none in time. Raises UnavailableError if it
    failed."""
    while (left_s := deadline_s - time.monotonic()) > 0:
        for place, receipt in receipts_after(store, project, after, left_s, role):
            after = place
            if receipt["id"] != order:
                continue
            if receipt["state"] == "done":
                done: dict[str, Any] = orjson.loads(receipt["detail"])
                return done
            if receipt["state"] == "failed":
                raise UnavailableError(f"The key could not be forgotten: {receipt['detail']}")
    return None
