"""What must hold at the end of a round: the archive against what was sent, then online and datasets against loops
over the archive."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
import pyarrow as pa
from crash.ledger import Ledger, Place
from crash.machine import Machine
from crash.pusher import POISON
from crash.world import HORIZON_US, KEYS, LAST_CALL, SERVICE, VIEWS, WRITES, event_of, key_of, present_us, text_of
from naive import NaiveEvent, without_repeats
from scenario import SECOND_US, assert_equals_oracle, micros, plain_value
from strategies import DTYPES

from headrace.catalog.definitions import Catalog, FeatureView, Source, write_source
from headrace.dtypes import DType
from headrace.read.training_set import training_set
from headrace.stores.arrow import arrow_type
from headrace.stores.markers import IMPORTS
from headrace.stores.offline import INDEX, OFFSET, PARTITION

Key = tuple[Any, ...]
History = dict[str, list[NaiveEvent]]
DIRECT_RANK = 1_000


def check_archive(machine: Machine, ledger: Ledger) -> tuple[History, int]:
    """The events of every source as the oracle sees them, repeats left out, and how many acknowledged ids are lost."""
    sources = [*machine.catalog.sources, write_source(machine.catalog, LAST_CALL)]
    history: History = {}
    found: set[tuple[str, Any]] = set()
    offsets: dict[Place, list[int]] = defaultdict(list)
    for source in sources:
        rows = _archived(machine, source)
        by_id = [(row["id"] if source.event_id else row["word"], row) for row in rows]
        history[source.name] = _as_sent(source, by_id, ledger, machine.catalog.clock)
        found |= {(source.name, event_id) for event_id, _ in by_id}
        for row in rows:
            offsets[source.name, row[PARTITION]].append(row[OFFSET])
        _check_forgotten(source.name, by_id, ledger)
    found |= _dead_letters(machine, ledger)
    _check_imports(found, ledger)
    _check_recorded(machine, ledger, offsets)
    lost = {row_id for row_id in ledger.acknowledged.keys() - found if not _is_forgotten(ledger, row_id)}
    for row_id in lost:
        kept = [place for place in ledger.acknowledged[row_id] if not machine.losses.allows(*place)]
        assert not kept, f"acknowledged and lost: {row_id} at {kept}; allowed: {machine.losses.spans}"
    return history, len(lost)


def _check_recorded(machine: Machine, ledger: Ledger, archived: Mapping[Place, list[int]]) -> None:
    """What was recorded as lost, by number, is what was acknowledged there (but for what another fault may have taken
    with its count), and no event of it is archived."""
    for place, loss in machine.recorded:
        if loss.events is None:
            continue
        acknowledged, uncounted = ledger.acknowledged_in(place, loss.after, loss.upto), machine.losses.uncounted(place)
        sure = sum(not any(after < at <= upto for after, upto in uncounted) for at in acknowledged)
        most = len(acknowledged) + ledger.unanswered.get(place, 0)
        assert sure <= loss.events <= most, f"{place}: {sure} to {most} events are lost, recorded: {loss}"
        kept = [offset for offset in archived[place] if loss.after < offset <= loss.upto]
        assert not kept, f"{place}: recorded as lost and archived: {loss} {kept}"


def _is_forgotten(ledger: Ledger, row_id: tuple[str, Any]) -> bool:
    return any(ledger.is_forgotten(row_id, *place) for place in ledger.acknowledged[row_id])


def _check_forgotten(name: str, rows: Iterable[tuple[Any, dict[str, Any]]], ledger: Ledger) -> None:
    """No row of a forgotten key is left that came before it was forgotten."""
    for item in ledger.forgotten:
        for event_id, row in rows:
            place, imported = (name, row[PARTITION]), row[PARTITION] == IMPORTS
            gone = row["event_time"] <= item.at_us if imported else item.takes(row, place, row[OFFSET])
            assert row["who"] != item.who or not gone, f"forgotten, and still archived: {name} {event_id} {row}"


def _check_imports(found: set[tuple[str, Any]], ledger: Ledger) -> None:
    """Every imported row is archived, but for those of a key that was forgotten since they happened. (That none is
    there twice is seen with all other rows.)"""
    for row_id, row in ledger.imported.items():
        gone = any(item.who == row["who"] and micros(row["ts"]) <= item.at_us for item in ledger.forgotten)
        assert (row_id in found) != gone, f"imported, forgotten: {gone}, archived: {row_id in found}: {row_id} {row}"


def _archived(machine: Machine, source: Source) -> list[dict[str, Any]]:
    columns = list(dict.fromkeys([*(c.name for c in source.columns), "event_time", "arrival_time", "is_repeat"]))
    rows = machine.offline.read_events(source, columns, repeats=True).to_pylist()
    places = Counter((row[PARTITION], row[OFFSET], row[INDEX]) for row in rows)
    twice = [place for place, n in places.items() if n > 1]
    assert not twice, f"archived twice: {source.name} {twice[:5]} ({len(twice)} of {len(rows)})"
    return [{name: plain_value(value) for name, value in row.items()} for row in rows]


def _as_sent(
    source: Source, rows: Iterable[tuple[Any, dict[str, Any]]], ledger: Ledger, clock: str
) -> list[NaiveEvent]:
    """The rows as events, each one that was sent, with the repeats that the archive marked."""
    events = []
    for event_id, row in rows:
        position = (row[PARTITION], row[OFFSET], row[INDEX])
        sent = [event_of(version, position, row["arrival_time"]) for version in ledger.sent[source.name, event_id]]
        event = next((event for event in sent if _same(event, row)), None)
        assert event is not None, f"archived as it was never sent: {source.name} {row}"
        events.append(event)
    _check_arrivals(events, clock, bool(ledger.forgotten))
    marked = {(row[PARTITION], row[OFFSET], row[INDEX]) for _, row in rows if row["is_repeat"]}
    gone = {event_id for event_id, _ in rows if ledger.was_ever_forgotten((source.name, event_id))}
    orphans = {event.position for event in events if event.position in marked and event.event_id in gone}
    events = [event for event in events if event.position not in orphans]  # repeats of what may be gone
    kept = without_repeats(events, source.dedup_horizon_us)
    repeats = {event.position for event in events} - {event.position for event in kept}
    wrong = (marked - repeats - orphans, repeats - marked)
    assert wrong == (set(), set()), f"repeats of {source.name}: too many {wrong[0]}, missing {wrong[1]}"
    if source.event_id and source.dedup_horizon_us >= HORIZON_US:
        twice = [event_id for event_id, n in Counter(event.event_id for event in kept).items() if n > 1]
        assert not twice, f"counted twice: {source.name} {twice[:5]}"
    return kept


def _same(event: NaiveEvent, row: dict[str, Any]) -> bool:
    time_us = row["ts"] if "ts" in row else row["event_timestamp"]
    mine = (event.key, event.time_us, dict(event.values))
    return mine == ((row["who"], row.get("site")), time_us, {name: row[name] for name in DTYPES})


def _check_arrivals(events: list[NaiveEvent], clock: str, may_lack: bool) -> None:
    """Arrival is the stream's time, or under the event clock the running maximum of event time, some of which `events`
    may lack; of an import it is the event time."""
    latest: dict[int, int] = {}
    for event in sorted(events, key=lambda e: e.position):
        partition, offset, _ = event.position
        latest[partition] = max(latest.get(partition, event.time_us), event.time_us)
        if may_lack and clock == "event" and partition != IMPORTS:
            latest[partition] = max(latest[partition], event.arrival_us)
        by_clock = (offset >> 20) * 1_000 if clock == "wall" else latest[partition]
        truth = event.time_us if partition == IMPORTS else by_clock
        assert event.arrival_us == truth, f"arrival of {event}: {truth}"


def _dead_letters(machine: Machine, ledger: Ledger) -> set[tuple[str, Any]]:
    """The poisonous lines that are kept; each must be there once for its position."""
    letters = machine.offline.read_dead_letters().to_pylist()
    places = Counter((row["source"], row["partition"], row["offset"], row["index"]) for row in letters)
    assert max(places.values(), default=1) == 1, f"dead letters twice: {places.most_common(3)}"
    texts = {(row["source"], row["payload"].decode()) for row in letters}
    assert {text for _, text in texts} <= ledger.poison, f"a good event is dead: {letters[:3]}"
    assert all(POISON in text for _, text in texts)
    return texts


class Truth:
    """The oracle's events by view and key."""

    def __init__(self, catalog: Catalog, history: History) -> None:
        self._events: dict[str, dict[Key, list[NaiveEvent]]] = {}
        for view in VIEWS:
            own = history[view.source or ""]
            direct = history[WRITES] if view is LAST_CALL else []
            ranked = [_at(event, event.position[0] + DIRECT_RANK) for event in direct]
            self._events[view.name] = _by_key(view, [*own, *ranked])
        self.newest_us = max((event.time_us for events in history.values() for event in events), default=0)

    def check(self, columns: dict[str, list[Any]], keys: list[tuple[Any, Any]], t_us: list[int]) -> None:
        """Every value of every row against the loop, which is asked once for rows of one key, moment and answer."""
        asked = set()
        for view in VIEWS:
            names = [feature.name for feature in view.features]
            for row, key in enumerate(keys):
                mine = key_of(view, key)
                got = {name: columns[f"{view.name}__{name}"][row] for name in names}
                question = (view.name, mine, t_us[row], repr(got))
                if question not in asked:
                    asked.add(question)
                    self._compare(view, got, mine, t_us[row])

    def _compare(self, view: FeatureView, got: dict[str, Any], key: Key, t_us: int) -> None:
        events = self._events[view.name].get(key, [])
        try:
            assert_equals_oracle(view, got, events, key, t_us)
        except AssertionError as error:
            newest = sorted(events, key=lambda event: (event.time_us, event.position))[-3:]
            raise AssertionError(f"{view.name} {key} at {t_us}: {got}, of {len(events)} events: {newest}") from error


