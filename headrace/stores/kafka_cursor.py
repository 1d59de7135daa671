"""A consumer of one Kafka topic whose partitions and positions are ours to say: no group, no commits, no rebalancing.

confluent-kafka (the extra `kafka`) is imported when the first topic is opened.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from headrace.catalog.definitions import KafkaTopic
from headrace.errors import SettingsError, UnavailableError
from headrace.settings import Settings

__all__ = ["REPLY_S", "TAIL", "Cursor", "Taken", "kafka_library"]

TAIL = -2001
"""The place before the newest message, by librdkafka's numbering."""
MOST_BYTES = 16 << 20
CHUNK = 1_000
REPLY_S = 3.0
SETTLED_S = 1.0

_CONFIG: dict[str, Any] = {
    "group.id": "headrace",  # the client wants a name; without subscription and commits no group comes to be
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",  # a position that is gone is a loss to be told, never a reason to jump
    "enable.partition.eof": True,
    "allow.auto.create.topics": False,
    "isolation.level": "read_committed",
    "fetch.error.backoff.ms": 100,
    "reconnect.backoff.max.ms": 2_000,
    "queued.max.messages.kbytes": 32_768,
    "log_level": 0,
}


def kafka_library() -> ModuleType:
    """confluent-kafka. Raises SettingsError where it is not installed."""
    try:
        import confluent_kafka
    except ImportError:
        raise SettingsError(
            "A KafkaSource needs confluent-kafka, which is not installed; run pip install 'headrace[kafka]'."
        ) from None
    return confluent_kafka


def client_config(settings: Settings) -> dict[str, Any]:
    """How a client proves who it is, from HEADRACE_KAFKA_*."""
    secret, key_secret = settings.kafka_sasl_password, settings.kafka_ssl_key_password
    stated = {
        "security.protocol": settings.kafka_security_protocol,
        "sasl.mechanism": settings.kafka_sasl_mechanism,
        "sasl.username": settings.kafka_sasl_username,
        "sasl.password": secret.get_secret_value() if secret else None,
        "ssl.ca.location": settings.kafka_ssl_ca,
        "ssl.certificate.location": settings.kafka_ssl_certificate,
        "ssl.key.location": settings.kafka_ssl_key,
        "ssl.key.password": key_secret.get_secret_value() if key_secret else None,
    }
    return {name: str(value) for name, value in stated.items() if value is not None}


@dataclass(slots=True)
class Taken:
    """What one poll brought: messages in order, ends reached (partition: offset behind its last message), partitions
    that seem to have nothing at the offset asked for any more, or not yet."""

    messages: dict[int, list[Any]] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    outside: set[int] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.messages or self.ends or self.outside)


