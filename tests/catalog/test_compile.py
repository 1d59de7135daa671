"""What definitions compile to."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.catalog.compile import compile_repo, notes_of
from headrace.catalog.definitions import Column, DType, catalog_from_json, catalog_to_json, write_source

HOUR_US = 3_600_000_000
SPEND = """
spend = stream_view("spend", card, payments,
    windows("*", ["count"], over=["10m"]),
    windows("amount", ["sum", "max"], over=["1h", "24h"]),
    windows("country", ["last"]),
)
"""


def test_a_source_keeps_its_schema_id_and_defaults(compiled: Any) -> None:
    source = compiled(SPEND).source("payments")
    assert [column.name for column in source.columns][:2] == ["payment_id", "card_id"]
    assert source.column("count_items").dtype is DType.INT32
    assert (source.timestamp, source.event_id, source.partitions) == ("ts", "payment_id", 1)
    assert (source.dedup_horizon_us, source.max_future_us) == (600_000_000, 600_000_000)


def test_a_source_takes_its_options_from_tags(compiled: Any) -> None:
    catalog = compiled("""
        clicks = PushSource(
            name="clicks", batch_source=FileSource(path="data/none.parquet", timestamp_field="at"),
            tags={"schema": "id long, card_id string, at timestamp", "event_id": "id", "partitions": "4",
                  "dedup_horizon": "1h", "max_future_skew": "30s", "team": "risk"},
        )
    """)
    source = catalog.source("clicks")
    assert (source.partitions, source.dedup_horizon_us, source.max_future_us) == (4, HOUR_US, 30_000_000)


def test_windows_have_names_hops_and_types_in_declared_order(compiled: Any) -> None:
    view = compiled(SPEND).view("spend")
    assert (view.kind, view.source, view.entities, view.batch) == ("windowed", "payments", ("card",), None)
    assert [(a.feature, a.window_us, a.hop_us, str(a.dtype)) for a in view.aggregations] == [
        ("count_10m", 600_000_000, 15_000_000, "int64"),
        ("sum_amount_1h", HOUR_US, 300_000_000, "float64"),
        ("sum_amount_24h", 24 * HOUR_US, HOUR_US, "float64"),
        ("max_amount_1h", HOUR_US, 300_000_000, "float64"),
        ("max_amount_24h", 24 * HOUR_US, HOUR_US, "float64"),
        ("last_country_lifetime", None, 0, "string"),
    ]
    assert [feature.name for feature in view.features] == [a.feature for a in view.aggregations]


def test_plain_feast_says_the_same_as_the_short_form(compiled: Any) -> None:
    short = compiled('spend = stream_view("spend", card, payments, windows("amount", ["sum"], over=["1h"]))')
    plain = compiled("""
        spend = StreamFeatureView(
            name="spend", entities=[card], source=payments, timestamp_field="ts",
            aggregations=[Aggregation(column="amount", function="sum", time_window=timedelta(hours=1),
                                      name="sum_amount_1h")],
        )
    """)
    assert catalog_to_json(plain) == catalog_to_json(short)


def test_names_left_to_feast_are_feasts(compiled: Any) -> None:
    catalog = compiled("""
        spend = StreamFeatureView(
            name="spend", entities=[card], source=payments, timestamp_field="ts",
            aggregations=[Aggregation(column="amount", function="sum", time_window=timedelta(hours=1)),
                          Aggregation(column="amount", function="sum")],
        )
    """)
    assert [feature.name for feature in catalog.view("spend").features] == ["sum_amount_3600s", "sum_amount"]


def test_a_slide_interval_shorter_than_the_window_is_its_hop(compiled: Any) -> None:
    catalog = compiled(
        'spend = stream_view("spend", card, payments, windows("amount", ["sum"], over=["1h"], hop="1m"))'
    )
    assert catalog.view("spend").aggregations[0].hop_us == 60_000_000


def test_a_view_over_a_stream_without_aggregations_is_plain(compiled: Any) -> None:
    catalog = compiled("""
        last = FeatureView(name="last", entities=[card, shop], source=payments, ttl=timedelta(hours=3),
                           schema=[Field(name="country", dtype=String), Field(name="amount", dtype=Float64)])
        every = FeatureView(name="every", entities=[card], source=payments)
    """)
    last, every = catalog.view("last"), catalog.view("every")
    assert (last.kind, last.ttl_us, last.batch) == ("plain", 3 * HOUR_US, None)
    assert [feature.name for feature in last.features] == ["country", "amount"]
    assert catalog.join_keys(last) == (Column("card_id", DType.STRING), Column("shop_id", DType.INT64))
    assert [feature.name for feature in every.features] == ["shop_id", "amount", "count_items", "country"]
    assert [column.name for column in write_source(catalog, last).columns] == [
        "card_id",
        "shop_id",
        "country",
        "amount",
        "event_timestamp",
        "created",
    ]


def profile_table() -> pa.Table:
    return pa.table(
        {
            "shop_id": pa.array([1], pa.int32()),
            "Size": pa.array([2], pa.int32()),
            "town": ["Bern"],
            "since": pa.array([0], pa.timestamp("ns")),
            "written": pa.array([0], pa.timestamp("us", "UTC")),
        }
    )


PROFILE = """
profile = FeatureView(name="profile", entities=[shop], ttl=timedelta(0), source=FileSource(
    name="shops", path="data/shops.parquet", timestamp_field="since", created_timestamp_column="written",
    field_mapping={"Size": "size"}))
