"""What is refused, each with the rule, the value and the remedy."""

from __future__ import annotations

import re
from typing import Any

import pytest

from headrace.catalog.compile import compile_repo
from headrace.errors import DefinitionError

AGG = 'Aggregation(column="amount", function="sum", time_window=timedelta(hours=1))'
SFV = """
spend = StreamFeatureView(name="spend", entities=[card], source=payments, timestamp_field="ts",
                          aggregations=[AGG]OPTIONS)
"""
PLAIN = """
last = FeatureView(name="last", entities=[card], source=payments,
                   schema=[Field(name="amount", dtype=Float64)]OPTIONS)
"""
BATCH = """
rows = FeatureView(name="rows", entities=[card], schema=[Field(name="amount", dtype=Float64)],
                   source=FileSource(path="data/rows.parquet", timestamp_field="ts"OPTIONS))
"""
ON_DEMAND = """
def double(inputs):
    return {"twice": [x * 2 for x in inputs["price"]]}

now = RequestSource(name="now", schema=[Field(name="price", dtype=Float64)])
twice = OnDemandFeatureView(name="twice", sources=[now], schema=[Field(name="twice", dtype=Float64)],
                            udf=double, mode="python"OPTIONS)
"""
GOOD = SFV.replace("AGG", AGG).replace("OPTIONS", "")


def sfv(aggregation: str = AGG, options: str = "") -> str:
    return SFV.replace("AGG", aggregation).replace("OPTIONS", options)


def service(features: str, options: str = "") -> str:
    return GOOD + PLAIN.replace("OPTIONS", "") + f'svc = FeatureService(name="svc", features=[{features}]{options})\n'


def source(tags: str, timestamp: str = "at", batch: str = "") -> str:
    file = batch or f'FileSource(path="data/none.parquet", timestamp_field="{timestamp}")'
    return f'clicks = PushSource(name="clicks", batch_source={file}, tags={tags})\n'


AGGREGATIONS = {
    "unknown function": (AGG.replace('"sum"', '"median"'), "no aggregation function 'median'; choose one of count"),
    "missing column": (AGG.replace('"amount"', '"amout"'), "needs column 'amout'.*payments.*amount.*correct"),
    "sum of strings": (AGG.replace('"amount"', '"country"'), "sum needs a numeric column, 'country' is string"),
    "sum of all": (AGG.replace('"amount"', '"*"'), "Only count takes"),
    "no column": (AGG.replace('"amount"', '""'), "names a column"),
    "sub-second window": (AGG.replace("hours=1", "milliseconds=500"), "whole seconds.*500ms; choose"),
    "fractional seconds": (AGG.replace("hours=1", "seconds=1.5"), "whole seconds.*1500ms"),
    "slide longer than window": (AGG[:-1] + ", slide_interval=timedelta(hours=2))", "shorter than its window.*2h"),
    "slide too short": (AGG[:-1] + ", slide_interval=timedelta(milliseconds=1))", "at least"),
    "slide of a lifetime": (
        'Aggregation(column="amount", function="sum", slide_interval=timedelta(hours=1))',
        "lifetime has no slide_interval, got 1h",
    ),
    "two of one name": (f"{AGG}, {AGG}", "must differ, 'sum_amount_3600s' occurs twice"),
    "named like its key": (AGG[:-1] + ', name="card_id")', "named like its join key"),
}


