"""What the worker counts, in one hash per project: the server shows it.

A field is a JSON list of kind (`source`, `view`), name, outcome, column and rule; the last two are empty where the
outcome is none of an expectation. Outcomes of a source: events, repeated, late, dead, quarantined, dropped, warned;
of a view: null_key, quarantined, dropped, warned. A batch that a failing store made the worker do twice may be
counted twice or not at all: these are signs of life, not the truth, which is the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import orjson
import redis

from headrace.stores.keys import counters_key

__all__ = ["Counted", "add_counts", "decode_counts", "read_counts", "sources_counts"]

Counted = tuple[str, str, str, str, str]
"""Kind, name, outcome, column, rule."""


def add_counts(store: redis.Redis, project: str, counts: Mapping[Counted, int]) -> None:
    """Add to the counters, in one round trip."""
    given = {counted: n for counted, n in counts.items() if n}
    if given:
        pipe = store.pipeline(transaction=False)
        for counted, n in given.items():
            pipe.hincrby(counters_key(project), orjson.dumps(counted).decode(), n)
        pipe.execute()


def decode_counts(raw: Mapping[bytes, bytes]) -> dict[Counted, int]:
    """The counters of the hash's fields and values."""
    return {cast(Counted, tuple(orjson.loads(field))): int(value) for field, value in raw.items()}


def sources_counts(counts: Mapping[Counted, int]) -> dict[str, dict[str, int]]:
    """By source, how many events had which outcome, whatever the rule."""
    found: dict[str, dict[str, int]] = {}
    for (kind, name, outcome, _, _), n in counts.items():
        if kind == "source":
            held = found.setdefault(name, {})
            held[outcome] = held.get(outcome, 0) + n
    return found


def read_counts(store: redis.Redis, project: str) -> dict[Counted, int]:
    """All counters."""
    return decode_counts(cast(Mapping[bytes, Any], store.hgetall(counters_key(project))))