def _at(event: NaiveEvent, partition: int) -> NaiveEvent:
    """The event in another partition."""
    position = (partition, *event.position[1:])
    return NaiveEvent(event.key, event.time_us, position, event.values, event.event_id, event.arrival_us)


def _by_key(view: FeatureView, events: list[NaiveEvent]) -> dict[Key, list[NaiveEvent]]:
    found: dict[Key, list[NaiveEvent]] = defaultdict(list)
    for e in events:
        key = key_of(view, e.key)
        if None not in key:
            found[key].append(NaiveEvent(key, e.time_us, e.position, e.values, e.event_id, e.arrival_us))
    return found


def check_online(machine: Machine, truth: Truth, as_of_us: int | None) -> None:
    """A lookup of every key at an explicit moment, or now."""
    entities = {"who": [who for who, _ in KEYS], "site": [site for _, site in KEYS]}
    body: dict[str, Any] = {"feature_service": SERVICE, "full_feature_names": True, "entities": entities}
    if as_of_us is not None:
        body["as_of"] = text_of(as_of_us)
    reply = httpx.post(
        f"{machine.url}/get-online-features",
        params={"metadata": "full", "timestamps": "rfc3339"},
        json=body,
        timeout=30,
    )
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    names = answer["metadata"]["feature_names"]
    columns = {name: _typed(name, result["values"]) for name, result in zip(names, answer["results"], strict=True)}
    truth.check(columns, KEYS, [micros(t) for t in answer["metadata"]["t"]])