@pytest.mark.parametrize(("aggregation", "words"), AGGREGATIONS.values(), ids=AGGREGATIONS)
def test_an_aggregation_that_cannot_work_is_refused(load: Any, aggregation: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        compile_repo(load(sfv(aggregation)))


VIEWS = {
    "stream udf": (sfv(options=", udf=lambda df: df, mode='python'"), "the mode 'python'.*use mode='pandas'"),
    "stream engine": (sfv(options=", stream_engine={'type': 'spark'}"), "stream_engine"),
    "tiling hop": (sfv(options=", tiling_hop_size=timedelta(minutes=1)"), "tiling_hop_size.*slide_interval"),
    "pinned stream view": (sfv(options=", version='v2'"), "pinned version 'v2'"),
    "pinned view": (PLAIN.replace("OPTIONS", ", version='v1'"), "pinned version 'v1'"),
    "negative ttl": (PLAIN.replace("OPTIONS", ", ttl=timedelta(hours=-1)"), "ttl is positive"),
    "validation": (PLAIN.replace("OPTIONS", ", enable_validation=True"), "enable_validation"),
    "disabled": (PLAIN.replace("OPTIONS", ", enabled=False"), "enabled=False"),
    "no entities": (PLAIN.replace("entities=[card]", "entities=[]").replace("OPTIONS", ""), "without entities"),
    "other timestamp": (sfv().replace('timestamp_field="ts"', 'timestamp_field="when"'), "timestamp_field 'when'"),
    "schema of another name": (sfv(options=', schema=[Field(name="summe", dtype=Float64)]'), "got 'summe'"),
    "schema of another type": (
        sfv(options=', schema=[Field(name="sum_amount_3600s", dtype=Int64)]'),
        "is float64, its schema says int64",
    ),
    "missing feature": (PLAIN.replace('"amount"', '"amout"').replace("OPTIONS", ""), "needs column 'amout'"),
    "feature of another type": (PLAIN.replace("Float64", "Int64").replace("OPTIONS", ""), "declared as int64.*float64"),
    "array": (PLAIN.replace("Float64", "Array(Float64)").replace("OPTIONS", ""), "Array.*not supported; use one of"),
    "bytes": (PLAIN.replace("Float64", "Bytes").replace("OPTIONS", ""), "Bytes.*not supported"),
    "missing join key": (PLAIN.replace("[card]", '[entity("site")]').replace("OPTIONS", ""), "bind the Entity"),
    "key not in the source": (
        'site = entity("site")\n' + PLAIN.replace("[card]", "[site]").replace("OPTIONS", ""),
        "Join key 'site'.*needs column 'site'",
    ),
    "key of another type": (
        'site = entity("site", key="count_items")\n' + PLAIN.replace("[card]", "[site]").replace("OPTIONS", ""),
        "Join key 'count_items'.*declared as string.*int32",
    ),
    "batch feature view": (
        'b = BatchFeatureView(name="b", entities=[card], mode="python", '
        'source=FileSource(path="x", timestamp_field="t"))',
        "BatchFeatureView is not supported; use FeatureView over a FileSource",
    ),
    "view of views": (
        PLAIN.replace("OPTIONS", "")
        + 'd = FeatureView(name="d", entities=[card], source=[last], '
        + 'sink_source=FileSource(path="x", timestamp_field="t"))',
        "view of other views",
    ),
    "two views of one name": (GOOD + GOOD.replace("spend =", "spend2 ="), "own name.*'spend'"),
    "two views but for case": (GOOD + GOOD.replace("spend =", "b =").replace('"spend"', '"Spend"'), "own name"),
    "copy at module level": (GOOD + 'other = spend.with_name("other")', "inside the feature service"),
    "slash in the name": (GOOD.replace('"spend"', '"a/b"'), "holds none of @ : /"),
    "entity of doubles": (
        'd = Entity(name="d", join_keys=["amount"], value_type=ValueType.DOUBLE)',
        "value_type DOUBLE; a join key is STRING, INT64 or INT32",
    ),
    "written column": (
        'w = events("w", time="ts", columns={"card_id": "string", "created": "long", "ts": "timestamp"})\n'
        'v = FeatureView(name="v", entities=[card], source=w)',
        "'created'.*rename it",
    ),
}


@pytest.mark.parametrize(("text", "words"), VIEWS.values(), ids=VIEWS)
def test_a_view_that_cannot_work_is_refused(load: Any, text: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        compile_repo(load(text))


SCHEMA = '"schema": "id string, at timestamp"'
SOURCES = {
    "no schema": (source("{}"), r"no tag 'schema'.*does not exist; give it tags=\{\"schema\".*or write the file"),
    "bad schema": (source('{"schema": "id text"}'), "'text'; use one of int"),
    "no timestamp": (source("{" + SCHEMA + "}", "when"), "event time of source 'clicks' is 'when'"),
    "string timestamp": (source('{"schema": "id string, at string"}'), "'at' is string"),
    "no timestamp_field": (source("{" + SCHEMA + "}", batch='FileSource(path="x")'), "timestamp_field"),
    "no batch source": (source("{" + SCHEMA + "}", batch="None"), "batch_source=FileSource"),
    "unknown event id": (source('{"event_id": "no", ' + SCHEMA + "}"), "event_id of source 'clicks' is 'no'"),
    "timestamp as event id": (source('{"event_id": "at", ' + SCHEMA + "}"), "string or integer, 'at' is timestamp"),
    "partitions": (source('{"partitions": "0", ' + SCHEMA + "}"), "from 1 to 256, got '0'"),
    "dedup horizon": (source('{"dedup_horizon": "soon", ' + SCHEMA + "}"), "dedup_horizon.*'soon'.*10m"),
    "reserved column": (source('{"schema": "position long, at timestamp"}'), "'position'.*archive adds.*rename it"),
    "slash": (source("{" + SCHEMA + "}").replace('"clicks"', '"a/b"'), "holds none of /"),
    "kafka": (
        'k = KafkaSource(name="k", timestamp_field="ts", message_format=None, kafka_bootstrap_servers="x", topic="t")',
        "KafkaSource",
    ),
    "delta": (BATCH.replace("OPTIONS", ", file_format=DeltaFormat()"), "DeltaFormat is not supported; .*Parquet"),
    "csv": (BATCH.replace("rows.parquet", "rows.csv").replace("OPTIONS", ""), "csv is not supported"),
    "s3": (BATCH.replace("data/rows", "s3://bucket/rows").replace("OPTIONS", ""), "s3://.*local path"),
    "file without time": (BATCH.replace(', timestamp_field="ts"OPTIONS', ""), "timestamp_field"),
    "no file and no schema": (
        BATCH.replace('schema=[Field(name="amount", dtype=Float64)],', "").replace("OPTIONS", ""),
        "has no schema and its file 'data/rows.parquet' does not exist",
    ),
    "two sources of one name": (
        source("{" + SCHEMA + "}") + source("{" + SCHEMA + "}").replace("clicks =", "b ="),
        "source has its own name",
    ),
}


@pytest.mark.parametrize(("text", "words"), SOURCES.values(), ids=SOURCES)
def test_a_source_that_cannot_work_is_refused(load: Any, text: str, words: str) -> None:
    text = text.replace(
        "message_format=None", "message_format=__import__('feast.data_format').data_format.AvroFormat('')"
    )
    with pytest.raises(DefinitionError, match=words):
        compile_repo(load(text))


OTHER_KEY = """
other = entity("other", key="card_id", dtype="bigint")
things = events("things", time="ts", columns={"card_id": "bigint", "n": "long", "ts": "timestamp"})
counts = FeatureView(name="counts", entities=[other], source=things, schema=[Field(name="n", dtype=Int64)])
"""
SERVICES = {
    "unknown view": (service('"nothing"'), "names view 'nothing', the repo has: spend, last"),
    "unknown feature": (service('"spend:nothing"'), "names feature 'nothing'.*sum_amount_3600s"),
    "unknown selection": (service('spend[["typo"]]'), "names feature 'typo'"),
    "pinned": (service('"spend@v2"'), "pinned version"),
    "empty": (service(""), "without features"),
    "logging": (service("last", ", precompute_online=True"), "precompute_online"),
    "unknown key in a map": (service('last.with_join_key_map({"id": "x"})'), "maps join key 'id'.*card_id"),
    "two things of one name": (service('spend, last.with_name("spend")'), "'spend' stands for two things"),
    "one feature twice": (service('spend, spend[["sum_amount_3600s"]]'), "'spend:sum_amount_3600s' occurs twice"),
    "one key of two types": (OTHER_KEY + service("last, counts"), "'card_id' once.*string and int64"),
}


@pytest.mark.parametrize(("text", "words"), SERVICES.values(), ids=SERVICES)
def test_a_service_naming_what_is_not_there_is_refused(load: Any, text: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        compile_repo(load(text))


def on_demand(options: str = "", **changes: str) -> str:
    text = ON_DEMAND.replace("OPTIONS", options)
    for old, new in changes.items():
        text = re.sub(old, new, text)
    return text


ON_DEMANDS = {
    "entities": (on_demand(", entities=[card]"), "entities in it"),
    "written": (on_demand(", entities=[card], write_to_online_store=True"), "write_to_online_store"),
    "pinned": (on_demand(', version="v3"'), "pinned version"),
    "aggregations": (on_demand(f", aggregations=[{AGG}]".replace("amount", "price")), "aggregations"),
    "array": (on_demand().replace('"twice", dtype=Float64', '"twice", dtype=Array(Float64)'), "Array"),
    "one input twice": (
        on_demand().replace("sources=[now]", 'sources=[now, RequestSource(name="b", schema=now.schema)]'),
        "'price' occurs twice",
    ),
    "a view twice": (
        PLAIN.replace("OPTIONS", "") + on_demand().replace("[now]", '[now, last, last.with_name("b")]'),
        "twice",
    ),
}


@pytest.mark.parametrize(("text", "words"), ON_DEMANDS.values(), ids=ON_DEMANDS)
def test_an_on_demand_view_that_cannot_work_is_refused(load: Any, text: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        compile_repo(load(text))


def test_permissions_and_other_projects_are_refused(load: Any) -> None:
    with pytest.raises(DefinitionError, match="'shop' and a Project says 'other'"):
        compile_repo(load('p = Project(name="other")'))
    with pytest.raises(DefinitionError, match="Permission is not supported"):
        compile_repo(
            load(
                "from feast.permissions.permission import Permission\n"
                "from feast.permissions.action import READ\n"
                "from feast.permissions.policy import RoleBasedPolicy\n"
                'p = Permission(name="p", types=[FeatureView], policy=RoleBasedPolicy(roles=["x"]), actions=READ)'
            )
        )


CASES = {
    "columns of a source": (
        source('{"schema": "id string, Amount double, amount double, at timestamp"}'),
        "source 'clicks' must differ in more than case, 'Amount' and 'amount' do not",
    ),
    "features of a batch view": (
        BATCH.replace("OPTIONS", "").replace("dtype=Float64)", "dtype=Float64), Field(name='AMOUNT', dtype=Float64)"),
        "view 'rows' must differ in more than case, 'amount' and 'AMOUNT' do not",
    ),
    "a feature and its key": (
        BATCH.replace("OPTIONS", "").replace('name="amount"', 'name="Card_ID"'),
        "view 'rows' must differ in more than case, 'card_id' and 'Card_ID' do not",
    ),
    "a feature and a column of every row": (
        BATCH.replace("OPTIONS", "").replace('name="amount"', 'name="Created"'),
        "Feature 'Created' of view 'rows' is named like a column that every row has",
    ),
    "a column of the archive": (
        source('{"schema": "id string, Position bigint, at timestamp"}'),
        "Column 'Position' of source 'clicks' has a name that the archive adds",
    ),
    "a timestamp named like a column of the archive": (
        source('{"schema": "id string, arrival_time timestamp"}', timestamp="arrival_time"),
        "Column 'arrival_time' of source 'clicks' has a name that the archive adds",
    ),
}


@pytest.mark.parametrize(("text", "words"), CASES.values(), ids=CASES)
def test_names_that_the_archive_would_take_for_one_are_refused(load: Any, text: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        compile_repo(load(text))


def test_the_timestamp_may_be_called_event_time(load: Any) -> None:
    text = source('{"schema": "id string, event_time timestamp"}', timestamp="event_time")
    assert compile_repo(load(text)).source("clicks").timestamp == "event_time"
