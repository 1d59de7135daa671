"""The copies of a cluster's markers made alike, and a copy for every shard, by whoever writes values.

What is applied is what all copies say. A layout is complete where all say so, and was begun where all say when: a shard
that lost either has lost values of it, and what one copy misses is taken from the others too.

A copy also says which run, nodes and slots its shard had. So slots may move: a shard whose run is the one that was seen
before has lost nothing and only lacks a copy, which it is given. One that failed over or restarted has its own copy to
tell what it still holds; but if it has slots that this copy knows nothing of, values may have been lost on their way
to it, and every layout is begun anew.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from headrace.stores.cluster import ClusterStore
from headrace.stores.cluster_copies import COPIES, SHARD, combined, copy_key, first_number, slot_of
from headrace.stores.cluster_shards import Record, Run, Shard, read_record
from headrace.telemetry import get_logger

__all__ = ["level"]

AGAIN_S = 0.05
"""Copies are written one after the other: what differs is looked at once more after this."""
SEEN_EVERY_US = 5_000_000
_STATEMENTS = ("view", "build")

Fields = dict[bytes, bytes]
log = get_logger()


def level(store: Any, key: str) -> bool:
    """Makes the copies of the markers alike, and one for every shard; whether layouts were forgotten, to be begun anew.

    Does nothing to the one markers of one server. A record of the shards that is some seconds old is renewed: a primary
    that is new among them is believed if it has run since before that.
    """
    if not isinstance(store, ClusterStore):
        return False
    name = key.encode()
    shards, listed = store.shards(), store.listed(name)
    held = _read(store, name, listed)
    if _told(held.values()) != _plain(held[0]) or any(_plain(held[0]) != _plain(fields) for fields in held.values()):
        time.sleep(AGAIN_S)
        held = _read(store, name, listed)
    told, runs = _told(held.values()), {shard.name: store.run_of(shard.name) for shard in shards}
    doubtful = _doubtful(name, shards, runs, held) if any(held.values()) else []
    if doubtful:
        log.warning("shards may have lost values that were moved to them", shards=doubtful)
        told = {field: value for field, value in told.items() if _kind(field) not in _STATEMENTS}
    known = {field for fields in held.values() for field in fields if _kind(field) in _STATEMENTS}
    _write(store, name, _numbers(name, shards, listed), told, held, _records(shards, runs))
    store.forget_copies()
    return bool(known - set(told))


def _read(store: ClusterStore, key: bytes, listed: Sequence[int]) -> dict[int, Fields]:
    return {number: store.on_one("HGETALL", copy_key(key, number)) for number in listed}


def _kind(field: bytes) -> str:
    return field.partition(b"|")[0].decode()


def _plain(fields: Fields) -> Fields:
    """What a copy says of the log and the layouts."""
    return {field: value for field, value in fields.items() if field not in (COPIES, SHARD)}


def _told(held: Any) -> Fields:
    """What all copies say together, copy 0 being the first."""
    told: Fields = combined(("HGETALL",), [_plain(fields) for fields in held])
    begun = {field.partition(b"|")[2] for field in told if _kind(field) == "build"}
    return {field: value for field, value in told.items() if _kind(field) != "view" or field[5:] in begun}


def _doubtful(key: bytes, shards: Sequence[Shard], runs: Mapping[str, Run], held: Mapping[int, Fields]) -> list[str]:
    """The shards of which nobody can tell what they lost."""
    records = {number: read_record(fields[SHARD]) for number, fields in held.items() if SHARD in fields}
    found: list[str] = []
    for shard in shards if records else ():
        mine = [record for number, record in records.items() if slot_of(copy_key(key, number)) in shard.slots]
        if not _is_whole(shard, runs[shard.name], mine, list(records.values())):
            found.append(shard.name)
    return found


def _is_whole(shard: Shard, run: Run, mine: Sequence[Record], records: Sequence[Record]) -> bool:
    """Whether a shard lost nothing, or what it lost its copy lost too."""
    if any(record.run == run.id for record in records):
        return True
    if any(shard.id in record.nodes and shard.slots <= record.slots for record in mine):
        return True
    is_new = not any(record.nodes & shard.nodes for record in records)
    return is_new and run.is_first and run.began_us < max(record.at_us for record in records)


def _numbers(key: bytes, shards: Sequence[Shard], listed: Sequence[int]) -> dict[int, Shard]:
    """A copy for every shard: the first that it has, else a new one; copy 0 is always one, and the last in order."""
    owners = {slot: shard.name for shard in shards for slot in shard.slots}
    kept = {}
    for shard in shards:
        mine = [number for number in listed if slot_of(copy_key(key, number)) in shard.slots]
        kept[min(mine) if mine else first_number(key, shard.name, owners)] = shard
    zero = next(shard for shard in shards if slot_of(copy_key(key, 0)) in shard.slots)
    return dict(sorted((kept | {0: zero}).items(), reverse=True))


def _records(shards: Sequence[Shard], runs: Mapping[str, Run]) -> dict[str, Record]:
    return {
        shard.name: Record(runs[shard.name].id, shard.nodes, shard.slots, runs[shard.name].now_us) for shard in shards
    }


def _write(
    store: ClusterStore,
    key: bytes,
    numbers: Mapping[int, Shard],
    told: Fields,
    held: Mapping[int, Fields],
    records: Mapping[str, Record],
) -> None:
    """Copy 0 is written last, for it names the others, and those that are no longer named are deleted after that."""
    names = orjson.dumps(sorted(numbers))
    for number, shard in numbers.items():
        copy, before = copy_key(key, number), held.get(number, {})
        fields = {**told, COPIES: names, SHARD: _renewed(before.get(SHARD), records[shard.name])}
        if number not in held:
            store.on_one("DEL", copy)
        elif gone := [field for field in before if field not in fields]:
            store.on_one("HDEL", copy, *gone)
        if other := [part for field, value in fields.items() if before.get(field) != value for part in (field, value)]:
            store.on_one("HSET", copy, *other)
    for number in set(held) - set(numbers):
        store.on_one("DEL", copy_key(key, number))


def _renewed(before: bytes | None, now: Record) -> bytes:
    """What a copy says of its shard, the same bytes as long as nothing but a little time has passed."""
    held = read_record(before) if before is not None else None
    same = held is not None and (held.run, held.nodes, held.slots) == (now.run, now.nodes, now.slots)
    if before is not None and held is not None and same and now.at_us < held.at_us + SEEN_EVERY_US:
        return before
    return now.encode()
