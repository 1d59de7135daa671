"""Tombstones: what was forgotten, so that it never comes back, with no plain value of it.

A tombstone has a keyed hash of an entity key (HMAC-SHA256 under a random key of the project) and, by source and
partition, the position up to which events of that key are gone; what comes after is a new beginning. Rows without a
place in a stream (imports, batch files) are gone if they happened at or before the moment of the forgetting.

They lie in the store (headrace.forgotten:PROJECT: `salt`, `version`, and a field per hash) for the worker, and beside
the tables (forgotten.json) for readers of the archive and for a store that was lost; what counts is both together.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import orjson
import redis
from numpy.typing import NDArray

from headrace.stores.keys import forgotten_key
from headrace.stores.offline_records import FORGOTTEN, read_record, write_record

__all__ = [
    "Tombstone",
    "Tombstones",
    "add_tombstones",
    "load_tombstones",
    "mirror_tombstones",
    "part_key",
    "place_name",
    "project_salt",
    "raised_to_floors",
    "tombstone_version",
]

Ints = NDArray[np.int64]

_ADD = """
for i = 1, #ARGV, 3 do
  if (redis.call('HGET', KEYS[1], ARGV[i]) or '') ~= ARGV[i + 1] then return 0 end
end
for i = 1, #ARGV, 3 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2]) end
local now = redis.call('TIME')
local version = string.format('%.0f', now[1] * 1000000 + now[2])
redis.call('HSET', KEYS[1], 'version', version)
return version
"""
_OWN_FIELDS = ("salt", "version")


@dataclass(frozen=True, slots=True)
class Tombstone:
    """One forgotten key of the entities named (sorted). `places` holds, by `SOURCE|PARTITION`, the offset up to which
    its events are gone and the watermark there; `at_us` is the moment of the forgetting, by the catalog's clock,
    `made_us` by the wall's."""

    digest: str
    entities: tuple[str, ...]
    at_us: int
    places: Mapping[str, tuple[int, int | None]]
    made_us: int = 0

    def offset(self, source: str, partition: int) -> int | None:
        """Up to where events of this place are gone, None if it was not of it."""
        found = self.places.get(place_name(source, partition))
        return None if found is None else found[0]

    def merged(self, other: Tombstone) -> Tombstone:
        """What both of one key say."""
        places = dict(other.places)
        for place, (offset, watermark_us) in self.places.items():
            places[place] = max((offset, watermark_us), places.get(place, (-1, None)), key=lambda held: held[0])
        at_us, made_us = max(self.at_us, other.at_us), max(self.made_us, other.made_us)
        return Tombstone(self.digest, self.entities, at_us, places, made_us)


class Tombstones:
    """All tombstones of a project, as one process knows them; `version` is when the store was last
    given one, by its clock."""

    def __init__(self, salt: bytes, items: Iterable[Tombstone] = (), version: int = 0) -> None:
        self.salt, self.version = salt, version
        self.items: dict[str, Tombstone] = {}
        for item in items:
            known = self.items.get(item.digest)
            self.items[item.digest] = item if known is None else item.merged(known)
        self._latest: dict[str, int] = {}
        for item in self.items.values():
            for place, (offset, _) in item.places.items():
                self._latest[place] = max(offset, self._latest.get(place, -1))

    def __bool__(self) -> bool:
        return bool(self.items)

    def digest(self, key: bytes) -> str:
        """The hash of an entity key (see stores/keys.py)."""
        return hmac.digest(self.salt, key, "sha256").hex()

    def entity_sets(self) -> set[tuple[str, ...]]:
        """The combinations of entities of which keys were forgotten."""
        return {item.entities for item in self.items.values()}

    def latest(self, source: str, partition: int) -> int:
        """The offset beyond which no event of a place is gone, -1 where none is."""
        return self._latest.get(place_name(source, partition), -1)

    def since(self, known: Tombstones) -> Tombstones:
        """Those that `known` does not have, or not as they are."""
        fresh = [item for item in self.items.values() if known.items.get(item.digest) != item]
        return Tombstones(self.salt, fresh, self.version)

    def floors(self, source: str, partition: int) -> list[tuple[int, int]]:
        """(offset, watermark): beyond such an offset the watermark is at least that, though its event may be gone."""
        found = (item.places.get(place_name(source, partition)) for item in self.items.values())
        return sorted({(held[0], held[1]) for held in found if held is not None and held[1] is not None})


