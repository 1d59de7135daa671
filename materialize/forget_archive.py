"""Forgetting, the archiver's part: it deletes the rows of a forgotten key, and lets none of them in later."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import redis
from deltalake import DeltaTable
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog, Source
from headrace.compute.events import DeadLetter, EventBatch
from headrace.compute.forgotten import gone_events, gone_letters, living
from headrace.stores.markers import IMPORTS, Applied, places
from headrace.stores.offline import INDEX, OFFSET, PARTITION, OfflineStore
from headrace.stores.offline_reads import open_table
from headrace.stores.orders import Order
from headrace.stores.served import gone_served, pending_served, read_served, served_paths, take_out_served
from headrace.stores.table_care import vacuum
from headrace.stores.tombstones import Tombstone, Tombstones, load_tombstones, mirror_tombstones
from materialize.lanes import dead_rows

__all__ = ["ForgottenRows"]

Ints = NDArray[np.int64]
ROWS_PER_DELETE = 500
SERVED_ENTRIES = 200
_DAY = "partition.event_date"


class ForgottenRows:
    """What the archiver knows of forgotten keys."""

    def __init__(self, store: redis.Redis, offline: OfflineStore, project: str) -> None:
        self._store, self._offline, self._project = store, offline, project
        self.tombstones = load_tombstones(store, offline.root, project)
        if self.tombstones:
            mirror_tombstones(offline.root, self.tombstones)

    def living(self, catalog: Catalog, batch: EventBatch) -> EventBatch:
        """The batch without what was forgotten, dead letters neither."""
        if not self.tombstones:
            return batch
        kept = living(catalog, batch, self.tombstones)
        return dataclasses.replace(kept, dead=self._living_dead(catalog, batch))

    def living_letters(self, catalog: Catalog, letters: pa.Table, offsets: Ints) -> tuple[pa.Table, Ints]:
        """Rows of DEAD_LETTERS, and the offset of each, without what was forgotten."""
        gone = gone_letters(catalog, letters, self.tombstones) if self.tombstones else np.zeros(len(offsets), np.bool_)
        return letters.filter(pa.array(~gone)), offsets[~gone]

    def take_served(self) -> int:
        """Append the served rows that wait, but those of forgotten keys, then take them out of their stream; returns
        how many were added. An append that was committed before its entries were taken out is not made again."""
        added = 0
        while True:
            pending, last = pending_served(self._store, self._project, SERVED_ENTRIES)
            for service, rows, offsets, upto in pending:
                kept = ~gone_served(rows, self.tombstones)
                added += self._offline.append_served(service, rows.filter(pa.array(kept)), offsets[kept], upto)
            if not last:
                return added
            take_out_served(self._store, self._project, last)

    def _delete_served(self, items: Sequence[Tombstone]) -> tuple[int, int]:
        """How many served rows of the items' keys went, and how many files with them."""
        self.take_served()
        count, files, tombstones = 0, 0, Tombstones(self.tombstones.salt, items)
        for service, path in served_paths(self._offline.root).items():
            held = read_served(self._offline.root, service)
            rows = held.filter(pa.array(gone_served(held, tombstones))).select(["request_id", "row"]).to_pylist()
            with self._offline.changing(path) as table:
                if table is None:
                    continue
                for start in range(0, len(rows), ROWS_PER_DELETE):
                    terms = [_served_condition(row) for row in rows[start : start + ROWS_PER_DELETE]]
                    count += _delete(table, " OR ".join(terms))
                files += len(vacuum(table, 0))
        return count, files

    def _living_dead(self, catalog: Catalog, batch: EventBatch) -> list[DeadLetter]:
        gone = gone_letters(catalog, dead_rows(batch.source, batch.dead), self.tombstones) if batch.dead else ()
        return [letter for letter, is_gone in zip(batch.dead, gone, strict=True) if not is_gone]

    def carry_out(self, catalog: Catalog, order: Order) -> str:
        """Delete the rows of the order's keys, from the tables and from the disk; returns counts as JSON."""
        self.tombstones = load_tombstones(self._store, self._offline.root, self._project)
        mirror_tombstones(self._offline.root, self.tombstones)
        items = [self.tombstones.items[digest] for digest in order.body["digests"]]
        known = {source.name: source for source, _ in places(catalog)}
        wanted = {place.rpartition("|")[0] for item in items for place in item.places}
        events, files = {}, 0
        for name in sorted(wanted & set(known)):
            events[name], swept = self._delete_events(catalog, known[name], order.body["keys"], items)
            files += swept
        letters, of_letters = self._delete_letters(catalog, sorted(wanted), items)
        served, of_served = self._delete_served(items)
        done = {"events": events, "dead_letters": letters, "served": served, "files": files + of_letters + of_served}
        return orjson.dumps(done | {"unknown_sources": sorted(wanted - set(known))}).decode()

    def _delete_events(
        self, catalog: Catalog, source: Source, keys: Sequence[Sequence[int | str]], items: Sequence[Tombstone]
    ) -> tuple[int, int]:
        """How many rows of a source's table went, and how many files with them."""
        path = self._offline.events_path(source.name)
        derived = self._derived(catalog, source, items, path)
        with self._offline.changing(path) as table:
            if table is None:
                return 0, 0
            count = 0
            for values, item in zip(keys, items, strict=True):
                condition = _key_condition(catalog, source, item.entities, values)
                if condition is not None:
                    count += _delete(table, f"{condition} AND ({_place_condition(source, item)})")
            for rows in derived:
                count += _delete(table, rows)
            return count, len(vacuum(table, 0))

    def _derived(self, catalog: Catalog, source: Source, items: Sequence[Tombstone], path: Path) -> list[str]:
        """Conditions for the rows that only a view's transform gives the key of an item."""
        table, mine = open_table(path), Tombstones(self.tombstones.salt, items)
        if table is None or not any(view.transform is not None for view in catalog.views_of(source.name)):
            return []
        found: list[str] = []
        days = sorted(set(pa.table(table.get_add_actions(flatten=True))[_DAY].to_pylist()))
        for day in days:
            found += _conditions(day, _gone_of_day(self._offline, catalog, source, day, mine))
        return found

    def _delete_letters(self, catalog: Catalog, sources: Sequence[str], items: Sequence[Tombstone]) -> tuple[int, int]:
        letters = self._offline.read_dead_letters()
        letters = letters.filter(pa.array([name in sources for name in letters["source"].to_pylist()], pa.bool_()))
        gone = gone_letters(catalog, letters, Tombstones(self.tombstones.salt, items))
        rows = letters.filter(pa.array(gone)).select(["source", "partition", "offset", "index"]).to_pylist()
        count = 0
        with self._offline.changing(self._offline.dead_letters_path) as table:
            if table is None:
                return 0, 0
            for start in range(0, len(rows), ROWS_PER_DELETE):
                terms = [_letter_condition(row) for row in rows[start : start + ROWS_PER_DELETE]]
                count += _delete(table, " OR ".join(terms))
            return count, len(vacuum(table, 0))