"""


def test_a_view_over_a_file_is_batch_with_the_files_columns(compiled: Any, write_repo: Any) -> None:
    data = write_repo() / "data"
    data.mkdir()
    pq.write_table(profile_table(), data / "shops.parquet")
    view = compiled(PROFILE).view("profile")
    assert (view.kind, view.source) == ("batch", None)
    assert view.features == (Column("size", DType.INT32), Column("town", DType.STRING))
    assert view.batch is not None
    assert (view.batch.path, view.batch.timestamp, view.batch.created_timestamp) == (
        "data/shops.parquet",
        "since",
        "written",
    )
    assert view.batch.field_mapping == (("Size", "size"),)
    assert view.batch.columns[0] == Column("shop_id", DType.INT64)
    assert [column.name for column in view.batch.columns] == ["shop_id", "size", "town", "since", "written"]


def test_a_declared_type_wins_over_the_files_if_it_can_be_read_so(compiled: Any, write_repo: Any) -> None:
    data = write_repo() / "data"
    data.mkdir()
    pq.write_table(profile_table(), data / "shops.parquet")
    text = PROFILE.replace("entities=[shop]", 'entities=[shop], schema=[Field(name="size", dtype=Float64)]')
    assert compiled(text).view("profile").features == (Column("size", DType.FLOAT64),)


def test_a_batch_view_with_a_schema_needs_no_file_yet(load: Any) -> None:
    repo = load(PROFILE.replace("entities=[shop]", 'entities=[shop], schema=[Field(name="size", dtype=Int64)]'))
    view = compile_repo(repo).view("profile")
    assert view.batch is not None and view.batch.timestamp == "since"
    assert "does not exist yet" in notes_of(repo)[0]


def test_a_plain_view_has_a_batch_source_only_if_its_file_exists(compiled: Any, write_repo: Any) -> None:
    text = """
        last = FeatureView(name="last", entities=[card], source=payments,
                           schema=[Field(name="amount", dtype=Float64)])
    """
    before = compiled(text).view("last")
    data = write_repo() / "data"
    data.mkdir()
    times = pa.array([0], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"card_id": ["a"], "amount": [1.5], "ts": times}), data / "payments.parquet")
    after = compiled(text).view("last")
    assert before.batch is None and after.batch is not None
    assert [column.name for column in after.batch.columns] == ["card_id", "amount", "ts"]
    assert before.fingerprint == after.fingerprint


def test_a_source_without_schema_takes_it_from_its_file(compiled: Any, write_repo: Any) -> None:
    data = write_repo() / "data"
    data.mkdir()
    table = pa.table({"card_id": ["a"], "n": [1], "at": pa.array([0], pa.timestamp("ms"))})
    pq.write_table(table, data / "clicks.parquet")
    catalog = compiled("""
        clicks = PushSource(name="clicks", batch_source=FileSource(path="data/clicks.parquet", timestamp_field="at"))
    """)
    assert catalog.source("clicks").columns == (
        Column("card_id", DType.STRING),
        Column("n", DType.INT64),
        Column("at", DType.TIMESTAMP),
    )


@pytest.mark.filterwarnings("ignore:Entity value_type:DeprecationWarning")
def test_an_entity_without_type_takes_it_from_its_views(compiled: Any) -> None:
    catalog = compiled("""
        untyped = Entity(name="untyped", join_keys=["shop_id"])
        last = FeatureView(name="last", entities=[untyped], source=payments,
                           schema=[Field(name="amount", dtype=Float64)])
    """)
    assert catalog.entity("untyped").dtype is DType.INT64


SERVICE = (
    SPEND
    + """
