"""Dead letters: what the archive holds of them and what is on its way there, listed, and replayed once.

A replay appends events to the stream and their marks to the stream of letters in one transaction, so that a letter is
marked exactly when its event is there again (on a cluster see replay_once.py). The marks end in the archive, beside the
letters.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import redis

from headrace.catalog.definitions import Catalog, Source
from headrace.compute.events import parse_entries
from headrace.compute.forgotten import gone_letters
from headrace.errors import UnavailableError
from headrace.read.replay_once import LEASE_S, PLACE, ReplayOnce
from headrace.stores.cluster import is_cluster
from headrace.stores.keys import forgotten_key, layout_field, lease_key, replay_role
from headrace.stores.letters import letter_entry, pending_letters
from headrace.stores.markers import Markers
from headrace.stores.offline import DEAD_LETTERS, OfflineStore
from headrace.stores.payloads import ndjson_batches, refuse_topic
from headrace.stores.stream import Append, Entry, queue_append
from headrace.stores.tombstones import load_tombstones

__all__ = ["Replay", "list_letters", "replay_letters"]

CHUNK = 5_000


@dataclass(frozen=True, slots=True)
class Replay:
    """How many letters were replayed, and those (of `list_letters`, `reason` as of now) that would be dead again."""

    replayed: int
    still_dead: list[dict[str, Any]]


def list_letters(
    store: redis.Redis,
    offline: OfflineStore,
    catalog: Catalog,
    *,
    source: str | None = None,
    view: str | None = None,
    since_us: int | None = None,
) -> list[dict[str, Any]]:
    """Dead letters, each once, in the order of their arrival: rows of the schema DEAD_LETTERS. Those that were replayed
    are left out, and those of a layout that a view no longer has.

    `source` and `view` keep the letters of one (with a view, its own alone), `since_us` those that arrived since.
    """
    waiting, _, _ = pending_letters(store, catalog.project)  # first: what the archiver takes meanwhile comes twice
    rows = pa.concat_tables([offline.read_dead_letters(source), waiting]).to_pylist()
    layouts = {layout_field(item) for item in catalog.views}
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    marked = set()
    for row in rows:
        place = tuple(row[name] for name in PLACE)
        if row["replayed"]:
            marked.add((*place, None))
        elif row["layout"] is None or row["layout"] in layouts:
            found[(*place, row["layout"])] = row
    kept = [row for key, row in found.items() if key not in marked and _asked(row, source, view, since_us)]
    return sorted(kept, key=lambda row: (row["arrival_time"], *(row[name] for name in PLACE), row["view"] or ""))


def _asked(row: dict[str, Any], source: str | None, view: str | None, since_us: int | None) -> bool:
    since = pa.scalar(since_us, pa.int64()).cast(pa.timestamp("us", "UTC")).as_py() if since_us is not None else None
    return (
        (source is None or row["source"] == source)
        and (view is None or row["view"] == view)
        and (since is None or row["arrival_time"] >= since)
    )


def replay_letters(store: redis.Redis, offline: OfflineStore, catalog: Catalog, source_name: str) -> Replay:
    """Push the letters of a source that no view has seen as new events, each once, if it would now be accepted.

    Raises UnknownNameError for the source, RequestError for one whose events are not pushed, UnavailableError while
    another replay of it is under way.
    """
    source = catalog.source(source_name)
    refuse_topic(source)
    still = []
    with _lease(store, catalog, source_name) as (key, token):
        once = ReplayOnce(store, catalog, source, key, token) if is_cluster(store) else None
        replayed = once.begin() if once is not None else 0
        letters = [row for row in list_letters(store, offline, catalog, source=source_name) if row["view"] is None]
        for start in range(0, len(letters), CHUNK):
            some = letters[start : start + CHUNK]
            reasons = _reasons_now(store, catalog, source, some)
            still += [{**row, "reason": reason} for row, reason in zip(some, reasons, strict=True) if reason]
            good = [row for row, reason in zip(some, reasons, strict=True) if not reason]
            if good and once is not None:
                replayed += _append_once(once, store, offline, catalog, good)
            elif good:
                replayed += _append(store, offline, catalog, source, good, key, token)
    return Replay(replayed, still)


@contextmanager
def _lease(store: redis.Redis, catalog: Catalog, source: str) -> Iterator[tuple[str, bytes]]:
    """Nobody else replays the source; the transactions watch the key, so one whose lease is over writes nothing."""
    key, token = lease_key(catalog.project, replay_role(source)), uuid.uuid4().hex.encode()
    if not store.set(key, token, nx=True, ex=LEASE_S):
        raise UnavailableError(f"A source is replayed by one command at a time, {source!r} is being replayed; wait.")
    try:
        yield key, token
    finally:
        if store.get(key) == token:
            store.delete(key)


def _reasons_now(
    store: redis.Redis, catalog: Catalog, source: Source, letters: Sequence[dict[str, Any]]
) -> list[str | None]:
    """Why each letter would be dead again if it came now, None where it would not be."""
    reasons: list[str | None] = ["its payload is no single line" for _ in letters]
    lines = [i for i, row in enumerate(letters) if row["payload"].strip() and b"\n" not in row["payload"]]
    if not lines:
        return reasons
    places = [(source.name, partition) for partition in range(source.partitions)]
    marks = Markers(store, catalog.project).applied("source", places).values()
    watermark_us = max((m.watermark_us for m in marks if m and m.watermark_us is not None), default=None)
    payload = b"\n".join(letters[i]["payload"] for i in lines)
    entry = Entry(time.time_ns() // 1_000_000 << 20, "ndjson", len(lines), 0, payload)
    batch = parse_entries(source, 0, [entry], catalog.clock, watermark_us)
    now = dict.fromkeys(range(len(lines)), "an expectation drops it")
    now |= {letter.index: letter.reason for letter in batch.dead}
    for index in np.unique(batch.index).tolist():
        del now[index]
    for place, i in enumerate(lines):
        reasons[i] = now.get(place)
    return reasons


def _living(
    store: redis.Redis, offline: OfflineStore, catalog: Catalog, found: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The letters that were not forgotten meanwhile."""
    tombstones = load_tombstones(store, offline.root, catalog.project)
    gone = gone_letters(catalog, pa.Table.from_pylist(list(found), DEAD_LETTERS), tombstones)
    return [row for row, is_gone in zip(found, gone, strict=True) if not is_gone]


