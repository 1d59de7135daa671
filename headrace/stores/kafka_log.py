"""The log of a source that is a Kafka topic: what `EventStream` reads of streams, read of its partitions.

Offsets are positions (see kafka_epochs.py), not Kafka's. What a partition no longer has is not read over: `read` names
the place in `doubtful`, and `first_after` tells, by totals, what is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace.catalog.definitions import Catalog, KafkaTopic
from headrace.errors import UnavailableError
from headrace.settings import Settings
from headrace.stores.kafka_cursor import REPLY_S, TAIL, Cursor, Taken, kafka_library
from headrace.stores.kafka_epochs import Epochs, load_epochs
from headrace.stores.kafka_messages import ONE_EPOCH, end_entry, entry_of
from headrace.stores.stream import Entry, EntryHead
from headrace.telemetry import get_logger

__all__ = ["KafkaLogs", "TopicLog"]

MOST_MESSAGES = 20_000
SAY_AGAIN_S = 60.0
STEP_S = 0.1
REFUSED_S = 1.5
REST_S = 4.0
KNOWN_S = 1.0

Place = tuple[str, int]

log = get_logger()


class TopicLog:
    """One topic. A cursor follows its end, another looks back, so that neither loses what it has fetched ahead; both
    may be used from several threads."""

    def __init__(self, topic: KafkaTopic, partitions: int, settings: Settings) -> None:
        self.topic = topic
        self.partitions = partitions
        self._settings = settings
        self._ahead: Cursor | None = None
        self._back: Cursor | None = None
        self._reading, self._looking = threading.Lock(), threading.Lock()
        self._unreachable: UnavailableError | None = None
        self._rests_until_s = 0.0
        self._known: dict[int, EntryHead | None] = {}
        self._known_s = 0.0
        self._ends: dict[int, int] = {}
        self.epochs: dict[int, Epochs] = {}
        """Of partitions that have more than one."""
        self.doubtful: set[int] = set()
        """Partitions whose next entry the last `read` asked for in vain: perhaps it is lost."""

    def close(self) -> None:
        for cursor in (self._ahead, self._back):
            if cursor is not None:
                cursor.close()
        self._ahead = self._back = None

    @property
    def trouble(self) -> str:
        """Why the reader gets nothing, as far as its client knows."""
        return self._ahead.trouble if self._ahead is not None else ""

    def read(self, after: Mapping[int, int], wait_s: float) -> dict[int, list[Entry]]:
        """The entries after each partition's offset that have come by now, a bounded number; waits for the first."""
        with self._reading:
            cursor = self._ahead = self._ahead or Cursor(self.topic, self._settings)
            cursor.go({partition: self.epochs_of(partition).kafka_after(offset) for partition, offset in after.items()})
            taken = cursor.take(MOST_MESSAGES, wait_s)
            self.doubtful = taken.outside & set(after)
            found = {part: entries for part in after if (entries := self._entries(taken, part, after[part]))}
            if found:
                self._unreachable = None
            for partition, entries in found.items():
                cursor.reached(partition, self.epochs_of(partition).kafka_after(entries[-1].offset))
            return found

    def _entries(self, taken: Taken, partition: int, after: int) -> list[Entry]:
        epochs = self.epochs_of(partition)
        entries = [entry_of(message, self.topic.payload, epochs) for message in taken.messages.get(partition, ())]
        end = epochs.end(taken.ends[partition]) if partition in taken.ends else 0
        if end > (entries[-1].offset if entries else after):
            entries.append(end_entry(end))
        return entries

    def between(self, partition: int, first: int, last: int, count: int) -> list[Entry]:
        """About `count` of the entries with first <= offset <= last that are there, oldest first; none at the end.

        Raises UnavailableError when the broker does not answer.
        """
        entries: list[Entry] = []
        epochs = self.epochs_of(partition)
        begin = epochs.kafka_after(first - 1)
        with self._looking:
            cursor = self._cursor()
            cursor.go({partition: begin})
            for taken in self._polls(cursor, count):
                found = [entry_of(message, self.topic.payload, epochs) for message in taken.messages.get(partition, ())]
                entries += [entry for entry in found if entry.offset <= last]
                if partition in taken.ends or (found and found[-1].offset >= last):
                    cursor.rest()
                    break
                if found:
                    cursor.reached(partition, epochs.kafka_after(found[-1].offset))
                if len(entries) >= count:
                    break
                if partition in taken.outside and not self._skip(cursor, partition, begin):
                    break
        return entries

    def _skip(self, cursor: Cursor, partition: int, at: int) -> bool:
        """Go on with the earliest message kept, if it lies behind `at`."""
        cursor.rest()
        earliest = cursor.earliest(partition)
        if earliest > at:
            cursor.go({partition: earliest})
        return earliest > at

    def heads(self, partitions: Sequence[int]) -> dict[int, EntryHead | None]:
        """The newest entry of each partition. Raises UnavailableError when the broker does not answer."""
        newest: dict[int, Any] = {}
        ends: dict[int, int] = {}
        with self._looking:
            cursor = self._cursor()
            cursor.rest()
            cursor.go(dict.fromkeys(partitions, TAIL))
            for taken in self._polls(cursor, MOST_MESSAGES):
                newest |= {partition: messages[-1] for partition, messages in taken.messages.items()}
                ends |= taken.ends
                for partition, message in newest.items():
                    if message.offset() + 1 >= max(cursor.end(partition), 0):
                        ends.setdefault(partition, message.offset() + 1)
                if set(partitions) <= set(ends):
                    break
            cursor.rest()
        self._ends |= ends
        return {partition: self._head(newest.get(partition), ends[partition], partition) for partition in partitions}

    def _head(self, message: Any, kafka_end: int, partition: int) -> EntryHead | None:
        epochs = self.epochs_of(partition)
        end = epochs.end(kafka_end)
        if message is None or epochs.position(message.offset()) < end:  # a transaction's marker stands there
            return EntryHead(end, 1, end, 0, 0, time.time_ns() // 1_000) if end else None
        entry = entry_of(message, self.topic.payload, epochs)
        return EntryHead(entry.offset, entry.count, entry.total, len(entry.payload), 0, entry.arrived_us)

    def head(self, partition: int, offset: int = 0) -> EntryHead | None:
        """The newest entry of a partition, or what it was a moment ago if that is not before `offset`."""
        known = self._known.get(partition)
        fresh = time.monotonic() < self._known_s + KNOWN_S
        if not fresh or partition not in self._known or (known.offset if known else 0) < offset:
            self._known, self._known_s = self.heads(range(self.partitions)), time.monotonic()
        return self._known[partition]

    def first_after(self, partition: int, offset: int) -> EntryHead | None:
        """Where the partition goes on after `offset`: its `before` is `offset`, or more if entries in between are
        gone. For a reader that has nothing yet (0) whatever is gone never was."""
        end, epochs = self.head(partition, offset), self.epochs_of(partition)
        with self._looking:
            before = epochs.position(max(self._cursor().earliest(partition), epochs.kafka_after(offset))) - 1
        if end is None or end.offset <= before:
            return None
        return EntryHead(before + 1, before + 1 - (before if offset else 0), before + 1, 0, 0)

    def epochs_of(self, partition: int) -> Epochs:
        return self.epochs.get(partition, ONE_EPOCH)

    def bounds(self, partition: int) -> tuple[int, int]:
        """Kafka's offsets of the oldest message and behind the newest, as of now. Raises UnavailableError when the
        broker does not answer."""
        self.heads([partition])
        with self._looking:
            return self._cursor().earliest(partition), self._ends[partition]

    def unread(self) -> int:
        """How many partitions the topic has that its source does not read. Raises UnavailableError when the broker does
        not answer."""
        with self._looking:
            return self._cursor().partitions() - self.partitions

    def _cursor(self) -> Cursor:
        """The cursor that looks back. Raises UnavailableError for a while after the topic could not be reached, so that
        one broker that is down does not keep its consumer from other sources."""
        if self._unreachable is not None and time.monotonic() < self._rests_until_s:
            raise self._unreachable
        try:
            self._back = self._back or self._opened()
        except UnavailableError as error:
            self._rest(error)
            raise
        self._back.trouble = ""
        return self._back

    def _opened(self) -> Cursor:
        """A cursor that knows its topic: one that does not asks twice for where to begin, with a pause."""
        cursor = Cursor(self.topic, self._settings, fetch_wait_ms=10)
        try:
            missing = self.partitions - cursor.partitions(REFUSED_S)
            if missing > 0:
                raise cursor.unavailable(f"it lacks {missing} of the {self.partitions} partitions declared")
        except UnavailableError:
            cursor.close()
            raise
        return cursor

    def _rest(self, error: UnavailableError) -> None:
        self._unreachable, self._rests_until_s = error, time.monotonic() + REST_S

    def _polls(self, cursor: Cursor, most: int) -> Iterator[Taken]:
        """What comes, poll by poll. Raises UnavailableError when nothing has come for too long."""
        since_s = time.monotonic()
        while True:
            taken = cursor.take(most, STEP_S)
            if taken:
                since_s = time.monotonic()
            elif time.monotonic() > since_s + (REFUSED_S if cursor.trouble else REPLY_S):
                cursor.rest()
                self._rest(cursor.unavailable())
                raise cursor.unavailable()
            yield taken


class KafkaLogs:
    """The topics of a catalog's sources."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._settings = settings
        self._topics: dict[str, TopicLog] = {}
        self._said_s: dict[str, float] = {}
        self._root = Path(settings.data_dir) / "offline"
        self._looked_s = 0.0
        self.use(catalog)

    def use(self, catalog: Catalog) -> None:
        """Follow a new catalog. Raises SettingsError if it needs Kafka's client, which is not installed."""
        wanted = {source.name: (source.kafka, source.partitions) for source in catalog.sources if source.kafka}
        if wanted:
            kafka_library()
        for name, topic in list(self._topics.items()):
            if wanted.get(name) != (topic.topic, topic.partitions):
                self._topics.pop(name).close()
        for name, (kafka, partitions) in wanted.items():
            if name not in self._topics:
                self._topics[name] = TopicLog(kafka, partitions, self._settings)
                self._looked_s = 0.0

    def _look_for_epochs(self) -> None:
        """Follows what was noted of topics that began anew, a second later at most."""
        if self._topics and time.monotonic() > self._looked_s + KNOWN_S:
            noted, self._looked_s = load_epochs(self._root), time.monotonic()
            for name, topic in self._topics.items():
                topic.epochs = {partition: epochs for (source, partition), epochs in noted.items() if source == name}

    def close(self) -> None:
        for topic in self._topics.values():
            topic.close()

    def __contains__(self, source: str) -> bool:
        return source in self._topics

    def __getitem__(self, source: str) -> TopicLog:
        self._look_for_epochs()
        return self._topics[source]

    def read(self, after: Mapping[Place, int], wait_s: float) -> dict[Place, list[Entry]]:
        """Entries of every topic that has some; one that cannot be reached has none, and is spoken of."""
        self._look_for_epochs()
        found: dict[Place, list[Entry]] = {}
        names = list(dict.fromkeys(source for source, _ in after))
        for name in names:
            topic = self._topics[name]
            at = {partition: offset for (source, partition), offset in after.items() if source == name}
            entries = topic.read(at, 0.0 if found else wait_s / len(names))
            found |= {(name, partition): some for partition, some in entries.items()}
            if entries:
                self._look_for_more(name)
            elif topic.trouble and self._is_due(name):
                log.warning("a topic brings nothing, trying again", source=name, trouble=topic.trouble)
        return found

    def _look_for_more(self, source: str) -> None:
        """Partitions that the definition does not know are nobody's: their events wait, and somebody must say so."""
        if self._is_due(f"{source} has more"):
            problem = self.unread(source)
            if problem:
                log.error("a topic is not read whole", problem=problem)

    def unread(self, source: str) -> str | None:
        """What of a topic its source does not read, None when it reads all of it, or nobody knows."""
        try:
            unread = self._topics[source].unread()
        except UnavailableError:
            return None
        if unread <= 0:
            return None
        read = self._topics[source].partitions
        return (
            f"A source reads as many partitions as its topic has, {source!r} declares {read} of {read + unread}; set "
            f"its tag partitions to {read + unread} and run headrace apply."
        )

    def _is_due(self, what: str) -> bool:
        """Whether it is time to speak of something, once a minute."""
        due = time.monotonic() >= self._said_s.get(what, 0.0)
        if due:
            self._said_s[what] = time.monotonic() + SAY_AGAIN_S
        return due

    def doubtful(self) -> set[Place]:
        """The places whose next entry the last `read` asked for in vain."""
        return {(name, partition) for name, topic in self._topics.items() for partition in topic.doubtful}

    def heads(self, places: Sequence[Place]) -> dict[Place, EntryHead | None]:
        """The newest entry of every place; those of a topic that cannot be reached are left out."""
        self._look_for_epochs()
        found: dict[Place, EntryHead | None] = {}
        for name in dict.fromkeys(source for source, _ in places):
            partitions = [partition for source, partition in places if source == name]
            try:
                heads = self._topics[name].heads(partitions)
            except UnavailableError as error:
                if self._is_due(name):
                    log.warning("a topic does not say where it ends", problem=str(error))
                continue
            found |= {(name, partition): head for partition, head in heads.items()}
        return found
