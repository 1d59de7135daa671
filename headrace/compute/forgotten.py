"""Which events belong to a key that was forgotten: by their join key columns, and by those that a view's transform
gives them. The same rule for worker, archiver, imports and dead letters."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog, FeatureView, Source
from headrace.compute.events import EventBatch
from headrace.compute.expectations import NO_WATERMARK
from headrace.compute.view_events import SourceEvents, view_events
from headrace.stores.batch_files import BatchRows
from headrace.stores.keys import entity_key, entity_prefix, group_keys
from headrace.stores.markers import IMPORTS
from headrace.stores.tombstones import Tombstone, Tombstones

__all__ = ["gone_events", "gone_file_rows", "gone_letters", "gone_rows", "living", "living_rows"]

Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]

MOST_GUESSES = 10_000
_WORD = re.compile(r"[^\s\"'{}\[\]:,;=|<>()]+")


def living(catalog: Catalog, batch: EventBatch, tombstones: Tombstones) -> EventBatch:
    """The batch without the events that were forgotten; what the others found of the watermark stays."""
    if not tombstones or not len(batch) or not _may_hold(batch, tombstones):
        return batch
    gone = gone_events(catalog, batch, tombstones)
    return batch.only(~gone) if gone.any() else batch


def _may_hold(batch: EventBatch, tombstones: Tombstones) -> bool:
    name = batch.source.name
    if batch.partition == IMPORTS:
        return any(item.offset(name, 0) is not None for item in tombstones.items.values())
    return int(batch.offset[0]) <= tombstones.latest(name, batch.partition)


def gone_events(catalog: Catalog, batch: EventBatch, tombstones: Tombstones) -> Flags:
    """Which events of the batch were forgotten."""
    columns = {name: batch.table[name].combine_chunks() for name in batch.table.column_names}
    gone = np.zeros(len(batch), np.bool_)
    for entities in tombstones.entity_sets():
        for keys, rows in _keyings(catalog, batch, columns, entities):
            where = (batch.source.name, batch.partition)
            found = gone_rows(catalog, entities, keys, where, batch.offset[rows], batch.event_time_us[rows], tombstones)
            gone[rows[found]] = True
    return gone


def _keyings(
    catalog: Catalog, batch: EventBatch, columns: dict[str, pa.Array], entities: Sequence[str]
) -> Iterator[tuple[list[pa.Array], Ints]]:
    """The join key columns of the entities, in their order, and the event of each row: as the source has them, and as
    each transform of a view gives them."""
    names = _join_keys(catalog, entities)
    if names is None:
        return
    if all(name in columns for name in names):
        yield [columns[name] for name in names], np.arange(len(batch))
    for view in _transformed(catalog, batch.source, entities):
        given = SourceEvents(
            columns,
            batch.event_time_us,
            batch.arrival_us,
            batch.offset,
            batch.index,
            np.full(len(batch), batch.partition),
            np.full(len(batch), NO_WATERMARK),
        )
        found = view_events(catalog, view, given)
        rows = np.arange(len(batch)) if found.row is None else found.row
        yield [found.columns[name] for name in names], rows


def _transformed(catalog: Catalog, source: Source, entities: Sequence[str]) -> list[FeatureView]:
    """Views of the source whose transform may give an event another key."""
    views = (view for view in catalog.views_of(source.name) if view.transform is not None)
    return [view for view in views if set(entities) <= set(view.entities)]


def living_rows(catalog: Catalog, view: FeatureView, rows: BatchRows, tombstones: Tombstones) -> BatchRows:
    """Rows of a view's file (its join keys among them) without those that had happened when their key was
    forgotten."""
    columns = {name: rows.table[name].combine_chunks() for name in rows.table.column_names}
    gone = gone_file_rows(catalog, view, columns, rows.event_time_us, tombstones) if tombstones else None
    if gone is None or not gone.any():
        return rows
    return BatchRows(rows.table.filter(pa.array(~gone)), rows.event_time_us[~gone], rows.refused)


def gone_file_rows(
    catalog: Catalog, view: FeatureView, columns: Mapping[str, pa.Array], times_us: Ints, tombstones: Tombstones
) -> Flags:
    """Which rows of a view's file had happened when their key was forgotten."""
    gone = np.zeros(len(times_us), np.bool_)
    for entities in (some for some in tombstones.entity_sets() if set(some) <= set(view.entities)):
        keys = [columns[catalog.entity(name).join_key] for name in entities]
        codes, known = group_keys(entity_prefix(catalog.project, entities), keys)
        for code, item in enumerate(tombstones.items.get(tombstones.digest(key)) for key in known):
            if item is not None:
                gone |= (codes == code) & (times_us <= item.at_us)
    return gone