last = FeatureView(name="last", entities=[card], source=payments,
                   schema=[Field(name="country", dtype=String), Field(name="amount", dtype=Float64)])
service = FeatureService(name="fraud", tags={"team": "risk"}, features=[
    last[["amount", "country"]],
    spend.with_name("other").with_join_key_map({"card_id": "other_card"}),
    spend[["max_amount_24h"]],
    "last_of_all:country",
    "last_of_all",
])
last_of_all = last.with_name("x")
"""
)


def test_a_service_keeps_order_selections_names_and_key_maps(compiled: Any) -> None:
    text = SERVICE.replace("last_of_all:country", "last:country").replace('    "last_of_all",\n', "")
    text = text.replace('last_of_all = last.with_name("x")', "").replace("last[[", 'last.with_name("l")[[')
    catalog = compiled(text)
    service = catalog.service("fraud")
    assert [(ref.view, ref.name, ref.features, ref.join_key_map) for ref in service.references] == [
        ("last", "l", ("amount", "country"), ()),
        ("spend", "other", tuple(f.name for f in catalog.view("spend").features), (("card_id", "other_card"),)),
        ("spend", "spend", ("max_amount_24h",), ()),
        ("last", "last", ("country",), ()),
    ]
    assert service.tags == (("team", "risk"),)


ON_DEMAND = (
    SPEND
    + """
now = RequestSource(name="now", schema=[Field(name="price", dtype=Float64)])
SCALE = 2.5

def scaled(x):
    return x * SCALE

@on_demand_feature_view(sources=[spend[["max_amount_24h"]], now], mode="pandas",
                        schema=[Field(name="ratio", dtype=Float64), Field(name="n", dtype=Int64)])
def ratio(inputs: pd.DataFrame) -> pd.DataFrame:
    # how much of the largest payment
    out = pd.DataFrame()
    out["ratio"] = scaled(inputs["price"]) / inputs["max_amount_24h"]
    out["n"] = 1
    return out

