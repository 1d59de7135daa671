"""The position protocol as a small model: who may write what when, so that every event counts once.

The model holds what matters and nothing else. A *shard* is a store that answers one command at a time and may lose
the tail of what it acknowledged (a failover to a replica that lags), everything (a restart without a disk) or
everything without dropping a connection (FLUSHALL). The *archive* is a table that loses nothing. Actors are
generators: each `yield` is one command; between two commands an actor may freeze for as long as it likes, die, or
find its connection gone. There is no lease: two workers run at once all the time, which is the worst a lease allows.

A value holds the very events that were merged into it, behind the real header of headrace.stores.codec.header. So
"exactly once" is a comparison of lists. `Rules` are the choices that make the protocol right; each may be made wrong.

What a failover of one of several shards loses from a stream may already stand in values of another shard: such an
event is in no log any more, and may remain there, at most once.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from zlib import crc32

import orjson

from headrace.stores.codec.header import ROWS, TILES, Header, build_of, header_size, pack_header, unpack_header


@dataclass(frozen=True)
class Rules:
    """The protocol; the defaults are right."""

    compare: Literal["header", "positions", "nothing"] = "header"
    """What a write's compare-and-set compares with what the writer read."""
    merged_up_to: Literal["position", "batch number"] = "position"
    """What a value says of itself; with batch numbers, a fencing token stands in for the comparison."""
    raise_marker: Literal["after", "before"] = "after"
    """When, seen from the acknowledgement of the values."""
    resume: Literal["oldest", "newest"] = "oldest"
    """Which of the shards' markers a worker starts from."""
    builds: bool = True
    """Values and markers belong to a build; those of another are none."""
    guarded: bool = True
    """A marker rises only from where the worker saw it, and while no view was completed that the worker may not know;
    a view is completed only for the build that the worker built, and only if no marker is beyond what it built."""
    told_apart_by: Literal["time", "count"] = "time"
    """What a marker remembers of the last completion of a view: a count begins anew in a store that was emptied, and
    comes to the same numbers again."""
    archiver_looks: Literal["again after it", "before it", "after it and at every start"] = "again after it"
    """When the archiver sees whether the stream still has what it commits. A stream that lost it in between may have
    led workers past it: every view is then built anew. That a commit may be in doubt is noted first, beside the tables,
    so that the next archiver asks if this one dies. (To ask at every start is right too, and builds views twice.)"""
    notes_doubt: bool = True
    """Whether it is noted; else only the archiver that made a commit asks."""
    lookup_refuses_newer: bool = True
    """A lookup that meets a value of a newer build than the markers told of is made again; else the value is none."""


@dataclass(frozen=True)
class Event:
    name: str
    time: int
    card: str
    shop: str
    position: tuple[int, int, int]
    """(partition, offset, index)."""


@dataclass(frozen=True)
class View:
    """`windowed` merges every event; otherwise the newest row wins, and a batch job may write rows as well."""

    name: str
    key: Literal["card", "shop"]
    windowed: bool


SPEND, LATEST, VISITS = View("spend", "card", True), View("latest", "shop", False), View("visits", "shop", True)
FIRST_CATALOG, SECOND_CATALOG = (SPEND, LATEST), (SPEND, LATEST, VISITS)
NOTHING = 0


class Lost(Exception):
    """The connection is gone, or the store holds less than it did: start again from the markers."""


Command = tuple[int, Callable[["World"], Any]]
"""Where (a shard's number, or ARCHIVE) and what happens there, at once."""
Acting = Generator[Command, Any, Any]
ARCHIVE = -1


@dataclass(frozen=True)
class Written:
    """One write: the values before and after it, and what a batch job wrote with it."""

    before: dict[str, Any]
    after: dict[str, Any]
    row: Any