def gone_rows(
    catalog: Catalog,
    entities: Sequence[str],
    keys: Sequence[pa.Array],
    place: tuple[str, int],
    offset: Ints,
    times_us: Ints,
    tombstones: Tombstones,
) -> Flags:
    """Which rows of one place were forgotten; `keys` are their join key columns in the order of `entities`."""
    codes, known = group_keys(entity_prefix(catalog.project, entities), keys)
    found = [tombstones.items.get(tombstones.digest(key)) for key in known]
    gone = np.zeros(len(codes), np.bool_)
    for code, item in enumerate(found):
        if item is not None:
            gone |= (codes == code) & _is_gone(item, place, offset, times_us)
    return gone


def _is_gone(item: Tombstone, place: tuple[str, int], offset: Ints, times_us: Ints) -> Flags:
    upto = item.offset(*place)
    gone: Flags = np.zeros(len(offset), np.bool_) if upto is None else offset <= upto
    of_source = item.offset(place[0], 0) is not None
    return gone | (times_us <= item.at_us) if place[1] == IMPORTS and of_source else gone


def _join_keys(catalog: Catalog, entities: Sequence[str]) -> list[str] | None:
    """The join keys of the entities, None when the catalog no longer has one."""
    known = {entity.name: entity.join_key for entity in catalog.entities}
    return [known[name] for name in entities] if set(entities) <= set(known) else None


def gone_letters(catalog: Catalog, letters: pa.Table, tombstones: Tombstones) -> Flags:
    """Which rows of DEAD_LETTERS were forgotten: those with the key in their payload, or, where that cannot be read,
    with its values among their words."""
    gone = np.zeros(letters.num_rows, np.bool_)
    sets = tombstones.entity_sets()
    places = [letters[name].to_pylist() for name in ("source", "partition", "offset")]
    for row, (source, partition, offset) in enumerate(zip(*places, strict=True)):
        if offset > tombstones.latest(source, partition):
            continue
        payload = letters["payload"][row].as_py() or b""
        items = (item for entities in sets for item in _named(catalog, entities, payload, tombstones))
        gone[row] = any((upto := item.offset(source, partition)) is not None and offset <= upto for item in items)
    return gone


def _named(catalog: Catalog, entities: Sequence[str], payload: bytes, tombstones: Tombstones) -> Iterator[Tombstone]:
    """The tombstones of these entities whose key the payload may be about."""
    prefix = entity_prefix(catalog.project, entities)
    for values in _key_values(catalog, entities, payload):
        item = tombstones.items.get(tombstones.digest(entity_key(prefix, values)))
        if item is not None:
            yield item


def _key_values(catalog: Catalog, entities: Sequence[str], payload: bytes) -> Iterator[tuple[str, ...]]:
    names = _join_keys(catalog, entities)
    try:
        parsed = orjson.loads(payload)
    except orjson.JSONDecodeError:
        parsed = None
    if isinstance(parsed, dict) and names and all(name in parsed for name in names):
        yield tuple(str(parsed[name]) for name in names)
        return
    words = sorted(set(_WORD.findall(payload.decode(errors="replace"))))
    if len(words) ** len(entities) <= MOST_GUESSES:
        yield from itertools.product(words, repeat=len(entities))
