"""A topic read as a log: positions, gaps, poison, an unreachable broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pyarrow as pa
import pytest
import redis
from kafka_broker import Broker

from headrace.catalog.definitions import Catalog, Column, DType, KafkaTopic, Source
from headrace.compute.events import parse_entries
from headrace.errors import SettingsError, UnavailableError
from headrace.settings import Settings
from headrace.stores import kafka_cursor
from headrace.stores.connection import open_store
from headrace.stores.gaps import find_gap
from headrace.stores.kafka_log import TopicLog
from headrace.stores.kafka_messages import entry_of
from headrace.stores.logs import Logs
from headrace.stores.markers import Applied, Markers
from headrace.stores.stream import Entry, EventStream, pack_offset

STAMP_US = 1_700_000_000_000_000
COLUMNS = (Column("id", DType.STRING), Column("n", DType.INT64), Column("ts", DType.TIMESTAMP))


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as running:
        yield running


@pytest.fixture
def open_topic(broker: Broker) -> Iterator[Callable[..., TopicLog]]:
    opened = []

    def make(name: str, partitions: int = 1, payload: Any = "json") -> TopicLog:
        broker.create(name, partitions)
        opened.append(TopicLog(KafkaTopic(broker.servers, name, payload), partitions, Settings()))
        return opened[-1]

    yield make
    for topic in opened:
        topic.close()


@pytest.fixture
def store(settings: Settings) -> Iterator[redis.Redis]:
    with open_store(settings) as opened:
        yield opened


def event(n: int) -> bytes:
    return orjson.dumps({"id": str(n), "n": n, "ts": "2023-11-14T22:13:20Z"})


def read_until(topic: TopicLog, after: dict[int, int], last: dict[int, int]) -> dict[int, list[Entry]]:
    """What `read` gives, call by call, until every partition is at its last offset."""
    at, found = dict(after), {partition: list[Entry]() for partition in after}
    deadline_s = time.monotonic() + 20
    while any(at[partition] < offset for partition, offset in last.items()):
        assert time.monotonic() < deadline_s, (at, topic.trouble)
        for partition, entries in topic.read(at, 0.2).items():
            found[partition] += entries
            at[partition] = entries[-1].offset
    return found


def source_of(topic: TopicLog, **changes: Any) -> Source:
    return Source(topic.topic.topic, COLUMNS, "ts", event_id="id", kafka=topic.topic, **changes)


def test_a_message_is_an_entry_at_its_offset_plus_one(broker: Broker, open_topic: Callable[..., TopicLog]) -> None:
    topic = open_topic("simple", 3)
    broker.send("simple", [(n % 2, event(n)) for n in range(3_000)], STAMP_US)
    found = read_until(topic, {0: 0, 1: 0, 2: 0}, {0: 1_500, 1: 1_500})
    assert [entry.offset for entry in found[0]] == list(range(1, 1_501)) and not found[2]
    assert [orjson.loads(entry.payload)["n"] for entry in found[1]] == list(range(1, 3_000, 2))
    assert {(e.count, e.total - e.offset, e.arrival_us) for e in found[0]} == {(1, 0, STAMP_US)}


def test_reading_goes_on_wherever_it_is_told(broker: Broker, open_topic: Callable[..., TopicLog]) -> None:
    topic = open_topic("rewound", 2)
    broker.send("rewound", [(n % 2, event(n)) for n in range(40)])
    read_until(topic, {0: 0, 1: 0}, {0: 20, 1: 20})
    again = read_until(topic, {0: 15, 1: 19}, {0: 20, 1: 20})
    assert [e.offset for e in again[0]] == [16, 17, 18, 19, 20] and [e.offset for e in again[1]] == [20]
    broker.send("rewound", [(0, event(40)), (1, event(41))])
    assert [e.offset for e in read_until(topic, {1: 20}, {1: 21})[1]] == [21]
    assert [e.offset for e in read_until(topic, {0: 20, 1: 21}, {0: 21})[0]] == [21]


def test_a_range_is_read_as_of_a_stream(broker: Broker, open_topic: Callable[..., TopicLog]) -> None:
    topic = open_topic("ranges")
    broker.send("ranges", [(0, event(n)) for n in range(500)])
    assert [e.offset for e in topic.between(0, 3, 5, 100)] == [3, 4, 5]
    assert [e.offset for e in topic.between(0, 6, 9, 100)] == [6, 7, 8, 9]
    offset, seen = 0, []
    while found := topic.between(0, offset + 1, 2**62, 120):
        seen += [e.offset for e in found]
        offset = found[-1].offset
    assert seen == list(range(1, 501))


def test_heads_are_the_newest_entries(broker: Broker, open_topic: Callable[..., TopicLog]) -> None:
    topic = open_topic("heads", 3)
    assert topic.heads([0, 1, 2]) == {0: None, 1: None, 2: None}
    broker.send("heads", [(0, event(1)), (0, event(2)), (2, event(3) + b"\n" + event(4))], STAMP_US)
    heads = topic.heads([0, 1, 2])
    shown = {part: (head.offset, head.count, head.total, head.arrived_us) for part, head in heads.items() if head}
    assert shown == {0: (2, 1, 2, STAMP_US), 2: (1, 2, 1, STAMP_US)}


def test_offsets_that_a_transaction_takes_are_no_events(broker: Broker, open_topic: Callable[..., TopicLog]) -> None:
    topic = open_topic("transactions")
    broker.transaction("transactions", [(0, event(1)), (0, event(2))])
    found = read_until(topic, {0: 0}, {0: 3})[0]
    assert [(e.offset, e.count) for e in found] == [(1, 1), (2, 1), (3, 0)]
    head = topic.heads([0])[0]
    assert head is not None and (head.offset, head.total) == (3, 3)
    batch = parse_entries(source_of(topic), 0, found, "wall", None)
    assert len(batch) == 2 and not batch.dead and str(batch.end) == f"{head.offset}-{head.count - 1}"
    broker.send("transactions", [(0, event(3))])
    assert [e.offset for e in read_until(topic, {0: 3}, {0: 4})[0]] == [4]


POISON = [b"", b" ", None, b"{", b"[1]", b"null", b"\xff\xfe", b'{"id": "x"}', b'{"ts": 5}\n{"ts": true}']


def test_poison_becomes_dead_letters_and_its_neighbours_live(
    broker: Broker, open_topic: Callable[..., TopicLog]
) -> None:
    topic = open_topic("poison")
    values = [value for bad in POISON for value in (event(1), bad, event(2))]
    broker.send("poison", [(0, value) for value in values], STAMP_US)
    entries = read_until(topic, {0: 0}, {0: len(values)})[0]
    batch = parse_entries(source_of(topic), 0, entries, "wall", None)
    assert len(batch) == 2 * len(POISON)
    assert [letter.offset for letter in batch.dead] == [2 + 3 * n for n in range(len(POISON))] + [3 * len(POISON) - 1]
    assert [letter.payload for letter in batch.dead[:2]] == [b"", b""] and "empty" in batch.dead[2].reason
    assert {letter.arrival_us for letter in batch.dead} == {STAMP_US}


def test_one_object_over_several_lines_is_one_event() -> None:
    pretty = orjson.dumps({"id": "a", "n": 1, "ts": "2023-11-14T22:13:20Z"}, option=orjson.OPT_INDENT_2)
    entry = entry_of(_Message(4, pretty), "json")
    assert (entry.offset, entry.count) == (5, 1)
    batch = parse_entries(Source("s", COLUMNS, "ts"), 0, [entry], "event", None)
    assert batch.table["n"].to_pylist() == [1]


class _Message:
    def __init__(self, offset: int, value: bytes | None, stamp_ms: int = STAMP_US // 1_000) -> None:
        self._offset, self._value, self._stamp_ms = offset, value, stamp_ms

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes | None:
        return self._value

    def timestamp(self) -> tuple[int, int]:
        return 1, self._stamp_ms


def test_arrow_messages_hold_their_rows(broker: Broker, open_topic: Callable[..., TopicLog]) -> None:
    topic = open_topic("arrow", payload="arrow")
    table = pa.table({"id": ["a", "b"], "n": [1, 2], "ts": pa.array([STAMP_US] * 2).cast(pa.timestamp("us", "UTC"))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    good = sink.getvalue().to_pybytes()
    broker.send("arrow", [(0, good), (0, b"no arrow"), (0, None), (0, good[:-20]), (0, good)], STAMP_US)
    entries = read_until(topic, {0: 0}, {0: 5})[0]
    batch = parse_entries(source_of(topic), 0, entries, "wall", None)
    assert batch.table["n"].to_pylist() == [1, 2, 1, 2]
    assert {letter.offset for letter in batch.dead} == {2, 3, 4}


def test_no_event_arrives_before_the_one_it_follows() -> None:
    stamps_ms = [5_000, 9_000, 4_000, 99_000, 10_000]
    values = [event(n) for n in range(5)]
    values[3] = b"poison"
    entries = [
        entry_of(_Message(n, value, ms), "json") for n, (value, ms) in enumerate(zip(values, stamps_ms, strict=True))
    ]
    source = Source("s", COLUMNS, "ts", max_future_us=2**60)
    whole = parse_entries(source, 0, entries, "wall", None)
    assert whole.arrival_us.tolist() == [5_000_000, 9_000_000, 9_000_000, 10_000_000]
    first = parse_entries(source, 0, entries[:2], "wall", None)
    rest = parse_entries(source, 0, entries[2:], "wall", None, first.end.arrived_us)
    assert rest.arrival_us.tolist() == whole.arrival_us.tolist()[2:] and rest.end == whole.end
    assert whole.dead[0].arrival_us == 99_000_000


def test_arrivals_of_a_stream_are_in_its_offsets() -> None:
    offset = pack_offset(f"{STAMP_US // 1_000}-7")
    entry = Entry(offset, "ndjson", 1, 1, event(1))
    assert entry.arrival_us == STAMP_US
    batch = parse_entries(Source("s", COLUMNS, "ts"), 0, [entry], "wall", None)
    assert batch.arrival_us.tolist() == [STAMP_US] and batch.end.arrived_us is None


def test_a_marker_keeps_when_its_events_arrived(store: redis.Redis) -> None:
    markers, at = Markers(store, "kafka-marker"), Applied(3, 0, 3, STAMP_US - 5, STAMP_US)
    markers.raise_applied("source", "s", 0, at)
    assert markers.applied("source", [("s", 0)]) == {("s", 0): at}


def catalog_of(*sources: Source) -> Catalog:
    return Catalog("kafka", 1, "wall", (), sources)


def test_what_retention_took_before_it_was_read_is_a_gap(settings: Settings, store: redis.Redis) -> None:
    from confluent_kafka import Producer

    mock = Producer({"test.mock.num.brokers": 1, "log_level": 0, "bootstrap.servers": "x"})
    servers = next(iter(mock.list_topics(timeout=10).brokers.values()))
    topic = KafkaTopic(f"{servers.host}:{servers.port}", "short")
    source = Source("short", COLUMNS, "ts", kafka=topic)
    logs = Logs(EventStream(store, "kafka"), catalog_of(source), settings)
    body = event(1)[:-1] + b', "x": "' + b"-" * 200_000 + b'"}'
    for _ in range(60):  # the mock keeps a few megabytes
        mock.produce("short", body, partition=0)
        mock.flush(10)
    first = logs.topics["short"].between(0, 1, 2**62, 1)[0].offset
    assert first > 3, "the broker dropped nothing: the test tests nothing"
    markers = Markers(store, "kafka")
    gap = find_gap(logs, markers, "short", 0, Applied(2, 0, 2))
    assert gap is not None and gap.lost == first - 3 and f"before {first}" in str(gap)
    assert find_gap(logs, markers, "short", 0, Applied()) is None
    assert find_gap(logs, markers, "short", 0, Applied(first, 0, first)) is None
    deadline_s = time.monotonic() + 10
    while ("short", 0) not in logs.doubtful() and time.monotonic() < deadline_s:
        assert not logs.read({("short", 0): 2}, 10, 100)
    assert logs.doubtful() == {("short", 0)}
    logs.close()


def test_a_topic_that_ends_before_its_reader_is_a_gap(
    broker: Broker, open_topic: Callable[..., TopicLog], settings: Settings, store: redis.Redis
) -> None:
    topic = open_topic("cut")
    broker.send("cut", [(0, event(n)) for n in range(3)])
    logs = Logs(EventStream(store, "kafka"), catalog_of(source_of(topic)), settings)
    gap = find_gap(logs, Markers(store, "kafka"), "cut", 0, Applied(8, 0, 8))
    assert gap is not None and "ends at 3" in str(gap)
    assert find_gap(logs, Markers(store, "kafka"), "cut", 0, Applied(3, 0, 3)) is None
    deadline_s = time.monotonic() + 10
    while ("cut", 0) not in logs.doubtful() and time.monotonic() < deadline_s:
        logs.read({("cut", 0): 8}, 10, 100)
    assert logs.doubtful() == {("cut", 0)}
    logs.close()


def test_other_logs_go_on_while_a_broker_is_down(
    broker: Broker, open_topic: Callable[..., TopicLog], settings: Settings, store: redis.Redis
) -> None:
    topic = open_topic("down")
    broker.send("down", [(0, event(1))])
    pushed = Source("pushed", COLUMNS, "ts")
    stream = EventStream(store, "kafka-down")
    logs = Logs(stream, catalog_of(source_of(topic), pushed), settings)
    after = {("down", 0): 0, ("pushed", 0): 0}
    wait_for(lambda: ("down", 0) in logs.read(after, 10, 50))
    broker.cut()
    try:
        after["down", 0] = 1
        stream.append("pushed", "ndjson", event(2), 1)
        assert set(logs.read(after, 10, 50)) == {("pushed", 0)}
        with pytest.raises(UnavailableError, match="must be reachable"):
            logs.between("down", 0, 1, 5)
        started_s = time.monotonic()
        with pytest.raises(UnavailableError):
            logs.first_after("down", 0, 0)
        assert time.monotonic() - started_s < 1, "a broker that is down is asked again at once"
        assert logs.heads([("down", 0), ("pushed", 0)]).keys() == {("pushed", 0)}
    finally:
        broker.mend()
    broker.send("down", [(0, event(3))])
    wait_for(lambda: ("down", 0) in logs.read({("down", 0): 1}, 10, 50))
    logs.close()


def wait_for(found: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not found():
        assert time.monotonic() < deadline_s


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "confluent_kafka", None)
    with pytest.raises(SettingsError, match=r"pip install 'headrace\[kafka\]'"):
        kafka_cursor.kafka_library()


def test_credentials_come_from_settings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA_SECURITY_PROTOCOL", "sasl_ssl")
    monkeypatch.setenv("HEADRACE_KAFKA_SASL_MECHANISM", "SCRAM-SHA-512")
    monkeypatch.setenv("HEADRACE_KAFKA_SASL_USERNAME", "reader")
    monkeypatch.setenv("HEADRACE_KAFKA_SASL_PASSWORD", "hush")
    settings = Settings()
    assert "hush" not in repr(settings)
    assert kafka_cursor.client_config(settings) == {
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "reader",
        "sasl.password": "hush",
    }
    monkeypatch.setenv("HEADRACE_KAFKA_SASL_MECHANISM", "NONSENSE")
    with pytest.raises(SettingsError, match="HEADRACE_KAFKA_"):
        kafka_cursor.Cursor(KafkaTopic("127.0.0.1:1", "t"), Settings())
