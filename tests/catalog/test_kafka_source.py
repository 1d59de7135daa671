"""A KafkaSource is a stream of events; what of it cannot be one is refused with what to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from headrace.catalog.compile import compile_repo
from headrace.catalog.definitions import Catalog, KafkaTopic, Source, catalog_from_json, catalog_to_json
from headrace.catalog.evolve import changes, refuse_unsafe
from headrace.catalog.feast_registry import try_to_register
from headrace.catalog.load import Repo
from headrace.errors import DefinitionError

PLAIN = """
from feast.data_format import AvroFormat, JsonFormat
rides = KafkaSource(
    name="rides", timestamp_field="ts", kafka_bootstrap_servers="kafka:9092", topic="rides.v1",
    message_format=JsonFormat(schema_json="id string, card_id string, fare double, ts timestamp"),
    batch_source=FileSource(name="rides_history", path="data/rides.parquet", timestamp_field="ts"),
    tags={"event_id": "id", "partitions": "6"},
)
"""
SHORT = """
from headrace.define import kafka_events
rides = kafka_events(
    "rides", servers="kafka:9092", topic="rides.v1", time="ts", id="id", partitions=6,
    columns={"id": "string", "card_id": "string", "fare": "double", "ts": "timestamp"},
)
"""
VIEWS = """
spend = stream_view("spend", card, rides, windows("fare", ["sum"], over=["1h"]))
last = FeatureView(name="last", entities=[card], source=rides, schema=[Field(name="fare", dtype=Float64)])
"""

Load = Callable[[str], Repo]


@pytest.mark.filterwarnings("ignore:.*experimental:RuntimeWarning")
@pytest.mark.parametrize("text", [PLAIN, SHORT])
def test_views_read_a_topic_as_they_read_what_is_pushed(load: Load, text: str) -> None:
    repo = load(text + VIEWS)
    catalog = compile_repo(repo)
    source = catalog.source("rides")
    assert source.kafka == KafkaTopic("kafka:9092", "rides.v1", "json")
    assert (source.partitions, source.event_id, source.timestamp) == (6, "id", "ts")
    assert [f"{c.name} {c.dtype}" for c in source.columns] == [
        "id string",
        "card_id string",
        "fare float64",
        "ts timestamp",
    ]
    assert {(view.name, view.kind, view.source) for view in catalog.views} == {
        ("spend", "windowed", "rides"),
        ("last", "plain", "rides"),
    }
    assert catalog_from_json(catalog_to_json(catalog)) == catalog
    assert b"password" not in catalog_to_json(catalog)
    try_to_register(repo, catalog)


def test_arrow_messages_are_marked_by_a_tag(load: Load) -> None:
    text = SHORT.replace('time="ts"', 'payload="arrow", time="ts"')
    kafka = compile_repo(load(text + VIEWS)).source("rides").kafka
    assert kafka is not None and kafka.payload == "arrow"


@pytest.mark.parametrize(
    ("old", "new", "remedy"),
    [
        ('topic="rides.v1"', 'topic=""', "name it by topic="),
        ('kafka_bootstrap_servers="kafka:9092", ', "", "kafka_bootstrap_servers="),
        (
            'JsonFormat(schema_json="id string, card_id string, fare double, ts timestamp")',
            'AvroFormat("{}")',
            "payload: arrow",
        ),
        ('"event_id": "id"', '"payload": "protobuf"', "json or arrow"),
        ('"event_id": "id"', '"schema": "id string"', "its message_format says the schema"),
        ("tags={", 'field_mapping={"a": "b"}, tags={', "name the columns as the messages do"),
        ("tags={", 'created_timestamp_column="id", tags={', "the later offset wins"),
        ("tags={", "watermark_delay_threshold=timedelta(hours=1), tags={", "max_lateness"),
        ('name="rides", timestamp_field="ts"', 'name="rides", timestamp_field="id"', "make them equal"),
        ('"partitions": "6"', '"partitons": "6"', "write 'partitions'"),
    ],
)
def test_what_a_topic_cannot_have_is_refused(load: Load, old: str, new: str, remedy: str) -> None:
    assert old in PLAIN
    with pytest.raises(DefinitionError, match=remedy):
        compile_repo(load(PLAIN.replace(old, new)))


def _with(catalog: Catalog, kafka: KafkaTopic | None) -> Catalog:
    (source,) = catalog.sources
    return replace(catalog, sources=(replace(source, kafka=kafka),))


def test_a_source_keeps_its_topic_and_may_move_to_other_servers() -> None:
    old = Catalog("p", 1, "wall", (), (Source("s", (), "ts", kafka=KafkaTopic("a:1", "t")),))
    moved = _with(old, KafkaTopic("b:1", "t"))
    refuse_unsafe(old, moved)
    assert "b:1" in str(changes(old, moved))
    for kafka in (None, KafkaTopic("a:1", "u"), KafkaTopic("a:1", "t", "arrow")):
        with pytest.raises(DefinitionError, match="keeps its log"):
            refuse_unsafe(old, _with(old, kafka))
