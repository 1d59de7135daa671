"""Our replies beside those that Feast's own server gave (feast_replies.json, recorded by record_feast.py), field by
field. What differs is stated here and in docs/wire.md, and nothing else may."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from shop import Live

from headrace.client import FeatureClient

BOTH_LANES = True
HERE = Path(__file__).parent
RECORD: dict[str, Any] = json.loads((HERE / "feast_replies.json").read_text())
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in RECORD["cases"]}
EPOCH, WRITTEN = "1970-01-01T00:00:00Z", RECORD["time"] + "Z"

STATUSES = {
    "a null key": (500, 200),
    "a key as text": (200, 422),
    "a key as a fraction": (200, 422),
    "a key too many": (200, 422),
    "no key": (500, 422),
    "another key": (500, 422),
    "no rows": (500, 422),
    "unequal columns": (500, 422),
    "no request data": (404, 422),
    "an unknown feature": (500, 422),
    "a reference without a colon": (500, 422),
    "a feature twice": (500, 422),
    "nothing asked": (500, 422),
    "service and features": (200, 422),
    "a field that is none": (200, 422),
}
"""Feast's status and ours, where they differ."""

LEFT_OUT_BY_FEAST = {"on demand, full names": {"by_lists__total", "by_lists__even"}}
"""Features that were asked for and are not in Feast's reply."""


Columns = dict[str, dict[str, list[Any]]]


def columns_of(reply: dict[str, Any]) -> Columns:
    assert set(reply) == {"metadata", "results"} and set(reply["metadata"]) == {"feature_names"}
    names = reply["metadata"]["feature_names"]
    return dict(zip(names, reply["results"], strict=True))


def honest(columns: Columns) -> Columns:
    """Feast's columns with our statuses: the documented differences, and what follows from each."""
    drivers = columns["driver_id"]["values"]
    for name, column in columns.items():
        if name in ("driver_id", "customer_id"):
            continue
        values, statuses, times = column["values"], column["statuses"], column["event_timestamps"]
        for row, driver in enumerate(drivers):
            if driver == 4:  # written with nulls only, which Feast takes for unwritten
                statuses[row], times[row] = "NULL_VALUE", WRITTEN
            if name.startswith("last_3") and statuses[row] == "NOT_FOUND":  # a windowed view has every key
                statuses[row] = "NULL_VALUE"
            if name.endswith("speed") and values[row] is not None:  # past its ttl
                values[row], statuses[row] = None, "OUTSIDE_MAX_AGE"
            if values[row] is None and statuses[row] == "PRESENT":
                statuses[row] = "NULL_VALUE"
    return columns


def to_seconds(columns: Columns) -> Columns:
    """Feast keeps whole seconds of event timestamps."""
    for column in columns.values():
        column["event_timestamps"] = [f"{time[:19]}Z" for time in column["event_timestamps"]]
    return columns


def detail_of(reply: Any) -> dict[str, str] | None:
    """Feast's error form, None for another."""
    try:
        return dict(orjson.loads(reply))
    except (TypeError, ValueError):
        return None


@pytest.mark.parametrize("name", CASES)
def test_a_reply_is_feast_s_but_for_what_is_documented(wire: Live, name: str) -> None:
    case = CASES[name]
    reply = wire.http.post("/get-online-features", json=case["body"])
    feast_status, our_status = STATUSES.get(name, (case["status"], case["status"]))
    assert (case["status"], reply.status_code) == (feast_status, our_status), reply.text
    if our_status == 200 and feast_status == 200:
        ours, theirs = columns_of(reply.json()), columns_of(case["reply"])
        for added in LEFT_OUT_BY_FEAST.get(name, ()):
            assert ours.pop(added)["statuses"][0] == "PRESENT"
        assert to_seconds(ours) == honest(theirs)
    elif our_status != 200:
        ours_detail = detail_of(reply.json())
        assert ours_detail is not None and set(ours_detail) >= {"module", "class", "message"}
        if feast_status == our_status == 404:
            theirs_detail = detail_of(case["reply"])
            assert theirs_detail is not None
            assert (ours_detail["module"], ours_detail["class"]) == (theirs_detail["module"], theirs_detail["class"])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["body"] and case["status"] == 200])
