"""Every source's log as one: the streams in the store, and the topics of Kafka.

Worker, archiver and rebuild read through this and need not know which is which.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import redis

from headrace.catalog.definitions import Catalog
from headrace.settings import Settings
from headrace.stores.kafka_log import KafkaLogs
from headrace.stores.stream import Entry, EntryHead, EventStream

__all__ = ["LogReader", "Logs"]

Place = tuple[str, int]

BESIDE_TOPICS_MS = 20
"""How long the streams are waited for where topics are read too."""


class LogReader(Protocol):
    """The reading half of a log, of which `EventStream` is one; see there for what each method promises."""

    store: redis.Redis
    project: str

    def read(self, after: Mapping[Place, int], count: int, block_ms: int) -> dict[Place, list[Entry]]: ...

    def between(self, source: str, partition: int, first: int, last: int, count: int = ...) -> list[Entry]: ...

    def head(self, source: str, partition: int) -> EntryHead | None: ...

    def first_after(self, source: str, partition: int, offset: int) -> EntryHead | None: ...

    def last_upto(self, source: str, partition: int, offset: int) -> EntryHead | None: ...


class Logs:
    """The logs of one catalog's sources; close it, topics have threads."""

    def __init__(self, stream: EventStream, catalog: Catalog, settings: Settings) -> None:
        self.store, self.project = stream.store, stream.project
        self.stream = stream
        self.topics = KafkaLogs(catalog, settings)

    def use(self, catalog: Catalog) -> None:
        """Follow a new catalog."""
        self.topics.use(catalog)

    def close(self) -> None:
        self.topics.close()

    def read(self, after: Mapping[Place, int], count: int, block_ms: int) -> dict[Place, list[Entry]]:
        """As `EventStream.read`; of a topic come as many messages as are worth a batch, whatever `count`."""
        if not after:
            time.sleep(block_ms / 1_000)
        topics = {place: offset for place, offset in after.items() if place[0] in self.topics}
        streams = {place: offset for place, offset in after.items() if place not in topics}
        if not topics:
            return self.stream.read(streams, count, block_ms) if streams else {}
        found = self.topics.read(topics, 0.0 if streams else block_ms / 1_000)
        if streams:
            found |= self.stream.read(streams, count, 0 if found else min(block_ms, BESIDE_TOPICS_MS))
        return found

    def between(self, source: str, partition: int, first: int, last: int, count: int = 1_000) -> list[Entry]:
        if source in self.topics:
            return self.topics[source].between(partition, first, last, count)
        return self.stream.between(source, partition, first, last, count)

    def head(self, source: str, partition: int) -> EntryHead | None:
        if source in self.topics:
            return self.topics[source].head(partition)
        return self.stream.head(source, partition)

    def heads(self, places: Sequence[Place]) -> dict[Place, EntryHead | None]:
        """The newest entry of every place; those of a topic that cannot be reached are left out."""
        streams = [place for place in places if place[0] not in self.topics]
        topics = [place for place in places if place[0] in self.topics]
        return {**self.stream.heads(streams), **self.topics.heads(topics)}

    def stream_heads(self, places: Iterable[Place]) -> dict[Place, EntryHead | None]:
        """The newest entry of every place that is a stream, in one round trip: imports have none, topics another."""
        streams = [place for place in places if place[1] >= 0 and place[0] not in self.topics]
        return self.stream.heads(streams)

    def doubtful(self) -> set[Place]:
        """Places in topics whose next entry the last `read` asked for in vain: perhaps it is lost."""
        return self.topics.doubtful()

    def raise_end(self, source: str, partition: int, offset: int) -> None:
        """As `EventStream.raise_end`; where a topic ends is its broker's to say."""
        if source not in self.topics:
            self.stream.raise_end(source, partition, offset)

    def first_after(self, source: str, partition: int, offset: int) -> EntryHead | None:
        if source in self.topics:
            return self.topics[source].first_after(partition, offset)
        return self.stream.first_after(source, partition, offset)

    def last_upto(self, source: str, partition: int, offset: int) -> EntryHead | None:
        if source in self.topics:
            return EntryHead(offset, 1, offset, 0, 0) if offset else None
        return self.stream.last_upto(source, partition, offset)