def _served_condition(row: dict[str, Any]) -> str:
    return f"({_name('request_id')} = {_text(row['request_id'])} AND {_name('row')} = {row['row']})"


def _delete(table: DeltaTable, condition: str) -> int:
    return int(table.delete(condition)["num_deleted_rows"])


def _key_condition(
    catalog: Catalog, source: Source, entities: Sequence[str], values: Sequence[int | str]
) -> str | None:
    """The rows whose join key columns hold the values, None if the source does not have the columns."""
    held = {column.name: column.dtype for column in source.columns}
    names = [catalog.entity(name).join_key for name in entities]
    if not set(names) <= set(held):
        return None
    literals = [str(int(v)) if held[name].is_integer else _text(str(v)) for name, v in zip(names, values, strict=True)]
    return " AND ".join(f"{_name(name)} = {literal}" for name, literal in zip(names, literals, strict=True))


def _place_condition(source: Source, item: Tombstone) -> str:
    lines = {part: item.offset(source.name, part) for part in (IMPORTS, *range(source.partitions))}
    terms = [
        f"(position['partition'] = {part} AND position['offset'] <= {offset})"
        for part, offset in lines.items()
        if offset is not None
    ]
    imported = f"(position['partition'] = {IMPORTS} AND CAST(event_time AS BIGINT) <= {item.at_us})"
    return " OR ".join([*terms, imported])


def _letter_condition(row: Mapping[str, Any]) -> str:
    place = " AND ".join(f"{_name(name)} = {row[name]}" for name in ("partition", "offset", "index"))
    return f"(source = {_text(row['source'])} AND {place})"


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _gone_of_day(
    offline: OfflineStore, catalog: Catalog, source: Source, day: date, tombstones: Tombstones
) -> dict[int, list[tuple[int, int]]]:
    """By partition, the (offset, index) of the day's rows that were forgotten."""
    since = (day - date(1970, 1, 1)) // timedelta(microseconds=1)
    columns = list(dict.fromkeys([*(column.name for column in source.columns), "event_time", "arrival_time"]))
    rows = offline.read_events(source, columns, since_us=since, until_us=since + 86_400_000_000 - 1, repeats=True)
    partitions, found = np.asarray(rows[PARTITION]), {}
    for partition in np.unique(partitions).tolist():
        some = rows.filter(pa.array(partitions == partition))
        batch = _batch(source, partition, some)
        gone = gone_events(catalog, batch, tombstones)
        found[partition] = list(zip(batch.offset[gone].tolist(), batch.index[gone].tolist(), strict=True))
    return found


def _batch(source: Source, partition: int, rows: pa.Table) -> EventBatch:
    times, arrivals = (np.asarray(rows[name].cast(pa.int64())) for name in ("event_time", "arrival_time"))
    offset, index = np.asarray(rows[OFFSET]), np.asarray(rows[INDEX]).astype(np.int64)
    table = rows.select([column.name for column in source.columns])
    return EventBatch(source, partition, table, times, arrivals, offset, index, [], Applied())


def _conditions(day: date, rows: Mapping[int, Sequence[tuple[int, int]]]) -> list[str]:
    found = []
    for partition, places_of in rows.items():
        for start in range(0, len(places_of), ROWS_PER_DELETE):
            terms = [
                f"(position['offset'] = {offset} AND position['index'] = {index})"
                for offset, index in places_of[start : start + ROWS_PER_DELETE]
            ]
            where = f"event_date = '{day}' AND position['partition'] = {partition}"
            found.append(f"{where} AND ({' OR '.join(terms)})")
    return found
