"""Values of forgotten keys: taken out of the online store, whoever else writes there at the same moment.

A value that holds nothing beyond the tombstone's positions is deleted; one that does is replaced by what the log says
of the key since. Both happen only if the value is still the one that was looked at. A writer who slept through a
forgetting may bring a deleted value back: so each looks after every batch whether something was forgotten meanwhile,
and takes it out again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog, Source, write_source
from headrace.compute.events import EventBatch
from headrace.compute.forgotten import living
from headrace.stores.codec.header import Header, build_of, header_size, pack_header, unpack_header
from headrace.stores.codec.rows import BATCH, DIRECT, decode_order, row_layout
from headrace.stores.keys import entity_prefix, layout_field
from headrace.stores.logs import LogReader
from headrace.stores.markers import Applied
from headrace.stores.offline import OfflineStore
from headrace.stores.online import Update
from headrace.stores.tombstones import Tombstone, Tombstones, load_tombstones, part_key, tombstone_version
from materialize.layouts import Kept, layout_updates
from materialize.log import SourceLog
from materialize.view_shares import ViewShares

__all__ = ["Eraser", "ForgottenKeys", "held_keys"]

_REPLACE = """
local held = redis.call('HGET', KEYS[1], ARGV[1])
if held == false or string.sub(held, 1, #ARGV[2]) ~= ARGV[2] then return 0 end
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
return 1
"""


class Eraser:
    """Takes keys out of layouts, by `tombstones`."""

    def __init__(self, log: LogReader, offline: OfflineStore, tombstones: Tombstones) -> None:
        self._log, self._offline, self._tombstones = log, offline, tombstones
        self._store = log.store
        self._replace = log.store.register_script(_REPLACE)

    def erase(self, kept: Kept, key: bytes, item: Tombstone) -> bool:
        """Takes the events of `item` out of one value; whether there was one. If more was forgotten meanwhile, that
        too: a value made anew may hold it."""
        field = layout_field(kept.view)
        while True:
            blob = cast(bytes | None, self._store.hget(cast(str, key), field))
            if blob is None:
                return False
            value = self._value_since(kept, key, item, blob)
            if self.put(key, field, blob, value or b"") and (not value or self._knows_all()):
                return True
            item = self._tombstones.items.get(item.digest, item)

    def _knows_all(self) -> bool:
        """Whether its tombstones are all there are; if not, it learns the others."""
        if tombstone_version(self._store, self._log.project) == self._tombstones.version:
            return True
        self._tombstones = load_tombstones(self._store, self._offline.root, self._log.project)
        return False

    def put(self, key: bytes, field: str, held: bytes, value: bytes) -> bool:
        """Replaces a value (deletes it for an empty one) if it is still `held`."""
        return bool(self._replace(keys=[key], args=[field, held[: header_size(held)], value]))

    def _value_since(self, kept: Kept, key: bytes, item: Tombstone, held: bytes) -> bytes | None:
        """What the log says of the key beyond the tombstone, up to where the value `held` is merged; None: nothing."""
        header, value = unpack_header(held, held[1]), None
        if build_of(held) != kept.build:
            return None
        for (stream, partition), (offset, index) in sorted(header.positions.items()):
            source = self._source(kept, stream)
            upto = item.places.get(f"{source.name}|{partition}", (-1, None))
            if offset > upto[0]:
                after = Applied(max(upto[0], 0), -1, 0, upto[1])
                value = self._merged(kept, key, value, source, partition, after, Applied(offset, index))
        if value is None:
            return None
        mine: Header = unpack_header(value, value[1])
        raised = pack_header(replace(mine, revision=header.revision + 1))
        return raised + value[header_size(value) :]

    def _source(self, kept: Kept, stream: int) -> Source:
        return write_source(kept.catalog, kept.view) if stream else kept.catalog.source(kept.view.source or "")

    def _merged(
        self, kept: Kept, key: bytes, value: bytes | None, source: Source, partition: int, after: Applied, upto: Applied
    ) -> bytes | None:
        """`value` with the key's events of one place in (after, upto] that were not forgotten."""
        log = SourceLog(self._log, self._offline, source, partition, kept.catalog.clock)
        shares = ViewShares(self._store, kept.catalog)
        for batch in log.replay(after, upto):
            for update in layout_updates(shares, living(kept.catalog, batch, self._tombstones), [kept]):
                value = _with(update, key, value)
        return value


def _with(update: Update, key: bytes, value: bytes | None) -> bytes | None:
    numbers = [n for n, other in enumerate(update.keys) if other == key]
    merged = update.merge(np.array(numbers), [value])[0] if numbers else None  # type: ignore[arg-type]
    return value if merged is None else merged


class ForgottenKeys:
    """What one writer of layouts knows of forgotten keys, and its look after every batch."""

    def __init__(self, log: LogReader, offline: OfflineStore) -> None:
        self._log, self._offline = log, offline
        self.tombstones = self._load()

    def living(self, catalog: Catalog, batch: EventBatch) -> EventBatch:
        """The batch without what was forgotten."""
        return living(catalog, batch, self.tombstones)

    def without_gone_rows(self, kept: Kept, update: Update) -> Update:
        """The update of a plain view, to which rows that were forgotten are none: one that somebody who slept brought
        back must not win against what came since."""
        if not self.tombstones:
            return update
        layout = row_layout(kept.view)

        def merge(numbers: Sequence[int], held: list[bytes | None]) -> list[bytes | None]:
            order = decode_order(layout, held)
            old = np.flatnonzero(order["offset"] <= self._last_line(kept))
            mine = {update.keys[numbers[i]]: i for i in old.tolist() if held[i] is not None}
            alive = list(held)
            for key, item in held_keys(kept, list(mine), self.tombstones):
                if _is_gone(kept, item, order[mine[key]]):
                    alive[mine[key]] = None
            return update.merge(numbers, alive)

        return replace(update, merge=merge)

    def _last_line(self, kept: Kept) -> int:
        """The offset beyond which no row of the layout is gone."""
        lines = [
            offset
            for item in self.tombstones.items.values()
            for place, (offset, _) in item.places.items()
            if kept.is_fed_by(place.rpartition("|")[0])
        ]
        return max(lines, default=-1)

    def settle(self, written: Sequence[tuple[Kept, Sequence[bytes]]]) -> bool:
        """Takes out again what was forgotten while these keys of layouts were written; whether anything was."""
        if tombstone_version(self._log.store, self._log.project) == self.tombstones.version:
            return False
        before, self.tombstones = self.tombstones, self._load()
        fresh = self.tombstones.since(before)
        eraser = Eraser(self._log, self._offline, self.tombstones)
        for kept, keys in written:
            for key, item in held_keys(kept, keys, fresh):
                eraser.erase(kept, key, item)
        return True

    def _load(self) -> Tombstones:
        return load_tombstones(self._log.store, self._offline.root, self._log.project)


def _is_gone(kept: Kept, item: Tombstone, row: NDArray[Any]) -> bool:
    """Whether a row (of ORDER) that a batch or a writer gave was forgotten; rows of a file are looked at by time."""
    if row["rank"] == BATCH:
        return int(row["time_us"]) <= item.at_us
    name = f"writes/{kept.view.name}" if row["rank"] == DIRECT else kept.view.source or ""
    line = item.offset(name, int(row["partition"]))
    return line is not None and int(row["offset"]) <= line


def held_keys(kept: Kept, keys: Sequence[bytes], tombstones: Tombstones) -> list[tuple[bytes, Tombstone]]:
    """Which of the layout's keys hold a forgotten one."""
    project, mine = kept.catalog.project, sorted(kept.view.entities)
    prefix, found = entity_prefix(project, mine), []
    for entities in tombstones.entity_sets():
        if not set(entities) <= set(mine):
            continue
        for key in keys:
            part = part_key(entity_prefix(project, entities), mine, entities, key.decode()[len(prefix) :])
            item = tombstones.items.get(tombstones.digest(part))
            if item is not None:
                found.append((key, item))
    return found
