"""Gaps: places where the log misses events between what a consumer holds and what the stream still has.

Fields of the markers' hash (see markers.py):
    gap|ROLE|NAME|PARTITION   what the worker or the archiver stopped at, in one line
    loss|NAME|PARTITION       losses that somebody accepted, a JSON list, the newest last
Running totals show a gap exactly: the entry after a consumer's place was preceded by as many events as it counts. A
place whose total nobody knows any more (0, of a store that lost it) is held against what was trimmed alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, cast

import numpy as np
import orjson
import redis
from numpy.typing import NDArray

from headrace.errors import StreamGapError
from headrace.stores.keys import markers_key
from headrace.stores.logs import LogReader
from headrace.stores.markers import Applied, Markers
from headrace.stores.stream import Entry, EntryHead

__all__ = [
    "ROLES",
    "Gap",
    "Loss",
    "Role",
    "Stops",
    "any_within",
    "continue_at",
    "find_gap",
    "follows",
    "gap_field",
    "goes_on",
    "losses",
    "record_loss",
]

Place = tuple[str, int]
Role = Literal["worker", "archiver"]
ROLES: tuple[Role, ...] = ("worker", "archiver")
REMEDY = "run headrace recover"


@dataclass(frozen=True, slots=True)
class Gap:
    """Events after `at` that the stream no longer has: those before `next`, or all (None). `lost` is how many, None
    where only what is left could tell; `newest` is the stream's newest entry. `is_other`: a topic holds other messages
    than those that were read of it."""

    source: str
    partition: int
    at: Applied
    next: EntryHead | None
    newest: EntryHead | None
    is_other: bool = False

    @property
    def is_shrunk(self) -> bool:
        """Whether the stream counts fewer events before `next` than the consumer holds."""
        return self.next is not None and self.next.before < self.at.total

    @property
    def lost(self) -> int | None:
        if self.next is None or self.is_shrunk or (self.at.offset and not self.at.total):
            return None
        return self.next.before - self.at.total

    def __str__(self) -> str:
        place = f"The stream of {self.source!r}, partition {self.partition},"
        stands = (
            f"this consumer stands at {self.at}, after {self.at.total:,} events: what is missing is lost or unknown"
        )
        if self.is_other:
            return f"{place} holds other messages than those that were archived of it: it was made again; {stands}"
        if self.next is None:
            ends = f"ends at {self.newest.offset}, after {self.newest.total:,} events" if self.newest else "is empty"
            return f"{place} {ends}; {stands}"
        if self.is_shrunk:
            return f"{place} counts {self.next.before:,} events before {self.next.offset}; {stands}"
        events = "events" if self.lost is None else f"{self.lost:,} events"
        return f"{place} no longer has the {events} after {self.at} and before {self.next.offset}"


@dataclass(frozen=True, slots=True)
class Loss:
    """A gap that somebody accepted: consumers at or after `after` go on behind `upto`, which `total` events precede
    (None: they go on as they are); `events` is how many were lost, None where nobody knows."""

    after: int
    upto: int
    total: int | None
    events: int | None
    at_us: int


def follows(at: Applied, following: Entry | EntryHead) -> bool:
    """Whether no event stands between `at` and the next entry, as far as the running totals tell: between a topic's
    messages offsets may be missing, and its reader tells what is lost."""
    if isinstance(following, Entry) and following.arrived_us is not None:
        return True
    return (at.offset > 0 and not at.total) or following.total - following.count == at.total


def find_gap(stream: LogReader, markers: Markers, source: str, partition: int, at: Applied) -> Gap | None:
    """The gap between `at` and the next entry of the stream, None where it goes on without one."""
    following = stream.first_after(source, partition, at.offset)
    known = not at.offset or at.total > 0
    if following is not None and known:
        return None if follows(at, following) else Gap(source, partition, at, following, following)
    trimmed = markers.applied("trimmed", [(source, partition)])[source, partition]
    if trimmed is not None and trimmed.offset > at.offset:
        following = stream.first_after(source, partition, at.offset)
        return Gap(source, partition, at, following, stream.head(source, partition))
    if following is not None:
        counted = _counted_upto(stream, source, partition, at, trimmed)
        return None if following.before <= counted else Gap(source, partition, at, following, following)
    if known:
        newest = stream.head(source, partition)
        if (newest.total if newest else 0) < at.total:
            return Gap(source, partition, at, None, newest)
    return None


def _counted_upto(stream: LogReader, source: str, partition: int, at: Applied, trimmed: Applied | None) -> int:
    """How many events the stream counted up to a place of whose count nobody knows: those up to the entry before it, or
    that were trimmed before it. A stream that began anew since has none of them."""
    previous = stream.last_upto(source, partition, at.offset)
    if previous is not None:
        return previous.total
    return trimmed.total if trimmed is not None else 0


def goes_on(
    stream: LogReader, markers: Markers, source: str, partition: int, at: Applied, following: Entry | EntryHead
) -> bool:
    """Whether `following` is what comes next after `at`; asks the stream where `at` has no count to tell by."""
    is_uncounted = at.offset > 0 and not at.total
    if not is_uncounted or following.total == following.count:
        return follows(at, following)
    return follows(at, following) and find_gap(stream, markers, source, partition, at) is None


def continue_at(stream: LogReader, markers: Markers, source: str, partition: int, at: Applied) -> Applied:
    """Where a consumer at `at` goes on: there, or behind a gap that was accepted.

    Raises StreamGapError for any other gap.
    """
    gap = find_gap(stream, markers, source, partition, at)
    if gap is None:
        return at
    for loss in reversed(losses(stream.store, stream.project, source, partition)):
        if loss.total is None:
            continue
        behind = replace(at, offset=max(loss.upto, at.offset), index=0, total=loss.total)
        if loss.after <= at.offset <= loss.upto and find_gap(stream, markers, source, partition, behind) is None:
            return behind
    raise StreamGapError(f"{gap}; {REMEDY}.", gap)


def loss_field(source: str, partition: int) -> str:
    return f"loss|{source}|{partition}"


def losses(store: redis.Redis, project: str, source: str, partition: int) -> list[Loss]:
    """The losses that were accepted in a partition, oldest first."""
    raw = cast(bytes | None, store.hget(markers_key(project), loss_field(source, partition)))
    return [Loss(**held) for held in orjson.loads(raw)] if raw else []


def any_within(offsets: NDArray[np.int64], accepted: Iterable[Loss]) -> bool:
    """Whether an entry at one of these offsets was accepted as lost."""
    return any(bool(((offsets > loss.after) & (offsets <= loss.upto)).any()) for loss in accepted)


def record_loss(store: redis.Redis, project: str, source: str, partition: int, loss: Loss) -> None:
    """Accepts a loss; the consumers that stopped at it go on."""
    held = [asdict(one) for one in [*losses(store, project, source, partition), loss]]
    store.hset(markers_key(project), loss_field(source, partition), orjson.dumps(held).decode())


def gap_field(role: Role, source: str, partition: int) -> str:
    return f"gap|{role}|{source}|{partition}"


class Stops:
    """Where one consumer has stopped, as it says it to everybody."""

    def __init__(self, store: redis.Redis, project: str, role: Role) -> None:
        self._store, self._key, self._role = store, markers_key(project), role
        self._stated = False
        self.held: dict[Place, str] = {}

    def set(self, stopped: Mapping[Place, str]) -> None:
        """States all places that it has stopped at, if they changed; what it, or the one before it, stated is taken
        back."""
        if self._stated and stopped == self.held:
            return
        prefix = f"gap|{self._role}|"
        stale = [
            field for field in cast(list[bytes], self._store.hkeys(self._key)) if field.startswith(prefix.encode())
        ]
        fields = {gap_field(self._role, *place): text for place, text in stopped.items()}
        gone = [field.decode() for field in stale if field.decode() not in fields]
        if gone:
            self._store.hdel(self._key, *gone)
        if fields:
            self._store.hset(self._key, mapping=fields)
        self.held, self._stated = dict(stopped), True