def place_name(source: str, partition: int) -> str:
    """A place as tombstones write it."""
    return f"{source}|{partition}"


def tombstone_version(store: redis.Redis, project: str) -> int:
    """When tombstones were last added in the store, in microseconds by its clock; 0: never."""
    return int(cast(bytes | None, store.hget(forgotten_key(project), "version")) or 0)


def load_tombstones(store: redis.Redis | None, root: Path, project: str) -> Tombstones:
    """What the store (None: not asked) and the folder `root` of the offline store know."""
    record = read_record(root, FORGOTTEN)
    held = cast(dict[bytes, bytes], store.hgetall(forgotten_key(project))) if store is not None else {}
    plain = {name.decode(): value for name, value in held.items()}
    salt = plain["salt"].decode() if "salt" in plain else record.get("salt", "")
    items = [_decoded(item) for item in record.get("tombstones", [])]
    items += [_decoded(orjson.loads(value)) for name, value in plain.items() if name not in _OWN_FIELDS]
    return Tombstones(bytes.fromhex(salt), items, int(plain.get("version", b"0")))


def project_salt(store: redis.Redis, root: Path, project: str) -> bytes:
    """The key of the project's hashes, made with its first tombstone."""
    known = read_record(root, FORGOTTEN).get("salt") or os.urandom(32).hex()
    store.hsetnx(forgotten_key(project), "salt", known)
    return bytes.fromhex(cast(bytes, store.hget(forgotten_key(project), "salt")).decode())


def add_tombstones(store: redis.Redis, project: str, known: Tombstones, items: Sequence[Tombstone]) -> int:
    """Put tombstones beside those `known`, and beside what others put there meanwhile; returns the store's new
    version."""
    key, version = forgotten_key(project), 0
    while items and not version:
        held = cast(list[bytes | None], store.hmget(key, [item.digest for item in items]))
        args: list[str | bytes] = []
        for item, raw in zip(items, held, strict=True):
            others = [known.items.get(item.digest), _decoded(orjson.loads(raw)) if raw else None]
            for other in others:
                item = item if other is None else item.merged(other)
            args += [item.digest, raw or "", orjson.dumps(asdict(item)).decode()]
        version = int(cast(int, store.eval(_ADD, 1, key, *cast(list[str], args))))
    return version


def mirror_tombstones(root: Path, tombstones: Tombstones) -> None:
    """Write them beside the tables; for the archiver, before it deletes anything."""
    items = [asdict(item) for item in tombstones.items.values()]
    write_record(root, FORGOTTEN, {"salt": tombstones.salt.hex(), "tombstones": items})


def part_key(prefix: str, entities: Sequence[str], of: Sequence[str], tail: str) -> bytes:
    """The key of the entities `of` within a key of `entities` (both sorted) whose values are `tail`."""
    values = dict(zip(entities, tail.split(","), strict=True))
    return (prefix + ",".join(values[name] for name in of)).encode()


def raised_to_floors(found_us: Ints, offset: Ints, floors: Iterable[tuple[int, int]]) -> Ints:
    """What events at these offsets found of the watermark, as if nothing of the log had been taken out."""
    for upto, watermark_us in floors:
        found_us = np.where(offset > upto, np.maximum(found_us, watermark_us), found_us)
    return found_us


def _decoded(raw: Mapping[str, object]) -> Tombstone:
    places = cast(Mapping[str, tuple[int, int | None]], raw["places"])
    held = {place: (int(offset), watermark_us) for place, (offset, watermark_us) in places.items()}
    entities = tuple(cast(list[str], raw["entities"]))
    return Tombstone(cast(str, raw["digest"]), entities, cast(int, raw["at_us"]), held, cast(int, raw["made_us"]))
