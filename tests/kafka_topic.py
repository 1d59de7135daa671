"""A topic that tests send rows to, and what the oracle says of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
import pyarrow as pa
from kafka_broker import Broker
from naive import NaiveEvent, without_repeats
from scenario import PARTS, catalog, micros, naive_event

from headrace.catalog.definitions import Catalog, KafkaTopic, Source

PARTITIONS = 3


def arrow_bytes(rows: list[dict[str, Any]]) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    written: bytes = sink.getvalue().to_pybytes()
    return written


class Topic:
    """Sends rows and remembers them as the oracle's events: one arrives at the running maximum of its partition."""

    def __init__(self, broker: Broker, name: str, payload: Any) -> None:
        self._broker, self._name, self._payload = broker, name, payload
        self._offsets, self._arrivals = [0] * PARTITIONS, [0] * PARTITIONS
        self._messages: list[tuple[int, bytes | None]] = []
        self.history: list[NaiveEvent] = []
        self.source: Source = replace(
            PARTS, partitions=PARTITIONS, kafka=KafkaTopic(broker.servers, name, payload), max_future_us=2**60
        )
        broker.create(name, PARTITIONS)

    def send(
        self, rng: random.Random, rows: list[dict[str, Any]], partitions: Sequence[int] = range(PARTITIONS)
    ) -> None:
        """One row or a few a message, to any of the partitions, poison in between."""
        messages: list[tuple[int, bytes | None]] = []
        while rows:
            n = rng.choice([1, 1, 1, 4])
            some, rows = rows[:n], rows[n:]
            partition = rng.choice(partitions)
            if rng.random() < 0.1:
                messages.append((partition, rng.choice([None, b"", b"no event"])))
                self._offsets[partition] += 1
            is_arrow = self._payload == "arrow"
            messages.append((partition, arrow_bytes(some) if is_arrow else b"\n".join(map(orjson.dumps, some))))
            self._offsets[partition] += 1
            for i, row in enumerate(some):
                self._arrivals[partition] = max(self._arrivals[partition], micros(row["ts"]))
                position = (partition, self._offsets[partition], i)
                self.history.append(naive_event(row, position, self._arrivals[partition]))
        self._broker.send(self._name, messages)
        self._messages += messages

    def cut(self, kept: Sequence[int]) -> None:
        """The topic is made again, by partition with so many of the first messages that were sent."""
        left = [[message for message in self._messages if message[0] == n][: kept[n]] for n in range(PARTITIONS)]
        self._messages, self._offsets = [message for messages in left for message in messages], list(map(len, left))
        self._broker.lose_everything()
        self._broker.create(self._name, PARTITIONS)
        self._broker.send(self._name, self._messages)

    def send_at(self, partition: int, row: dict[str, Any], stamp_us: int) -> int:
        """Sends one row with a stamp; returns its offset."""
        self._broker.send(self._name, [(partition, orjson.dumps(row))], stamp_us)
        self._offsets[partition] += 1
        return self._offsets[partition]

    def ends(self) -> dict[tuple[str, int], int]:
        """The last offset of each partition."""
        return {(self.source.name, partition): offset for partition, offset in enumerate(self._offsets)}

    def kept(self) -> list[NaiveEvent]:
        return without_repeats(self.history, PARTS.dedup_horizon_us)


def definitions_of(topic: Topic, project: str) -> Catalog:
    return replace(catalog(project=project), sources=(topic.source,))