def _typed(name: str, values: list[Any]) -> list[Any]:
    """The values of a JSON reply as the oracle has them: moments as microseconds."""
    return [micros(value) if "moment" in name and value is not None else value for value in values]


def check_dataset(machine: Machine, truth: Truth, moments_us: list[int], rng: random.Random) -> None:
    """A training set of every key, each at one of the moments."""
    times = [rng.choice(moments_us) for _ in KEYS]
    labels = pa.table(
        {
            "who": pa.array([who for who, _ in KEYS], pa.string()),
            "site": pa.array([site for _, site in KEYS], pa.int64()),
            "event_timestamp": pa.array(times).cast(arrow_type(DType.TIMESTAMP)),
        }
    )
    rows = training_set(SERVICE, labels, settings=machine.settings, full_feature_names=True).to_arrow()
    columns = {name: [plain_value(value) for value in rows[name].to_pylist()] for name in rows.column_names[3:]}
    truth.check(columns, KEYS, times)


def check_values(machine: Machine, history: History, rng: random.Random) -> None:
    """Online and datasets equal the loop at the same moment, online now, datasets in the past."""
    truth = Truth(machine.catalog, history)
    moment_us = max(truth.newest_us, present_us()) + rng.randrange(1, 100 * SECOND_US)
    check_online(machine, truth, moment_us)
    check_online(machine, truth, None)
    check_dataset(machine, truth, [moment_us], rng)
    past = [truth.newest_us - rng.randrange(0, 700 * SECOND_US) for _ in range(3)]
    check_dataset(machine, truth, past, rng)