class Cursor:
    """Reads partitions of one topic from where it is told. Not thread-safe."""

    def __init__(self, topic: KafkaTopic, settings: Settings, fetch_wait_ms: int = 100) -> None:
        self._kafka = kafka_library()
        self._topic = topic
        own = {"bootstrap.servers": topic.servers, "fetch.wait.max.ms": fetch_wait_ms, "error_cb": self._note}
        config = {**_CONFIG, **client_config(settings), **own}
        try:
            self._consumer = self._kafka.Consumer(config)
        except self._kafka.KafkaException as error:
            raise SettingsError(
                f"The settings of Kafka must fit together, its client refuses them: {error.args[0].str()}; "
                "correct HEADRACE_KAFKA_*."
            ) from None
        self._at: dict[int, int] = {}
        self._paused: set[int] = set()
        self._since_s = 0.0
        self.trouble = ""
        """What the client last complained about, cleared when messages come."""

    def _note(self, error: Any) -> None:
        self.trouble = error.str()

    def close(self) -> None:
        self._consumer.close()

    def go(self, at: Mapping[int, int]) -> None:
        """Read each partition of `at` from its Kafka offset on (0: from the earliest message), and no other.

        A partition that already stands there goes on with what the client has fetched ahead.
        """
        if any(self._at.get(partition) != offset for partition, offset in at.items()):
            begin = self._kafka.OFFSET_BEGINNING
            self._consumer.assign([self._place(partition, offset or begin) for partition, offset in at.items()])
            self._at, self._paused, self._since_s = dict(at), set(), time.monotonic()
            return
        resting = set(self._at) - set(at)
        if resting != self._paused:
            self._consumer.pause([self._place(partition) for partition in resting - self._paused])
            self._consumer.resume([self._place(partition) for partition in self._paused - resting])
            self._paused = resting

    def reached(self, partition: int, offset: int) -> None:
        """Everything before the Kafka offset was handed on."""
        self._at[partition] = offset

    def rest(self) -> None:
        """Fetch nothing more, whatever was fetched ahead is dropped."""
        self._consumer.unassign()
        self._at, self._paused = {}, set()

    def take(self, most: int, wait_s: float) -> Taken:
        """Up to about `most` messages and a bounded number of bytes; waits for the first."""
        taken, size, count = Taken(), 0, 0
        found = self._consumer.consume(1, wait_s)
        while found:
            for message in found:
                if message.error() is not None:
                    self._take_error(message, taken)
                    continue
                taken.messages.setdefault(message.partition(), []).append(message)
                size += len(message.value() or b"")
            count += len(found)
            if count >= most or size >= MOST_BYTES:
                break
            found = self._consumer.consume(min(CHUNK, most - count), 0)
        if taken.messages:
            self.trouble = ""
        self._take_beyond(taken)
        return taken

    def _take_error(self, message: Any, taken: Taken) -> None:
        error, codes = message.error(), self._kafka.KafkaError
        if error.code() == codes._PARTITION_EOF:
            taken.ends[message.partition()] = message.offset()
        elif error.code() in (codes._AUTO_OFFSET_RESET, codes.OFFSET_OUT_OF_RANGE):
            taken.outside.add(message.partition())
        else:
            self.trouble = f"{self._topic.topic}: {error.str()}"

    def _take_beyond(self, taken: Taken) -> None:
        """Partitions that seem to end before the offset asked for, which not every broker calls an error."""
        if time.monotonic() < self._since_s + SETTLED_S:
            return  # what the client knows of the end may be from before
        for partition, offset in self._at.items():
            quiet = partition not in taken.messages and partition not in self._paused
            if quiet and 0 <= self.end(partition) < offset:
                taken.outside.add(partition)

    def end(self, partition: int) -> int:
        """Kafka offset behind the newest message, as the last reply to a fetch had it; -1 before the first."""
        _, high = self._consumer.get_watermark_offsets(self._place(partition), cached=True)
        return max(int(high), -1)

    def earliest(self, partition: int) -> int:
        """Kafka offset of the oldest message kept. Raises UnavailableError when no broker says it."""
        try:
            low, _ = self._consumer.get_watermark_offsets(self._place(partition), timeout=REPLY_S)
        except self._kafka.KafkaException as error:
            raise self.unavailable(error.args[0].str()) from None
        return int(low)

    def partitions(self, wait_s: float = REPLY_S) -> int:
        """How many partitions the topic has. Raises UnavailableError when no broker says it, or there is no topic."""
        try:
            found = self._consumer.list_topics(self._topic.topic, timeout=wait_s).topics[self._topic.topic]
        except self._kafka.KafkaException as error:
            raise self.unavailable(error.args[0].str()) from None
        if found.error is not None:
            raise self.unavailable(found.error.str())
        return len(found.partitions)

    def unavailable(self, why: str = "") -> UnavailableError:
        """What to raise when the topic does not answer."""
        why = why or self.trouble or "no answer"
        return UnavailableError(
            f"The topic {self._topic.topic!r} at {self._topic.servers} must be reachable, it is not ({why}); "
            "start its broker, create the topic, or correct the definition or HEADRACE_KAFKA_*."
        )

    def _place(self, partition: int, offset: int | None = None) -> Any:
        kind = self._kafka.TopicPartition
        return kind(self._topic.topic, partition) if offset is None else kind(self._topic.topic, partition, offset)
