from __future__ import annotations

from typing import Any

import orjson
import pytest
from shop import Live, now

from headrace.moments import EARLIEST_US, LATEST_US, rfc3339

BOTH_LANES = True
CARD = {"card_id": ["a"]}


def test_a_vector_has_feast_s_form_with_the_keys_first(live: Live) -> None:
    moment = now(-1)
    live.push([{"id": "form1", "card_id": "form:ü", "amount": 2.5, "ts": moment}])
    live.wait_until_applied()
    reply = live.post("/get-online-features", {"feature_service": "card_v1", "entities": {"card_id": ["form:ü", None]}})
    assert reply["metadata"] == {"feature_names": ["card_id", "count_1h", "sum_1h", "limit", "city", "since"]}
    never, stamp = "1970-01-01T00:00:00Z", moment
    assert reply["results"][:4] == [
        {"values": ["form:ü", None], "statuses": ["PRESENT", "PRESENT"], "event_timestamps": [never, never]},
        {"values": [1, 0], "statuses": ["PRESENT", "PRESENT"], "event_timestamps": [stamp, never]},
        {"values": [2.5, None], "statuses": ["PRESENT", "NULL_VALUE"], "event_timestamps": [stamp, never]},
        {"values": [None, None], "statuses": ["NOT_FOUND", "NOT_FOUND"], "event_timestamps": [never, never]},
    ]


def test_references_keep_the_request_s_order_and_take_full_names(live: Live) -> None:
    features = ["profile:vip", "card_spend:sum_1h", "profile:city"]
    body = {"features": features, "entities": CARD, "full_feature_names": True}
    names = live.post("/get-online-features", body)["metadata"]["feature_names"]
    assert names == ["card_id", "profile__vip", "card_spend__sum_1h", "profile__city"]


def test_as_of_is_the_moment_of_every_row_and_full_metadata_states_it(live: Live) -> None:
    live.push([{"id": "as1", "card_id": "as", "amount": 1, "ts": now(-7200)}])
    live.push([{"id": "as2", "card_id": "as", "amount": 2, "ts": now(-60)}])
    live.wait_until_applied()
    as_of = now(3600 - 120)
    body = {"feature_service": "card_v1", "entities": {"card_id": ["as", "b"]}, "as_of": as_of}
    reply = live.post("/get-online-features", body, metadata="full")
    assert reply["metadata"]["t"] == [as_of, as_of]
    assert reply["metadata"]["catalog_version"] >= 1
    assert reply["metadata"]["views"]["card_spend"]["positions"]
    assert reply["results"][1]["values"] == [1, 0]
    assert live.look_up(["as"], as_of=now(2 * 3600))["count_1h"] == [0]


def test_as_of_behind_what_the_store_holds_is_409(live: Live) -> None:
    live.push([{"id": "late1", "card_id": "late", "amount": 1, "ts": now(-10)}])
    live.wait_until_applied()
    body = {"feature_service": "card_v1", "entities": {"card_id": ["late"]}, "as_of": now(-20)}
    assert "must not precede" in live.post("/get-online-features", body, 409)


def test_on_demand_features_read_request_data_beside_the_keys(live: Live) -> None:
    live.push([{"id": "od1", "card_id": "od", "amount": 8, "ts": now(-10)}])
    live.wait_until_applied()
    reply = live.post(
        "/get-online-features",
        {"feature_service": "share_v1", "entities": {"card_id": ["od", "new"], "amount": [2.0, 2.0]}},
    )
    assert reply["results"][1]["values"] == [0.25, 1.0]


WRONG: list[tuple[str, Any, int, str]] = [
    ("no object", [], 422, "the body"),
    ("no entities", {"feature_service": "card_v1"}, 422, "entities"),
    ("entities of another shape", {"feature_service": "card_v1", "entities": {"card_id": "a"}}, 422, "list"),
    ("empty entities", {"feature_service": "card_v1", "entities": {}}, 422, "card_id"),
    ("no rows", {"feature_service": "card_v1", "entities": {"card_id": []}}, 422, "rows"),
    ("too many rows", {"feature_service": "card_v1", "entities": {"card_id": ["a"] * 51}}, 422, "1 to 50 rows"),
    ("another key", {"feature_service": "card_v1", "entities": {"shop_id": [1]}}, 422, "missing: card_id"),
    ("a key too many", {"feature_service": "card_v1", "entities": {**CARD, "shop": [1]}}, 422, "unknown: 'shop'"),
    ("wrong type", {"feature_service": "card_v1", "entities": {"card_id": [1]}}, 422, "must be string"),
    ("nested", {"feature_service": "card_v1", "entities": {"card_id": [{"a": 1}]}}, 422, "must be string"),
    ("unknown service", {"feature_service": "nope", "entities": CARD}, 404, "no feature service 'nope'"),
    ("unknown view", {"features": ["nope:x"], "entities": CARD}, 404, "no feature view 'nope'"),
    ("unknown feature", {"features": ["profile:x"], "entities": CARD}, 422, "no feature 'x'"),
    ("no colon", {"features": ["profile"], "entities": CARD}, 422, "view:feature"),
    ("nothing asked", {"entities": CARD}, 422, "feature_service or features"),
    ("both asked", {"feature_service": "card_v1", "features": ["profile:city"], "entities": CARD}, 422, "name one"),
    ("a moment that is none", {"feature_service": "card_v1", "entities": CARD, "as_of": "soon"}, 422, "RFC 3339"),
    ("a field that is none", {"feature_service": "card_v1", "entities": CARD, "as_off": "x"}, 422, "as_off"),
    ("no request data", {"feature_service": "share_v1", "entities": CARD}, 422, "missing: amount"),
    ("unequal columns", {"feature_service": "share_v1", "entities": {**CARD, "amount": [1, 2]}}, 422, "one length"),
]


@pytest.mark.parametrize(("body", "status", "message"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_wrong_request_is_told_why(live: Live, body: Any, status: int, message: str) -> None:
    detail = orjson.loads(live.post("/get-online-features", body, status))
    assert detail["module"] == "feast.errors"
    assert message in detail["message"]


@pytest.mark.parametrize("raw", [b"", b"{", b"null", b"\xff\xfe", b'{"entities": {"card_id": [1e999]}}', b"[" * 5000])
def test_malformed_json_is_422(live: Live, raw: bytes) -> None:
    assert live.http.post("/get-online-features", content=raw).status_code == 422


def test_a_body_beyond_the_limit_is_413_and_an_unknown_path_404(live: Live) -> None:
    reply = live.http.post("/get-online-features", content=b" " * (3 << 20))
    assert (reply.status_code, "1048576 bytes" in reply.text) == (413, True)
    assert live.http.post("/nowhere").status_code == 404
    assert live.http.get("/push").status_code == 405
    assert live.post("/get-online-features", {}, 422, metadata="some")


def test_moments_have_six_digits_or_none() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339(1_500_000) == "1970-01-01T00:00:01.500000Z"
    assert rfc3339(-1) == "1969-12-31T23:59:59.999999Z"


def test_a_moment_beyond_what_rfc_3339_can_say_is_the_nearest_it_can() -> None:
    for us in (LATEST_US, LATEST_US + 1, 2**63 - 1):
        assert rfc3339(us) == "9999-12-31T23:59:59.999999Z"
    for us in (EARLIEST_US, EARLIEST_US - 1, -(2**63)):
        assert rfc3339(us) == "0001-01-01T00:00:00Z"
