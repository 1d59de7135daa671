"""The bytes of a windowed view's value.

After the header, little-endian:
    u32  for every tile group, then for every entry list: its number of rows
    per tile group, per row: i64 tile, then one 8-byte state per field, in the group's order
    per entry list, per row: one i64 per column of its kind (windows/entries.py), in their order
    per list of strings: their bytes, one after another; a string's `value` is its length
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.catalog.definitions import Aggregation, FeatureView
from headrace.stores.codec.header import header_size
from headrace.windows.entries import COLUMNS, EntryList, EntryRows, empty_entries, entry_lists
from headrace.windows.suffix_tiles import TileGroup, TileRows, empty_rows, tile_groups

__all__ = ["TileLayout", "Tiles", "decode_tiles", "encode_tiles", "tile_layout"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TileLayout:
    """What a windowed view's value holds; `widths` are the bytes of a row of each group, then of each list."""

    groups: tuple[TileGroup, ...]
    lists: tuple[EntryList, ...]
    widths: tuple[int, ...]


@lru_cache(maxsize=1_024)
def _layout(aggregations: tuple[Aggregation, ...]) -> TileLayout:
    groups, lists = tile_groups(aggregations), entry_lists(aggregations)
    widths = [8 * (1 + len(group.fields)) for group in groups] + [8 * len(COLUMNS[held.kind]) for held in lists]
    return TileLayout(groups, lists, tuple(widths))


def tile_layout(view: FeatureView) -> TileLayout:
    """The layout of `view`."""
    return _layout(view.aggregations)


@dataclass(slots=True)
class Tiles:
    """The values of n keys, numbered 0 to n - 1 in all of them."""

    rows: list[TileRows]
    entries: list[EntryRows]


def decode_tiles(layout: TileLayout, blobs: Sequence[bytes | None]) -> Tiles:
    """The values of `blobs` as arrays; None is the value of no event."""
    n_parts = len(layout.widths)
    parts: list[list[bytes]] = [[] for _ in layout.widths]
    counts, tails = np.zeros((len(blobs), n_parts), np.int64), []
    for k, blob in enumerate(blobs):
        if blob is None:
            tails.append(b"")
            continue
        at = header_size(blob)
        sizes = np.frombuffer(blob, "<u4", n_parts, at).tolist()
        counts[k] = sizes
        at += 4 * n_parts
        for part, size, width in zip(parts, sizes, layout.widths, strict=True):
            part.append(blob[at : at + size * width])
            at += size * width
        tails.append(blob[at:])
    matrices = [_matrix(b"".join(part), width) for part, width in zip(parts, layout.widths, strict=True)]
    numbers = [np.repeat(np.arange(len(blobs)), counts[:, i]) for i in range(n_parts)]
    n_groups = len(layout.groups)
    groups = zip(layout.groups, numbers[:n_groups], matrices[:n_groups], strict=True)
    lists = zip(layout.lists, numbers[n_groups:], matrices[n_groups:], strict=True)
    entries = [_entries(*part) for part in lists]
    _cut_texts(layout, entries, tails)
    return Tiles([_rows(*part) for part in groups], entries)


def _matrix(data: bytes, width: int) -> Ints:
    """Rows of 8-byte numbers as columns, each contiguous."""
    return np.frombuffer(data, "<i8").reshape(-1, width // 8).T.copy()


def _rows(group: TileGroup, keys: Ints, matrix: Ints) -> TileRows:
    if not len(keys):
        return empty_rows(group)
    fields = enumerate(group.fields, 1)
    state = {field: matrix[i].view(np.float64) if field.is_float else matrix[i] for i, field in fields}
    return TileRows(keys, matrix[0], state)


def _entries(held: EntryList, keys: Ints, matrix: Ints) -> EntryRows:
    if not len(keys):
        return empty_entries(held)
    text = np.empty(len(keys), object) if held.has_text else None
    return EntryRows(keys, dict(zip(COLUMNS[held.kind], matrix, strict=True)), text)


def _cut_texts(layout: TileLayout, entries: Sequence[EntryRows], tails: Sequence[bytes]) -> None:
    """Fills in the strings: each key's tail holds those of the first list, then those of the next."""
    done = [0] * len(tails)
    for held, rows in zip(layout.lists, entries, strict=True):
        if not held.has_text or rows.text is None:
            continue
        for i, (key, size) in enumerate(zip(rows.keys.tolist(), rows.columns["value"].tolist(), strict=True)):
            rows.text[i] = tails[key][done[key] : done[key] + size]
            done[key] += size


def encode_tiles(layout: TileLayout, headers: Sequence[bytes], tiles: Tiles) -> list[bytes]:
    """One value per header."""
    n = len(headers)
    every: list[TileRows | EntryRows] = [*tiles.rows, *tiles.entries]
    bounds = [np.searchsorted(part.keys, np.arange(n + 1)) for part in every]
    counts = np.array([np.diff(bound) for bound in bounds], "<u4").reshape(len(bounds), n).T.tobytes()
    data = [_group_bytes(*pair) for pair in zip(layout.groups, tiles.rows, strict=True)]
    data += [_list_bytes(*pair) for pair in zip(layout.lists, tiles.entries, strict=True)]
    cuts = [(bound * width).tolist() for bound, width in zip(bounds, layout.widths, strict=True)]
    tails = _texts(layout, tiles.entries, bounds[len(layout.groups) :], n)
    size = 4 * len(every)
    return [
        b"".join(
            [
                header,
                counts[k * size : (k + 1) * size],
                *[part[cut[k] : cut[k + 1]] for part, cut in zip(data, cuts, strict=True)],
                tails[k],
            ]
        )
        for k, header in enumerate(headers)
    ]


def _group_bytes(group: TileGroup, rows: TileRows) -> bytes:
    return _packed([rows.tiles, *[rows.state[field].view(np.int64) for field in group.fields]])


def _list_bytes(held: EntryList, rows: EntryRows) -> bytes:
    return _packed([rows.columns[name] for name in COLUMNS[held.kind]])


def _packed(columns: Sequence[NDArray[Any]]) -> bytes:
    return np.stack(columns, axis=1).astype("<i8", copy=False).tobytes()


def _texts(layout: TileLayout, entries: Sequence[EntryRows], bounds: Sequence[Ints], n: int) -> list[bytes]:
    tails = [b""] * n
    for held, rows, bound in zip(layout.lists, entries, bounds, strict=True):
        if held.has_text and rows.text is not None:
            for k, (start, stop) in enumerate(zip(bound[:-1].tolist(), bound[1:].tolist(), strict=True)):
                if stop > start:
                    tails[k] += b"".join(rows.text[start:stop].tolist())
    return tails