@dataclass
class Shard:
    """A store with the order of its writes, so that the last of them can be lost."""

    data: dict[str, Any] = field(default_factory=dict)
    writes: list[Written] = field(default_factory=list)
    connections: int = 0
    """Raised when all connections break."""

    def put(self, key: str, value: Any, row: Any = None) -> None:
        """Sets `key`; `row` is what a batch job wrote with it."""
        self.put_all({key: value}, row)

    def put_all(self, values: dict[str, Any], row: Any = None) -> None:
        """Sets several keys, or removes those whose value is None, as one write that is lost as one."""
        self.writes.append(Written({key: self.data.get(key) for key in values}, values, row))
        self._set(values)

    def _set(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            self.data.pop(key, None)
            if value is not None:
                self.data[key] = value

    def fail_over(self, lost: int) -> None:
        """The replica that takes over lacks the last `lost` writes."""
        for _ in range(min(lost, len(self.writes))):
            self._set(self.writes.pop().before)
        self.connections += 1

    def flush(self) -> None:
        """FLUSHALL, which the replicas got too: nobody's connection notices."""
        self.data, self.writes = {}, []

    def restart_empty(self) -> None:
        self.flush()
        self.connections += 1


class World:
    """Shards, archive, catalog, and what the outside knows: every event ever acknowledged."""

    def __init__(self, shards: int = 1, partitions: int = 1) -> None:
        self.shards = [Shard() for _ in range(shards)]
        self.partitions = range(partitions)
        self.archive: dict[int, list[Event]] = {p: [] for p in self.partitions}
        self.doubts: dict[int, int] = {}
        self.catalog: tuple[View, ...] = FIRST_CATALOG
        self.values_state_positions = True
        self.clock = 0
        self.lost: set[str] = set()
        self.violations: list[str] = []

    def tick(self) -> int:
        """Time never stands still: neither offsets nor builds come twice, whichever replica gives them."""
        self.clock += 1
        return self.clock

    def shard_of(self, key: str) -> int:
        return crc32(key.encode()) % len(self.shards)

    def home(self, partition: int) -> int:
        """The shard of a partition's stream."""
        return partition % len(self.shards)

    def stream(self, partition: int) -> tuple[Event, ...]:
        held: tuple[Event, ...] = self.shards[self.home(partition)].data.get(f"stream|{partition}", ())
        return held

    def push(self, partition: int, rows: Iterable[tuple[int, str, str]]) -> None:
        """Appends one entry of events; returned means acknowledged."""
        offset = self.tick()
        events = [Event(f"e{offset}.{i}", *row, (partition, offset, i)) for i, row in enumerate(rows)]
        self.shards[self.home(partition)].put(f"stream|{partition}", (*self.stream(partition), *events))

    def log(self) -> list[Event]:
        """What is archived or in the stream."""
        events = {e.position: e for p in self.partitions for e in (*self.archive[p], *self.stream(p))}
        return [events[position] for position in sorted(events)]

    def lose(self, shard: int, action: Callable[[Shard], None]) -> None:
        """Lets a shard lose data, and notes which events no log holds now."""
        before = {e.name for e in self.log()}
        action(self.shards[shard])
        self.lost |= before - {e.name for e in self.log()}

    def steady(self, view: View, key: str) -> list[Event]:
        """The events of a key that were acknowledged and never lost, in position order."""
        return [e for e in self.log() if e.name not in self.lost and getattr(e, view.key) == key]


# What a store or the archive does at once.


def get(shard: int, *keys: str) -> Command:
    return shard, lambda world: [world.shards[shard].data.get(key) for key in keys]


def read_stream(world: World, partition: int, after: int, upto: float, entries: int = 99) -> Command:
    """Whole entries with after < offset <= upto."""

    def run(world: World) -> list[Event]:
        found = [e for e in world.stream(partition) if after < e.position[1] <= upto]
        offsets = sorted({e.position[1] for e in found})[:entries]
        return [e for e in found if e.position[1] in offsets]

    return world.home(partition), run


def read_archive(partition: int, after: int, upto: float) -> Command:
    return ARCHIVE, lambda world: [e for e in world.archive[partition] if after < e.position[1] <= upto]


def archived_offset(partition: int) -> Command:
    return ARCHIVE, lambda world: max((e.position[1] for e in world.archive[partition]), default=NOTHING)


def commit(partition: int, events: Sequence[Event]) -> Command:
    """Appends what lies beyond the table's application version, which then is the last offset."""

    def run(world: World) -> None:
        held = max((e.position[1] for e in world.archive[partition]), default=NOTHING)
        world.archive[partition] += [e for e in events if e.position[1] > held]

    return ARCHIVE, run


def note_doubt(partition: int, upto: int) -> Command:
    """Beside the tables: the commit up to this offset may come after the stream has lost it (NOTHING: none may)."""
    return ARCHIVE, lambda world: world.doubts.update({partition: upto})


def doubt_of(partition: int) -> Command:
    return ARCHIVE, lambda world: world.doubts.get(partition, NOTHING)


def read_catalog() -> Command:
    return ARCHIVE, lambda world: world.catalog


def begin_build(shard: int, view: View) -> Command:
    """The build of a view on this shard, begun now unless it was."""

    def run(world: World) -> int:
        store = world.shards[shard]
        if f"build|{view.name}" not in store.data:
            store.put(f"build|{view.name}", world.tick())
        return int(store.data[f"build|{view.name}"])

    return shard, run


def forget_builds(shard: int, views: Sequence[View]) -> Command:
    def run(world: World) -> None:
        world.shards[shard].put_all({f"{what}|{view.name}": None for view in views for what in ("build", "ready")})

    return shard, run


@dataclass(frozen=True)
class Layouts:
    """What a shard's markers say at one moment: when a view was last completed, the build of every view begun, and
    which are ready."""

    completed: int
    builds: dict[View, int]
    ready: set[View]


def read_layouts(shard: int) -> Command:
    def run(world: World) -> Layouts:
        held = world.shards[shard].data
        builds = {view: held[f"build|{view.name}"] for view in SECOND_CATALOG if f"build|{view.name}" in held}
        ready = {view for view in SECOND_CATALOG if f"ready|{view.name}" in held}
        return Layouts(held.get("layouts", 0), builds, ready)

    return shard, run


def raise_marker(shard: int, name: str, to: int, seen: int, completed: int, rules: Rules) -> Command:
    """Raises a marker that is at `seen` at least, if no view was completed since `completed`; returns what it was,
    None if it was refused."""

    def run(world: World) -> int | None:
        store = world.shards[shard]
        before: int | None = store.data.get(name)
        if rules.guarded and (store.data.get("layouts", 0) != completed or (before or NOTHING) < seen):
            return None
        if before is None or before < to:
            store.put(name, to)
        return NOTHING if before is None else before

    return shard, run


def complete(shard: int, builds: dict[View, int], built: dict[int, int], rules: Rules) -> Command:
    """States that views are ready on this shard: they hold every event up to `built`, by partition."""

    def run(world: World) -> bool:
        store = world.shards[shard]
        lost = any(store.data.get(f"build|{view.name}") != build for view, build in builds.items())
        fresh = [view for view in builds if f"ready|{view.name}" not in store.data]
        behind = any(store.data.get(f"source|{partition}", NOTHING) > offset for partition, offset in built.items())
        if rules.guarded and (lost or (fresh and behind)):
            return False
        if fresh:
            moment = world.tick() if rules.told_apart_by == "time" else store.data.get("layouts", 0) + 1
            store.put_all({"layouts": moment, **{f"ready|{view.name}": True for view in fresh}})
        return True

    return shard, run


def compare_and_set(
    shard: int, key: str, expected: bytes | None, blob: bytes, rules: Rules, row: Any = None
) -> Command:
    def run(world: World) -> bool:
        store = world.shards[shard]
        held: bytes | None = store.data.get(key)
        if not _may_write(held, expected, blob, rules):
            return False
        store.put(key, blob, row)
        return True

    return shard, run


def _may_write(held: bytes | None, expected: bytes | None, blob: bytes, rules: Rules) -> bool:
    if rules.compare == "nothing":
        return True
    if rules.merged_up_to == "batch number":
        return held is None or _header(held).revision <= _header(blob).revision  # the fencing token
    if held is None or expected is None:
        return held is expected
    if rules.compare == "positions":
        return _header(held).positions == _header(expected).positions
    return held.startswith(expected[: header_size(expected)])


# Values.


def _header(blob: bytes) -> Header:
    return unpack_header(blob, blob[1])


def content(blob: bytes) -> Any:
    """Windowed: the names of the events merged, in that order. Newest: the row that won, in the order of rows."""
    return orjson.loads(blob[header_size(blob) :])


def field_of(view: View, key: str) -> str:
    return f"value|{view.name}|{key}"


def _of_build(blob: bytes | None, build: int) -> bytes | None:
    if blob is not None and build_of(blob) > build:
        raise Lost("somebody builds anew")
    return blob if blob is not None and build_of(blob) == build else None


def merged(view: View, blob: bytes | None, events: Sequence[Event], build: int, batch: int, token: int) -> bytes | None:
    """The value with `events` of one partition merged in; None where it stays. `batch` and `token` are 0 where
    positions say what is merged."""
    kind = TILES if view.windowed else ROWS
    held = _of_build(blob, build)
    header = Header(kind, build=build) if held is None else _header(held)
    place = (0, events[0].position[0])
    fresh = [e for e in events if ((batch, 0) if batch else e.position[1:]) > header.after(place)]
    position = (batch, 0) if batch else events[-1].position[1:]
    if view.windowed:
        if not fresh:
            return None
        value = (content(held) if held else []) + [e.name for e in fresh]
    else:
        value = max([e.time, 1, *e.position, e.name] for e in events)
        if held is not None and content(held) >= value:
            return None
    raised = header.raised(max(e.time for e in events), place, position)
    if token:
        raised = Header(kind, token, raised.newest_us, raised.positions, build)
    return pack_header(raised) + orjson.dumps(value)


def merged_row(blob: bytes | None, row: list[Any], build: int) -> bytes | None:
    """The value with a batch job's row, which has no position."""
    held = _of_build(blob, build)
    if held is not None and content(held) >= row:
        return None
    header = Header(ROWS, build=build) if held is None else _header(held)
    return pack_header(header.raised(row[0], None, (0, 0))) + orjson.dumps(row)


# Actors.


class Worker:
    """One life of a worker, from its start at the markers to its first doubt."""

    def __init__(self, world: World, rules: Rules, rng: random.Random) -> None:
        self.world, self.rules, self.rng = world, rules, rng
        self.shards = range(len(world.shards))
        self.applied: dict[int, int] = {}
        self.builds: dict[int, dict[View, int]] = {s: {} for s in self.shards}
        self.layouts: dict[int, Layouts] = {}
        self.known: dict[str, bytes] = {}
        self.token = 0

    def live(self) -> Acting:
        yield from self.start()
        while True:
            yield from self.step()

    def start(self) -> Acting:
        """Brings every view to one position per partition, building those that are not ready."""
        self.catalog = yield read_catalog()
        for shard in self.shards:
            for view in self.catalog:
                began = yield begin_build(shard, view)
                self.builds[shard][view] = began
            yield from self.know_layouts(shard)
        if self.rules.merged_up_to == "batch number":
            self.token = self.world.tick()
        for partition in self.world.partitions:
            yield from self.start_partition(partition)
        for shard in self.shards:
            completed = yield complete(shard, self.builds[shard], self.applied, self.rules)
            if not completed:
                raise Lost
            yield from self.know_layouts(shard)

    def know_layouts(self, shard: int) -> Acting:
        """Learns when a view was last completed; each that is must be known, in the build that this life writes."""
        self.layouts[shard] = yield read_layouts(shard)
        mine = {view: self.layouts[shard].builds.get(view) for view in self.catalog}
        if self.rules.guarded and (mine != self.builds[shard] or not self.layouts[shard].ready <= set(self.catalog)):
            raise Lost

    def start_partition(self, partition: int) -> Acting:
        seen, ready = [], set(self.catalog)
        for shard in self.shards:
            (mark,) = yield get(shard, f"source|{partition}")
            seen.append(mark or NOTHING)
            layouts = yield read_layouts(shard)
            ready &= {view for view in layouts.ready if layouts.builds.get(view) == self.builds[shard].get(view)}
        held = min(seen) if self.rules.resume == "oldest" else max(seen)
        archived = yield archived_offset(partition)
        reached = max(*seen, archived)  # the newest: no shard may state more than a view holds that becomes ready
        for views, after in (ready, held), (set(self.catalog) - ready, NOTHING):
            past = yield read_archive(partition, after, min(archived, reached))
            later = yield read_stream(self.world, partition, max(after, archived), reached)
            if views and (past or later):
                yield from self.write(partition, [*past, *later], views)
        yield from self.raise_markers(partition, reached, seen)
        self.applied[partition] = reached

    def step(self) -> Acting:
        """Applies the next entries of every partition."""
        if self.rng.random() < 0.2:
            yield from self.look_around()
        for partition in self.world.partitions:
            entries = self.rng.choice([1, 2, 5])
            events = yield read_stream(self.world, partition, self.applied[partition], float("inf"), entries)
            if not events:
                continue
            for shard in self.shards:
                (mark,) = yield get(shard, f"source|{partition}")
                if mark is None or mark < self.applied[partition]:
                    raise Lost
            end, seen = events[-1].position[1], [self.applied[partition]] * len(self.shards)
            if self.rules.raise_marker == "before":
                yield from self.raise_markers(partition, end, seen)
            yield from self.write(partition, events, set(self.catalog))
            if self.rules.raise_marker == "after":
                yield from self.raise_markers(partition, end, seen)
            self.applied[partition] = end

    def look_around(self) -> Acting:
        """Once in a while, whether events come or not: are the catalog and the builds still those at work?"""
        catalog = yield read_catalog()
        if catalog != self.catalog:
            raise Lost
        for shard in self.shards:
            layouts = yield read_layouts(shard)
            if {view: layouts.builds.get(view) for view in self.catalog} != self.builds[shard]:
                raise Lost

    def raise_markers(self, partition: int, to: int, seen: Sequence[int]) -> Acting:
        """Raises the marker of every shard, each `seen` at an offset before."""
        for shard in self.shards:
            completed = self.layouts[shard].completed
            before = yield raise_marker(shard, f"source|{partition}", to, seen[shard], completed, self.rules)
            if before is None or before < seen[shard]:
                raise Lost

    def write(self, partition: int, events: Sequence[Event], views: set[View]) -> Acting:
        """Merges events into all of their keys; returns when every write is acknowledged."""
        batch = 0
        if self.rules.merged_up_to == "batch number" and events:
            (last,) = yield get(self.world.home(partition), f"batch|{partition}")
            batch = (last or 0) + 1
        for view in sorted(views, key=lambda view: view.name):
            keys = sorted({getattr(e, view.key) for e in events})
            for key in self.rng.sample(keys, len(keys)):
                mine = [e for e in events if getattr(e, view.key) == key]
                yield from self.write_key(view, field_of(view, key), mine, batch)
        if batch:
            home = self.world.home(partition)
            yield raise_marker(home, f"batch|{partition}", batch, 0, 0, Rules(guarded=False))

    def write_key(self, view: View, name: str, events: Sequence[Event], batch: int) -> Acting:
        shard = self.world.shard_of(name)
        build = self.builds[shard][view] if self.rules.builds else 0
        while True:
            held: bytes | None = self.known.pop(name, None)  # what this life wrote last, if it did
            if held is None or self.rules != Rules():
                (held,) = yield get(shard, name)
            blob = merged(view, held, events, build, batch, self.token)
            if blob is None:
                return
            if (yield compare_and_set(shard, name, held, blob, self.rules)):
                self.known[name] = blob
                return
            if self.rules.merged_up_to == "batch number":
                raise Lost  # fenced off


def worker(world: World, rules: Rules, rng: random.Random) -> Acting:
    """Lives that follow one another: any doubt abandons the batch and starts again from the markers."""
    while True:
        with contextlib.suppress(Lost):
            yield from Worker(world, rules, rng).live()


def archiver(world: World, rules: Rules, rng: random.Random) -> Acting:
    """The one owner of the archive. What it has read and not committed is forgotten with its connection, unless it
    never notices before the commit."""
    while True:
        try:
            for partition in world.partitions:
                if rules.archiver_looks == "after it and at every start":
                    yield from _look_back(world, partition)
                else:
                    yield from _settle_doubt(world, partition)
            while True:
                partition = rng.choice(world.partitions)
                archived = yield archived_offset(partition)
                events = yield read_stream(world, partition, archived, float("inf"), rng.choice([1, 3]))
                if events:
                    yield from _append(world, rules, partition, events)
        except Lost:
            pass


def _append(world: World, rules: Rules, partition: int, events: Sequence[Event]) -> Acting:
    last = events[-1].position[1]
    if rules.archiver_looks == "after it and at every start":
        yield commit(partition, events)
        yield from _look_back(world, partition)
        return
    if not (yield read_stream(world, partition, last - 1, last)):
        return
    if rules.archiver_looks == "before it":
        yield commit(partition, events)
        return
    if rules.notes_doubt:
        yield note_doubt(partition, last)
    yield commit(partition, events)
    if not rules.notes_doubt:
        yield note_doubt(partition, last)
    yield from _settle_doubt(world, partition)


def _look_back(world: World, partition: int) -> Acting:
    last = yield archived_offset(partition)
    if last and not (yield read_stream(world, partition, last - 1, last)):
        for shard in range(len(world.shards)):
            yield forget_builds(shard, SECOND_CATALOG)


def _settle_doubt(world: World, partition: int) -> Acting:
    """Sees whether the stream still has what was committed last; if not, every view is begun anew."""
    doubt = yield doubt_of(partition)
    archived = yield archived_offset(partition)
    if doubt and archived >= doubt and not (yield read_stream(world, partition, doubt - 1, doubt)):
        for shard in range(len(world.shards)):
            yield forget_builds(shard, SECOND_CATALOG)
    yield note_doubt(partition, NOTHING)


def materializer(world: World, rules: Rules, rng: random.Random) -> Acting:
    """A batch job that writes rows of LATEST beside the workers, again and again; its rows are in no log."""
    while True:
        try:
            builds = {}
            for shard in range(len(world.shards)):
                builds[shard] = yield begin_build(shard, LATEST)
            for shop in rng.sample("xyz", 3):
                name = field_of(LATEST, shop)
                shard, row = world.shard_of(name), [rng.randrange(40), 0, 0, world.tick(), 0, f"b{world.clock}"]
                accepted = False
                while not accepted:
                    (held,) = yield get(shard, name)
                    blob = merged_row(held, row, builds[shard] if rules.builds else 0)
                    if blob is None:
                        break
                    accepted = yield compare_and_set(shard, name, held, blob, rules, row)
        except Lost:
            pass


def reader(world: World, rules: Rules, rng: random.Random) -> Acting:
    """Lookups: the shard's markers, then the value; what is stated must hold. A value of a newer build than the
    markers told of is no answer (and not none): the lookup is made again."""
    while True:
        try:
            view = rng.choice(world.catalog)
            key = rng.choice("abc" if view.key == "card" else "xyz")
            shard = world.shard_of(field_of(view, key))
            names = [f"build|{view.name}", f"ready|{view.name}", *(f"source|{p}" for p in world.partitions)]
            build, ready, *marks = yield get(shard, *names)
            (blob,) = yield get(shard, field_of(view, key))
            if build is not None and ready:
                if not rules.lookup_refuses_newer and blob is not None and build_of(blob) > build:
                    blob = None
                current = _of_build(blob, build if rules.builds else 0)
                stated = {p: mark or NOTHING for p, mark in zip(world.partitions, marks, strict=True)}
                check_value(world, view, key, current, stated)
        except Lost:
            pass


# What must hold.


def check_value(world: World, view: View, key: str, blob: bytes | None, stated: dict[int, int]) -> None:
    """A value holds every event up to the stated positions and up to its own, none twice, none after its own."""
    steady = world.steady(view, key)
    due = [e for e in steady if e.position[1] <= stated[e.position[0]]]
    if not view.windowed:
        newest = max(([e.time, 1, *e.position, e.name] for e in due), default=None)
        if newest is not None and (blob is None or content(blob) < newest):
            world.violations.append(f"{view.name} {key}: lacks {newest[-1]}")
        return
    names = [] if blob is None else content(blob)
    lacking = {e.name for e in due} - set(names)
    if blob is not None and world.values_state_positions:
        own = _header(blob)
        lacking |= {e.name for e in steady if e.position[1:] <= own.after((0, e.position[0]))} - set(names)
        ahead = {e.name for e in steady if e.position[1:] > own.after((0, e.position[0]))} & set(names)
        if ahead:
            world.violations.append(f"{view.name} {key}: holds {sorted(ahead)} ahead of its position")
    twice = {name for name in names if names.count(name) > 1}
    if lacking or twice:
        world.violations.append(f"{view.name} {key}: lacks {sorted(lacking)}, holds twice {sorted(twice)}")


def check_at_rest(world: World) -> None:
    """Every value is the fold of all events that survive, each once; with one shard nothing else is in it."""
    everything = dict.fromkeys(world.partitions, world.clock)
    log = {e.name for e in world.log()}
    world.lost -= log  # what was archived after all counts
    for view in world.catalog:
        for key in "abc" if view.key == "card" else "xyz":
            name = field_of(view, key)
            store = world.shards[world.shard_of(name)]
            blob: bytes | None = store.data.get(name)
            build = store.data.get(f"build|{view.name}")
            if blob is not None and build_of(blob) not in (build, 0):
                blob = None
            check_value(world, view, key, blob, everything)
            if view.windowed and blob is not None and len(world.shards) == 1 and set(content(blob)) - log:
                world.violations.append(f"{view.name} {key}: holds {sorted(set(content(blob)) - log)}, which were lost")
            if not view.windowed:
                _check_rows(world, store, view, name, blob, build)


def _check_rows(world: World, store: Shard, view: View, name: str, blob: bytes | None, build: int | None) -> None:
    """No row that a batch job wrote into this build, and that the store did not lose, gave way to an older one."""
    writes = [(write.after[name], write.row) for write in store.writes if write.row and name in write.after]
    rows = [row for after, row in writes if build_of(after) in (build, 0)]
    newest = max(rows, default=None)
    if newest is not None and (blob is None or content(blob) < newest):
        world.violations.append(f"{view.name} {name}: the row {newest[-1]} of a batch job was lost")


# The play.

ACTORS = {"worker 1": worker, "worker 2": worker, "archiver": archiver, "materializer": materializer, "reader": reader}
STEPS = 400
REST_ROUNDS = 4_000
AFTER_REST_ROUNDS = 60


class Actor:
    """A process: its next command, the connections it holds, and until when it is frozen."""

    def __init__(self, name: str, world: World, rules: Rules, rng: random.Random) -> None:
        self.name, self._world, self._parts = name, world, (world, rules, rng)
        self.thaws_at = 0
        self.begin()

    def begin(self) -> None:
        """A new process; what the old one sent and did not hear of is as if it had died a little later."""
        self._acting = ACTORS[self.name](*self._parts)
        self._connect()
        self._next: Command = next(self._acting)

    def _connect(self) -> None:
        self._connections = [shard.connections for shard in self._world.shards]

    def act(self, reply_lost: bool = False) -> None:
        """Carries out the pending command and lets the process go on to its next."""
        where, run = self._next
        if where != ARCHIVE and self._world.shards[where].connections != self._connections[where]:
            self._connect()
            self._next = self._acting.throw(Lost())
            return
        reply = run(self._world)
        self._next = self._acting.throw(Lost()) if reply_lost and where != ARCHIVE else self._acting.send(reply)


class Play:
    """A world, its actors and its accidents, by one seed."""

    def __init__(self, seed: int, rules: Rules, shards: int, partitions: int) -> None:
        self.rng = random.Random(seed)
        self.world = World(shards, partitions)
        self.world.values_state_positions = rules.merged_up_to == "position"
        self.moment = 0
        self.actors = [Actor(name, self.world, rules, self.rng) for name in ACTORS]
        self.accidents: list[tuple[Callable[[], None], float]] = [
            (self.push, 12),
            (self.freeze, 4),
            (self.kill, 2),
            (self.fail_over, 1.5),
            (self.restart_empty, 0.3),
            (self.flush, 0.5),
            (self.apply, 0.5),
        ]

    def run(self) -> list[str]:
        """Plays, lets everything come to rest, checks; returns what was violated."""
        happenings, weights = zip(*self.accidents, strict=True)
        while self.moment < STEPS:
            if self.rng.random() < 0.25:
                self.rng.choices(happenings, weights)[0]()
            actor = self.rng.choice(self.actors)
            for _ in range(self.rng.choice([1, 2, 5, 15])):
                self.moment += 1
                if actor.thaws_at <= self.moment:
                    actor.act(self.rng.random() < 0.003)
        self.rest()
        check_at_rest(self.world)
        return self.world.violations

    def meet(self, first: int, accident: str, second: int) -> list[str]:
        """One schedule of two workers: the first comes `first` commands far, an accident happens, the second comes
        `second` commands far, an entry more, and all go on."""
        for entry in range(2):
            self.world.push(0, [(entry, "a", "x"), (entry, "b", "x")])
        for _ in range(8):
            self.actors[2].act()  # the archiver, which comes as far as the first entry
        for _ in range(first):
            self.actors[0].act()
        lost = {"fails over": 1, "fails over, loses more": 6}.get(accident, 0)
        if lost:
            self.world.lose(0, lambda shard: shard.fail_over(lost))
        elif accident == "killed":
            self.actors[0].begin()
        elif accident:
            getattr(self, accident)()
        for _ in range(second):
            self.actors[1].act()
        self.world.push(0, [(9, "a", "x")])
        self.rest()
        check_at_rest(self.world)
        return self.world.violations

    def pass_by(self, first: int, accident: str, second: int, killed: bool) -> list[str]:
        """One schedule of archiver and worker: an entry is archived and applied, another is pushed; the archiver comes
        `first` commands far with it, an accident takes it from the stream, a worker comes `second` commands far, an
        entry comes after it, the worker goes on; then the archiver does (or is `killed` when it has committed), and
        all."""
        worker, archiver = self.actors[0], self.actors[2]
        self.world.push(0, [(0, "a", "x")])
        for actor in (archiver, worker):
            for _ in range(60):
                actor.act()
        self.world.push(0, [(1, "a", "x"), (1, "b", "x")])
        for _ in range(first):
            archiver.act()
        if accident == "fails over":
            self.world.lose(0, lambda shard: shard.fail_over(1))
        else:
            getattr(self, accident)()
        for _ in range(second):
            worker.act()
        self.world.push(0, [(9, "a", "x")])
        for _ in range(80):
            worker.act()
        held = len(self.world.archive[0])
        while killed and len(self.world.archive[0]) == held:
            archiver.act()
        if killed:
            archiver.begin()
        self.rest()
        check_at_rest(self.world)
        return self.world.violations

    def rest(self) -> None:
        """No more accidents: everybody works until there is nothing to do, and a while longer."""
        at_work = [actor for actor in self.actors if actor.name != "materializer"]
        after = 0
        for _ in range(REST_ROUNDS):
            for actor in at_work:
                actor.act()
            after = after + 1 if is_settled(self.world) else 0
            if after > AFTER_REST_ROUNDS:
                return
        self.world.violations.append("never comes to rest")

    def push(self) -> None:
        choose, n = self.rng.choice, self.rng.choice([1, 3])
        rows = [(self.rng.randrange(40), choose("abc"), choose("xyz")) for _ in range(n)]
        self.world.push(self.rng.choice(self.world.partitions), rows)

    def freeze(self) -> None:
        self.rng.choice(self.actors).thaws_at = self.moment + self.rng.randrange(120)

    def kill(self) -> None:
        self.rng.choice(self.actors).begin()

    def fail_over(self) -> None:
        lost = self.rng.choice([0, 1, 3, 10, 40])
        self.world.lose(self.rng.randrange(len(self.world.shards)), lambda shard: shard.fail_over(lost))

    def restart_empty(self) -> None:
        self.world.lose(self.rng.randrange(len(self.world.shards)), Shard.restart_empty)

    def flush(self) -> None:
        """Lookups under way are given up: their two reads are not one."""
        self.world.lose(self.rng.randrange(len(self.world.shards)), Shard.flush)
        self.actors[-1].begin()

    def apply(self) -> None:
        self.world.catalog = SECOND_CATALOG


def is_settled(world: World) -> bool:
    """Whether all is archived, applied and ready."""
    for partition in world.partitions:
        end = max((e.position[1] for e in world.stream(partition)), default=NOTHING)
        archived = max((e.position[1] for e in world.archive[partition]), default=NOTHING)
        marks = [shard.data.get(f"source|{partition}", -1) for shard in world.shards]
        if archived < end or min(marks) < max(end, archived):
            return False
    return all(
        f"ready|{view.name}" in shard.data and f"build|{view.name}" in shard.data
        for shard in world.shards
        for view in world.catalog
    )
