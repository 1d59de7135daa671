"""The copies of the markers, one per shard: their keys, and one reply of what they say.

The markers' key stands for numbered keys, KEY:0, KEY:1, ... Copy 0 names the others (field `copies`), so that all
processes know the same ones whatever slots move; a store that no worker has seen has the first that hash to each shard.
Copy 0 decides: a command with a condition is done there first, and elsewhere only if it was done there.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

__all__ = [
    "COPIES",
    "OUTCOMES",
    "SHARD",
    "SLOTS",
    "as_bytes",
    "combined",
    "copy_key",
    "first_number",
    "first_numbers",
    "key_place",
    "nothing",
    "on_copy",
    "slot_of",
]

SLOTS = 16_384
COPIES, SHARD = b"copies", b"shard"
OUTCOMES = (b"moved", b"lost", b"behind")
"""What scripts on the markers answer that did nothing."""
SCRIPTS = ("EVAL", "EVALSHA")
_MARKERS = b"headrace.markers:"


def slot_of(key: bytes) -> int:
    """The slot of a key that holds no brace."""
    return crc_hqx(key, 0) % SLOTS


def as_bytes(value: Any) -> bytes:
    """A part of a command as it is sent."""
    return value if isinstance(value, bytes) else str(value).encode()


def key_place(args: Sequence[Any]) -> int | None:
    """Where a command on the markers has their key, None for another command."""
    place = 3 if args[0] in SCRIPTS else 1
    if len(args) > place and as_bytes(args[place]).startswith(_MARKERS):
        return place
    return None


def on_copy(args: Sequence[Any], place: int, copy: bytes) -> list[Any]:
    """The command on one copy."""
    return [*args[:place], copy, *args[place + 1 :]]


def copy_key(key: bytes, number: int) -> bytes:
    """The key of one copy."""
    return b"%b:%d" % (key, number)


def first_number(key: bytes, owner: str, owners: Mapping[int, str]) -> int:
    """The first copy that hashes to a slot of `owner`; `owners` says whose each slot is."""
    number = 0
    while owners.get(slot_of(copy_key(key, number))) != owner:
        number += 1
    return number


def first_numbers(key: bytes, owners: Mapping[int, str]) -> list[int]:
    """The first copy of every shard, ascending."""
    return sorted({first_number(key, owner, owners) for owner in set(owners.values())} | {0})


def nothing(args: Sequence[Any]) -> Any:
    """What a shard without a copy replies to a read, for it vouches for nothing; None for what is no read."""
    if args[0] == "HMGET":
        return [None] * len(args[2:])
    return {"HGETALL": {}, "HKEYS": []}.get(args[0])


def combined(args: Sequence[Any], replies: Sequence[Any]) -> Any:
    """One reply of the copies' replies to a command on the markers, copy 0's being the first."""
    if args[0] == "HGETALL":
        fields = dict.fromkeys(field for reply in replies for field in reply)
        held = {field: _combined_field(field, [reply.get(field) for reply in replies]) for field in fields}
        return {field: value for field, value in held.items() if value is not None}
    if args[0] == "HMGET":
        fields_and_values = zip(args[2:], zip(*replies, strict=True), strict=True)
        return [_combined_field(as_bytes(field), values) for field, values in fields_and_values]
    if args[0] == "HGET":
        return _combined_field(as_bytes(args[2]), replies)
    if args[0] == "HKEYS":
        return list(dict.fromkeys(field for reply in replies for field in reply))
    if args[0] in SCRIPTS:
        outcome = next((word for word in OUTCOMES if word in replies), None)
        if outcome is not None:
            return outcome
        return None if None in replies else min(replies, key=_place)
    return max(replies)


def _combined_field(field: bytes, values: Sequence[bytes | None]) -> bytes | None:
    kind = field.partition(b"|")[0].decode()
    known = [value for value in values if value is not None]
    if kind == "layouts":
        return values[0]
    if len(set(values)) == 1 or not known:
        return values[0]
    if kind in ("gap", "loss"):
        return max(known, key=len)
    if kind in ("trimmed", "writing"):
        return max(known, key=_place)
    if len(known) < len(values):
        return None
    if kind in ("source", "archived"):
        return min(known, key=_place)
    return max(known, key=_complete_from) if kind == "view" else None


def _place(value: bytes) -> tuple[int, int]:
    try:
        held = orjson.loads(value)
        return int(held["offset"]), int(held["index"])
    except (TypeError, KeyError, ValueError):
        return 0, 0


def _complete_from(value: bytes) -> int:
    """Of two statements that are being replaced the later counts, which promises less."""
    moment = orjson.loads(value)["complete_from_us"]
    return -(1 << 63) if moment is None else int(moment)