def test_names_stand_in_the_order_of_the_request(wire: Live, name: str) -> None:
    body = CASES[name]["body"]
    reply = wire.http.post("/get-online-features", json=body)
    if reply.status_code != 200:
        return
    names = reply.json()["metadata"]["feature_names"]
    keys = [key for key in body["entities"] if key in ("driver_id", "customer_id")]
    assert names[: len(keys)] == keys
    if "features" in body:
        assert [name.split("__")[-1] for name in names[len(keys) :]] == [r.split(":")[1] for r in body["features"]]


def test_a_null_key_is_unseen(wire: Live) -> None:
    """Feast's server fails on it."""
    columns = columns_of(wire.post("/get-online-features", CASES["a null key"]["body"]))
    assert columns["driver_id"]["values"] == [1, None]
    assert columns["a_string"]["values"] == ["Köln 😀", None]
    assert columns["a_string"]["statuses"] == ["PRESENT", "NOT_FOUND"]
    assert columns["a_string"]["event_timestamps"] == [WRITTEN, EPOCH]


def test_timestamps_are_text_where_they_are_asked_for_as_text(wire: Live) -> None:
    body = {"features": ["every:a_time", "lists:last_3_moment_lifetime"], "entities": {"driver_id": [1, 2, 99]}}
    columns = columns_of(wire.post("/get-online-features", body, timestamps="rfc3339"))
    assert columns["a_time"]["values"] == ["2013-01-01T00:00:00Z", "1969-12-31T23:59:59Z", None]
    assert columns["last_3_moment_lifetime"]["values"][0] == [row["moment"] for row in RECORD["events"]]
    assert "seconds" in wire.post("/get-online-features", body, 422, timestamps="soon")


def test_a_moment_within_a_second_is_cut_down_to_it(wire: Live) -> None:
    row = {"driver_id": 60, "moment": "1969-12-31T23:59:58.999999Z", "ts": RECORD["events"][0]["ts"]}
    wire.push([row], "readings")
    wire.wait_until_applied()
    body = {"features": ["lists:last_3_moment_lifetime"], "entities": {"driver_id": [60]}}
    assert wire.post("/get-online-features", body)["results"][1]["values"] == [[-2]]
    assert wire.post("/get-online-features", body, timestamps="rfc3339")["results"][1]["values"] == [[row["moment"]]]


@pytest.mark.parametrize("drivers", [[1], [1, 2, 3, 4, 99, None]], ids=["one row", "many"])
def test_arrow_holds_every_type_as_json_does(wire: Live, drivers: list[int | None]) -> None:
    names = [
        f"every:{name}" for name in ("a_int32", "a_int64", "a_float32", "a_float64", "a_bool", "a_string", "a_time")
    ]
    names += [f"lists:last_3_{name}_lifetime" for name in ("n", "x", "flag", "word", "moment")]
    body = {"features": names, "entities": {"driver_id": drivers}}
    columns = columns_of(wire.post("/get-online-features", body))
    with FeatureClient(wire.url) as client:
        vectors = client.get(names, body["entities"])
    plain = {name: [seconds(value) for value in values] for name, values in vectors.to_dict().items()}
    assert plain == {name: column["values"] for name, column in columns.items()}
    assert vectors.statuses == {name: columns[name]["statuses"] for name in vectors.features}


