"""Positions in a topic that has lost messages that were read, or was made again under its name.

Kafka then gives the same offsets once more, and a position must never come twice. So the partition begins a new epoch:
from a Kafka offset on, positions go on behind all that were ever given. Of an earlier epoch the topic still has what
stands before the offset at which the next one begins. Where nothing was lost there is one epoch, and a position is
Kafka's offset + 1.

Epochs lie beside the tables of the offline store (topics.json): they are as much a part of the log as its archive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.stores.offline_records import TOPICS, read_record, write_record

__all__ = ["Epoch", "Epochs", "begin_epoch", "load_epochs"]

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Epoch:
    """Position `first` and those after it stand at Kafka's offset `kafka` and after."""

    first: int = 1
    kafka: int = 0

    def position(self, kafka: int) -> int:
        return self.first + kafka - self.kafka


@dataclass(frozen=True, slots=True)
class Epochs:
    """The epochs of one partition, oldest first."""

    all: tuple[Epoch, ...] = (Epoch(),)

    def position(self, kafka: int) -> int:
        """The position of the message at a Kafka offset."""
        return next(epoch for epoch in reversed(self.all) if epoch.kafka <= kafka).position(kafka)

    def kafka_after(self, position: int) -> int:
        """The Kafka offset at which what comes after a position begins."""
        n = max(n for n, epoch in enumerate(self.all) if epoch.first <= position + 1)
        later = [epoch.kafka for epoch in self.all[n + 1 :]]
        return min([self.all[n].kafka + position + 1 - self.all[n].first, *later])

    def kafka_at(self, position: int) -> int | None:
        """The Kafka offset of the message at a position, None where the topic no longer has its epoch there."""
        kafka = self.kafka_after(position - 1)
        return kafka if self.position(kafka) == position else None

    def end(self, kafka: int) -> int:
        """The last position before a Kafka offset, at which the topic ends."""
        last = self.all[-1]
        if kafka == last.kafka:
            return last.first - 1
        return self.position(kafka - 1) if kafka else 0


def load_epochs(root: Path) -> dict[Place, Epochs]:
    """By (source, partition), what is noted below `root`; partitions of one epoch are left out."""
    found = {}
    for name, epochs in read_record(root, TOPICS).items():
        source, _, partition = name.rpartition("|")
        found[source, int(partition)] = Epochs((Epoch(), *(Epoch(first, kafka) for first, kafka in epochs)))
    return found


def begin_epoch(root: Path, place: Place, epoch: Epoch) -> None:
    """From now on the partition has another epoch; its positions stand behind all that came before."""
    record: Mapping[str, list[list[int]]] = read_record(root, TOPICS)
    name = f"{place[0]}|{place[1]}"
    write_record(root, TOPICS, {**record, name: [*record.get(name, []), [epoch.first, epoch.kafka]]})
