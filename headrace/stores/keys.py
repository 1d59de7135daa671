"""Every key in the online store, on one page.

    headrace:PROJECT:ENTITIES:VALUES        hash, one per entity key; field = one view's layout
    headrace.catalog:PROJECT                string, the catalog as JSON
    headrace.markers:PROJECT                hash, what is applied, archived and ready (see stores/markers.py)
    headrace.markers:PROJECT:N              the same on a cluster, one per shard (see stores/cluster.py)
    headrace.stream:PROJECT:SOURCE:PART     stream, the events of one partition of one source; internal ones have a
                                            name with a slash (writes/VIEW, archive/letters, archive/served)
    headrace.forgotten:PROJECT              hash, what was forgotten (see stores/tombstones.py)
    headrace.lease:PROJECT:ROLE             string, who holds a role
    headrace.counters:PROJECT               hash, what the worker counts (see stores/counters.py)
    headrace.replay:PROJECT:SOURCE          hash, what a replay on a cluster is about to do (see read/replay_once.py)

Names and values are percent-escaped, so that a key can be split again and two keys never meet; composite keys
are sorted by entity name and joined by commas. No key holds a brace: Redis Cluster would hash only what
stands between braces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.catalog.definitions import FeatureView

__all__ = [
    "catalog_key",
    "counters_key",
    "entity_key",
    "entity_keys",
    "entity_prefix",
    "escape",
    "escape_all",
    "forgotten_key",
    "group_keys",
    "layout_field",
    "lease_key",
    "markers_key",
    "replay_key",
    "replay_role",
    "stream_key",
]

_SPECIALS = "%:,{}\x00\r\n"
_ESCAPES = str.maketrans({c: f"%{ord(c):02X}" for c in _SPECIALS})
_SPECIAL = re.compile(f"[{_SPECIALS}]")


def escape(text: str) -> str:
    """`text` without the characters that keys give a meaning to; injective."""
    return text.translate(_ESCAPES)


def entity_prefix(project: str, entities: Sequence[str]) -> str:
    """All of an entity key but its values; `entities` are the view's entity names, in any order."""
    return f"headrace:{escape(project)}:{','.join(escape(name) for name in sorted(entities))}:"


def entity_key(prefix: str, values: Sequence[int | str]) -> bytes:
    """The key of one entity; `values` in the order of the sorted entity names."""
    return (prefix + ",".join(escape(str(value)) for value in values)).encode()


def entity_keys(prefix: str, columns: Sequence[pa.Array]) -> pa.Array:
    """`entity_key` of every row (binary), none of whose values is null; `columns` as in `group_keys`."""
    texts = [_escaped_texts(column.cast(pa.string())) for column in columns]
    joined = pc.binary_join_element_wise(*texts, ",") if len(texts) > 1 else texts[0]
    return pc.binary_join_element_wise(pa.scalar(prefix), joined, "").cast(pa.binary())


def _escaped_texts(texts: pa.Array) -> pa.Array:
    if not pc.any(pc.match_substring_regex(texts, f"[{_SPECIALS}]")).as_py():
        return texts
    for c in _SPECIALS:  # the percent sign first, for escapes have one
        texts = pc.replace_substring(texts, c, f"%{ord(c):02X}")
    return texts


def group_keys(prefix: str, columns: Sequence[pa.Array]) -> tuple[NDArray[np.int64], list[bytes]]:
    """The distinct entity keys of n rows: a code per row (-1 where a join key is null) and the key of every code.

    `columns` are the join key columns in the order of the sorted entity names.
    """
    encoded = [pc.dictionary_encode(column) for column in columns]
    if len(encoded) == 1:
        return np.asarray(encoded[0].indices.fill_null(-1)).astype(np.int64), _keys(prefix, [encoded[0].dictionary])
    codes = np.zeros(len(columns[0]), np.int64)
    missing = np.zeros(len(codes), np.bool_)
    for part in encoded:
        codes = codes * max(len(part.dictionary), 1) + np.asarray(part.indices.fill_null(0))
        codes = np.unique(codes, return_inverse=True)[1]
        missing |= np.asarray(part.indices.is_null())
    _, first, inverse = np.unique(codes[~missing], return_index=True, return_inverse=True)
    rows = pa.array(np.flatnonzero(~missing)[first])
    grouped = np.full(len(codes), -1, np.int64)
    grouped[~missing] = inverse
    return grouped, _keys(prefix, [column.take(rows) for column in columns])


def _keys(prefix: str, columns: Sequence[pa.Array]) -> list[bytes]:
    """`entity_key` of every row, none of whose values is null."""
    texts = [_escaped(column) for column in columns]
    rows = texts[0] if len(texts) == 1 else [",".join(parts) for parts in zip(*texts, strict=True)]
    return ("\n".join([prefix + row for row in rows])).encode().split(b"\n") if rows else []


def _escaped(column: pa.Array) -> list[str]:
    return escape_all(column.to_pylist())


def escape_all(values: Sequence[int | str]) -> list[str]:
    """`escape` of every value's text; they are of one type."""
    texts = [str(value) for value in values]
    if (values and type(values[0]) is int) or not _SPECIAL.search("".join(texts)):
        return texts
    return [escape(text) for text in texts]


def layout_field(view: FeatureView) -> str:
    """The hash field that holds this layout of `view`."""
    return f"{view.name}@{view.fingerprint}.{view.generation}"


def catalog_key(project: str) -> str:
    return f"headrace.catalog:{escape(project)}"


def markers_key(project: str) -> str:
    return f"headrace.markers:{escape(project)}"


def counters_key(project: str) -> str:
    return f"headrace.counters:{escape(project)}"


def forgotten_key(project: str) -> str:
    return f"headrace.forgotten:{escape(project)}"


def stream_key(project: str, source: str, partition: int) -> str:
    return f"headrace.stream:{escape(project)}:{escape(source)}:{partition}"


def replay_key(project: str, source: str) -> str:
    return f"headrace.replay:{escape(project)}:{escape(source)}"


def replay_role(source: str) -> str:
    """The role of whoever replays the dead letters of a source."""
    return f"replay:{source}"


def lease_key(project: str, role: str) -> str:
    return f"headrace.lease:{escape(project)}:{role}"