def _append_once(
    once: ReplayOnce, store: redis.Redis, offline: OfflineStore, catalog: Catalog, found: Sequence[dict[str, Any]]
) -> int:
    """Push these letters and mark them, those aside that were forgotten meanwhile; returns how many."""
    once.renew()
    letters = _living(store, offline, catalog, found)
    once.append(letters)
    return len(letters)


def _append(
    store: redis.Redis,
    offline: OfflineStore,
    catalog: Catalog,
    source: Source,
    found: Sequence[dict[str, Any]],
    key: str,
    token: bytes,
) -> int:
    """Push these letters and mark them, those aside that were forgotten meanwhile; returns how many."""
    with store.pipeline(transaction=True) as pipe:
        pipe.watch(key, forgotten_key(catalog.project))  # type: ignore[no-untyped-call]
        if pipe.get(key) != token:
            raise UnavailableError(f"The replay of {source.name!r} took too long and stopped; start it again.")
        letters = _living(store, offline, catalog, found)
        if not letters:
            return 0
        body = b"\n".join(row["payload"] for row in letters)
        marks = {name: [row[name] for row in letters] for name in (*PLACE, "arrival_time")}
        rows = pa.table({**marks, "replayed": [True] * len(letters)})
        pipe.multi()
        for batch in ndjson_batches(source, body):
            held = (batch.format, batch.payload, batch.count, batch.partition)
            queue_append(pipe, catalog.project, Append(source.name, *held, catalog.version))
        letter_key, fields = letter_entry(catalog.project, rows)
        pipe.xadd(letter_key, fields)  # type: ignore[arg-type]
        pipe.expire(key, LEASE_S)
        try:
            pipe.execute()
        except redis.WatchError:
            raise UnavailableError(
                f"The replay of {source.name!r} took too long and stopped; start it again."
            ) from None
    return len(letters)