def seconds(value: Any) -> Any:
    if isinstance(value, list):
        return [seconds(item) for item in value]
    return int(value.timestamp() // 1) if isinstance(value, datetime) else value


@pytest.fixture(scope="module")
def sdk(wire: Live, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Feast's FeatureStore over the same definitions, with our server as its online store."""
    from feast import FeatureStore, RepoConfig

    from headrace.catalog.load import load_repo

    folder = tmp_path_factory.mktemp("sdk")
    config = {"project": "wire", "provider": "local", "registry": str(folder / "registry.db"), "repo_path": folder}
    online = {"type": "remote", "path": wire.url}
    store = FeatureStore(config=RepoConfig(**config, online_store=online, entity_key_serialization_version=3))
    store.apply(load_repo(HERE / "wire_repo").objects)
    return store


def written(**columns: Any) -> Any:
    import pandas as pd

    moments = [datetime(2026, 3, 1, 0, 0, 0, 999_999, tzinfo=UTC)] * 3
    return pd.DataFrame({**columns, "event_timestamp": moments, "created": moments})


def test_every_type_is_written_by_the_sdk_and_read_by_it(wire: Live, sdk: Any) -> None:
    import pandas as pd

    columns: dict[str, Any] = {
        "a_int32": [1, -1, 2**31 - 1],
        "a_int64": [2**62 + 1, -5, 0],
        "a_float32": [0.5, None, -0.25],
        "a_float64": [1e-300, None, 2.5],
        "a_bool": [True, None, False],
        "a_string": ["ü", None, ""],
    }
    times = pd.to_datetime(["2013-01-01T00:00:00.900Z", None, "1969-12-31T23:59:58.000Z"])
    sdk.write_to_online_store("every", written(driver_id=[11, 12, 13], **columns, a_time=times))
    wire.wait_until_applied()
    keys = [{"driver_id": key} for key in (11, 12, 13, 14)]
    columns["a_time"] = [1_356_998_400, None, -2]
    for asked in ([f"every:{name}" for name in columns], sdk.get_feature_service("typed_v1")):
        seen = sdk.get_online_features(features=asked, entity_rows=keys).to_dict()
        assert {name: seen[name] for name in columns} == {name: [*held, None] for name, held in columns.items()}
        assert seen["driver_id"] == [11, 12, 13, 14]


def test_values_read_with_their_types_are_what_the_registry_says(wire: Live, sdk: Any) -> None:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    names = ["a_int32", "a_float32", "a_string", "a_time"]
    key = EntityKey(join_keys=["driver_id"], entity_values=[Value(int64_val=1)])
    view = sdk.get_feature_view("every")
    held = sdk._get_provider().online_store.online_read(sdk.config, view, [key], names)
    assert [held[0][1][name].WhichOneof("val") for name in names] == [
        "int32_val",
        "float_val",
        "string_val",
        "unix_timestamp_val",
    ]
    assert (held[0][0], held[0][1]["a_time"].unix_timestamp_val) == (
        datetime.fromisoformat(f"{RECORD['time']}+00:00"),
        1_356_998_400,
    )


def test_lists_reach_the_sdk(sdk: Any) -> None:
    names = [f"last_3_{name}_lifetime" for name in ("n", "x", "flag", "word", "moment")]
    seen = sdk.get_online_features(
        features=[f"lists:{name}" for name in names], entity_rows=[{"driver_id": 1}, {"driver_id": 99}]
    ).to_dict()
    held = [[1, 2, 3], [0.25, 0.5, 0.75], [False, True, True], ["w1", "w2", "w3"]]
    assert [seen[name] for name in names[:4]] == [[values, None] for values in held]
    assert seen[names[4]] == [[1_767_323_041, 1_767_323_042, 1_767_323_043], None]


def test_what_the_sdk_pushes_to_a_plain_view_s_source_is_served(wire: Live, sdk: Any) -> None:
    sdk.push("pair_rows", written(driver_id=[5, 6, 7], customer_id=["p", "p", "q"], trips=[50, 60, 70]))
    wire.wait_until_applied()
    keys = [{"driver_id": 7, "customer_id": "q"}, {"driver_id": 5, "customer_id": "p"}]
    seen = sdk.get_online_features(features=["pair:trips"], entity_rows=keys).to_dict()
    assert seen["trips"] == [70, 50]


def test_on_demand_features_reach_the_sdk_computed_by_the_server(sdk: Any) -> None:
    rows = [{"driver_id": 1, "amount": 2.0, "count": 2}, {"driver_id": 3, "amount": 2.0, "count": 3}]
    seen = sdk.get_online_features(features=sdk.get_feature_service("asked_v1"), entity_rows=rows).to_dict()
    assert (seen["text"], seen["even"]) == (["Köln 😀/2", "none/3"], [True, False])
    assert (seen["ratio"], seen["total"]) == ([20.0, None], [4.1, None])


def test_the_sdk_may_not_write_what_is_computed(sdk: Any) -> None:
    from feast.errors import FeastError

    items = {"n": 1, "x": 0.5, "flag": True, "word": "w", "moment": datetime(2026, 1, 1, tzinfo=UTC)}
    columns = {f"last_3_{name}_lifetime": [[item]] * 3 for name, item in items.items()}
    frame = written(driver_id=[1, 2, 3], **columns)
    frame["ts"] = frame["event_timestamp"]
    with pytest.raises(FeastError, match="push the events instead"):
        sdk.write_to_online_store("lists", frame)