service = FeatureService(name="s", features=[spend, ratio[["ratio"]]])
"""
)


def test_an_on_demand_view_carries_its_function_inputs_and_request_data(compiled: Any) -> None:
    catalog = compiled(ON_DEMAND)
    view = catalog.on_demand_view("ratio")
    assert (view.mode, view.function) == ("pandas", "ratio")
    assert [(ref.view, ref.features) for ref in view.inputs] == [("spend", ("max_amount_24h",))]
    assert view.request == (Column("price", DType.FLOAT64),)
    assert "SCALE = 2.5" in view.code and "def scaled" in view.code and "@" not in view.code
    assert catalog.service("s").references[1].features == ("ratio",)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("    # how much of the largest payment\n", "\n\n", True),
        ("SCALE = 2.5", "SCALE = 2.6", False),
        ("x * SCALE", "SCALE * x + 0", False),
    ],
)
def test_an_on_demand_fingerprint_covers_all_code_and_no_comments(
    compiled: Any, old: str, new: str, same: bool
) -> None:
    before = compiled(ON_DEMAND).on_demand_view("ratio").fingerprint
    assert (compiled(ON_DEMAND.replace(old, new)).on_demand_view("ratio").fingerprint == before) is same


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"country": "string"', '"country": "string", "channel": "string"', True),
        ('id="payment_id"', 'id="payment_id", partitions=8', True),
        ('id="payment_id"', 'id="payment_id", description="all cards"', True),
        ('id="payment_id"', 'id="payment_id", dedup="1h"', False),
        ('id="payment_id", ', "", False),
        ('"amount": "double"', '"amount": "float"', False),
        ('over=["1h"]', 'over=["2h"]', False),
        ('over=["1h"]', 'over=["1h"], hop="1m"', False),
    ],
)
def test_a_fingerprint_changes_with_what_changes_values(write_repo: Any, old: str, new: str, same: bool) -> None:
    from headrace.catalog.load import load_repo

    text = (
        "from headrace.define import *\ncard = entity('card', key='card_id')\n"
        'payments = events("payments", time="ts", id="payment_id", columns={"payment_id": "string", '
        '"card_id": "string", "amount": "double", "country": "string", "ts": "timestamp"})\n'
        'spend = stream_view("spend", card, payments, windows("amount", ["sum"], over=["1h"]))\n'
    )
    assert old in text
    before = compile_repo(load_repo(write_repo(features=text))).view("spend").fingerprint
    after = compile_repo(load_repo(write_repo(features=text.replace(old, new)))).view("spend").fingerprint
    assert (before == after) is same
    assert len(before) == 12 and int(before, 16) >= 0


def test_the_version_rises_only_when_something_changes_and_generations_are_kept(load: Any) -> None:
    first = compile_repo(load(SERVICE.split("service =")[0]))
    same = compile_repo(load(SERVICE.split("service =")[0]), previous=first)
    more = compile_repo(load(ON_DEMAND), previous=first)
    changed = compile_repo(load(ON_DEMAND.replace("10m", "20m")), previous=more)
    back = compile_repo(load(ON_DEMAND), previous=changed)
    assert (first.version, same.version, more.version, changed.version, back.version) == (1, 1, 2, 3, 4)
    assert [c.view("spend").generation for c in (first, more, changed, back)] == [1, 1, 3, 4]
    assert first.view("spend").fingerprint == back.view("spend").fingerprint


def test_the_clock_is_the_settings_then_the_previous_then_wall(load: Any) -> None:
    repo = load(SPEND)
    event = compile_repo(repo, clock="event")
    assert (compile_repo(repo).clock, event.clock, compile_repo(repo, previous=event).clock) == (
        "wall",
        "event",
        "event",
    )


def test_a_catalog_survives_json(compiled: Any) -> None:
    catalog = compiled(ON_DEMAND)
    assert catalog_from_json(catalog_to_json(catalog)) == catalog


def test_what_has_no_effect_is_said(load: Any) -> None:
    repo = load("""
        spend = StreamFeatureView(
            name="spend", entities=[card], source=payments, timestamp_field="ts", ttl=timedelta(days=1),
            aggregations=[Aggregation(column="amount", function="sum", time_window=timedelta(hours=1))],
        )
    """)
    assert notes_of(repo) == ["View 'spend': ttl has no effect on windows, they end by themselves."]


def test_a_file_behind_windows_is_said_to_be_unread(load: Any, write_repo: Any) -> None:
    data = write_repo() / "data"
    data.mkdir()
    (data / "payments.parquet").touch()
    assert notes_of(load(SPEND)) == [
        "View 'spend': file 'data/payments.parquet' is not read for windows; push its rows as events."
    ]
