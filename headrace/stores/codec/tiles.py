"""The bytes of a windowed view's value.

After the header, little-endian:
    u32  for every tile group, then for every entry list: its number of rows
    per tile group, per row: i64 tile, then one 8-byte state per field, in the group's order
    per entry list, per row: one i64 per column of its kind (windows/entries.py), in their order
    per list of strings: their bytes, one after another; a string's `value` is its length
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from headrace.catalog.definitions import Aggregation, FeatureView
from headrace.stores.codec.header import HEAD_BYTES, POSITION_BYTES
from headrace.windows.entries import COLUMNS, EntryList, EntryRows, empty_entries, entry_lists
from headrace.windows.suffix_tiles import TileGroup, TileRows, empty_rows, tile_groups
from headrace.windows.suffix_tiles import columns_of as tile_columns

__all__ = ["TileLayout", "Tiles", "columns_of", "decode_tiles", "encode_tiles", "tile_layout"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


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


def columns_of(layout: TileLayout) -> set[str]:
    """The source's columns that the state is made from."""
    return tile_columns(layout.groups) | {held.column for held in layout.lists}


def decode_tiles(layout: TileLayout, blobs: Sequence[bytes | None]) -> Tiles:
    """The values of `blobs` as arrays; None is the value of no event."""
    held = [blob for blob in blobs if blob is not None]
    places = np.arange(len(blobs))
    if len(held) < len(blobs):
        places = np.array([k for k, blob in enumerate(blobs) if blob is not None], np.int64)
    data, starts = _aligned(layout, held)
    at, counts = starts + HEAD_BYTES, np.empty((len(layout.widths), len(held)), np.int64)
    at += POSITION_BYTES * data.view("<u2")[starts // 2 + 1].astype(np.int64)
    for i in range(len(layout.widths)):
        counts[i] = data.view("<u4")[at // 4 + i]
    word = (at + 4 * len(layout.widths)) // 8
    words, parts = data.view("<i8"), []
    for size, width in zip(counts, layout.widths, strict=True):
        parts.append((np.repeat(places, size), _columns(words, word, size, width // 8)))
        word = word + size * (width // 8)
    n_groups = len(layout.groups)
    rows = [_rows(group, *part) for group, part in zip(layout.groups, parts[:n_groups], strict=True)]
    entries = [_entries(listed, *part) for listed, part in zip(layout.lists, parts[n_groups:], strict=True)]
    if any(listed.has_text for listed in layout.lists):
        ends = (word * 8 - starts).tolist()
        tails = dict(zip(places.tolist(), [blob[end:] for blob, end in zip(held, ends, strict=True)], strict=True))
        _cut_texts(layout, entries, tails)
    return Tiles(rows, entries)


def _aligned(layout: TileLayout, held: Sequence[bytes]) -> tuple[Bytes, Ints]:
    """All values one after another, and where each starts: so that the rows of each lie on whole words."""
    before = -(HEAD_BYTES + 4 * len(layout.widths)) % 8  # the bytes of a position are whole words
    sizes = np.fromiter(map(len, held), np.int64, len(held))
    pads = -sizes % 8
    if (pads == before).all():
        joined = bytes(before) + bytes(before).join(held)
    else:
        zeros = [bytes(n) for n in range(8)]
        joined = b"".join([bytes(before), *[blob + zeros[pad] for blob, pad in zip(held, pads.tolist(), strict=True)]])
    starts = before + np.cumsum(sizes + pads) - sizes - pads
    return np.frombuffer(joined + bytes(-len(joined) % 8), np.uint8), starts


def _columns(words: Ints, first: Ints, size: Ints, width: int) -> Ints:
    """Columns of 8-byte numbers: `size` rows of `width` words each from each of `first` on."""
    before = np.cumsum(size) - size
    at = np.arange(int(size.sum())) * width + np.repeat(first - before * width, size)
    matrix = np.empty((width, len(at)), np.int64)
    for column in matrix:
        np.take(words, at, out=column)
        at += 1
    return matrix


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


def _cut_texts(layout: TileLayout, entries: Sequence[EntryRows], tails: Mapping[int, bytes]) -> None:
    """Fills in the strings: each key's tail holds those of the first list, then those of the next."""
    done = dict.fromkeys(tails, 0)
    for held, rows in zip(layout.lists, entries, strict=True):
        if not held.has_text or rows.text is None:
            continue
        for i, (key, size) in enumerate(zip(rows.keys.tolist(), rows.columns["value"].tolist(), strict=True)):
            rows.text[i] = tails[key][done[key] : done[key] + size]
            done[key] += size


def encode_tiles(layout: TileLayout, headers: Sequence[bytes], tiles: Tiles) -> list[bytes]:
    """One value per header."""
    n, n_parts = len(headers), len(layout.widths)
    every: list[TileRows | EntryRows] = [*tiles.rows, *tiles.entries]
    bounds = [np.searchsorted(part.keys, np.arange(n + 1)) for part in every]
    sizes = np.array([np.diff(bound) for bound in bounds], np.int64).reshape(n_parts, n)
    widths = np.array(layout.widths, np.int64)
    before = 4 * (n_parts % 2)  # so that the rows of each lie on whole words
    spans = before + 4 * n_parts + (sizes * widths[:, None]).sum(axis=0)
    starts = np.cumsum(spans) - spans
    data = np.zeros(int(spans.sum()), np.uint8)
    at = starts + before
    for i, size in enumerate(sizes):
        data.view("<u4")[at // 4 + i] = size
    word, words = (at + 4 * n_parts) // 8, data.view("<i8")
    for columns, size in zip(_state_columns(layout, tiles), sizes, strict=True):
        _put_columns(words, word, size, columns)
        word = word + size * len(columns)
    raw, cuts = data.tobytes(), zip(headers, at.tolist(), (starts + spans).tolist(), strict=True)
    values = [header + raw[start:end] for header, start, end in cuts]
    if not any(listed.has_text for listed in layout.lists):
        return values
    tails = _texts(layout, tiles.entries, bounds[len(layout.groups) :], n)
    return [value + tail for value, tail in zip(values, tails, strict=True)]


def _state_columns(layout: TileLayout, tiles: Tiles) -> list[list[Ints]]:
    """Of every part its columns of 8-byte numbers, in the order of the bytes."""
    groups = zip(layout.groups, tiles.rows, strict=True)
    lists = zip(layout.lists, tiles.entries, strict=True)
    columns = [[rows.tiles, *[rows.state[field].view(np.int64) for field in group.fields]] for group, rows in groups]
    return columns + [[rows.columns[name] for name in COLUMNS[held.kind]] for held, rows in lists]


def _put_columns(words: Ints, first: Ints, size: Ints, columns: Sequence[Ints]) -> None:
    """The inverse of `_columns`."""
    width, before = len(columns), np.cumsum(size) - size
    at = np.arange(int(size.sum())) * width + np.repeat(first - before * width, size)
    for column in columns:
        words[at] = column
        at += 1


def _texts(layout: TileLayout, entries: Sequence[EntryRows], bounds: Sequence[Ints], n: int) -> list[bytes]:
    tails = [b""] * n
    for held, rows, bound in zip(layout.lists, entries, bounds, strict=True):
        if held.has_text and rows.text is not None:
            for k, (start, stop) in enumerate(zip(bound[:-1].tolist(), bound[1:].tolist(), strict=True)):
                if stop > start:
                    tails[k] += b"".join(rows.text[start:stop].tolist())
    return tails
