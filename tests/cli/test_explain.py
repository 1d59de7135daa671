"""headrace explain: does the online value equal the archive's, and why."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog
from click.testing import CliRunner, Result
from shop import HOUR_US, Live, now, running, shop

from headrace.catalog.definitions import BatchSource, Column, FeatureView
from headrace.cli import group
from headrace.dtypes import DType
from headrace.errors import RequestError, UnknownNameError
from headrace.settings import Settings

AMOUNT = Column("amount", DType.FLOAT64)
LATEST = FeatureView("latest", "plain", ("card",), (AMOUNT,), "f8", source="payments", ttl_us=HOUR_US)
CREDIT = Column("credit", DType.FLOAT64)
SINCE = Column("since", DType.TIMESTAMP)
FILE = BatchSource("limits", "limits.parquet", "since", (Column("card_id", DType.STRING), CREDIT, SINCE))
LIMITS = FeatureView("limits", "batch", ("card",), (CREDIT,), "f9", batch=FILE)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder: Path = tmp_path_factory.mktemp("explained")
    settings = Settings(repo=folder, data_dir=folder / "data", port=0)
    moment = pa.array([0, 1], pa.timestamp("us", "UTC"))
    pq.write_table(
        pa.table({"card_id": ["a", "b"], "credit": [10.0, 20.0], "since": moment}), folder / "limits.parquet"
    )
    catalog = shop()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # stdout is judged
    with running(settings, replace(catalog, views=(*catalog.views, LATEST, LIMITS))) as server:
        rows = [{"id": str(i), "card_id": "a", "amount": i, "ts": now(-600 * i - 5)} for i in range(1, 4)]
        server.push([*rows, {"id": "old", "card_id": "old", "amount": 7, "ts": now(-7_200)}])
        columns = ("limit", "vip", "since", "created")
        row = {"card_id": ["a"], "city": ["Zürich"], "event_timestamp": [now(-60)]} | {name: [None] for name in columns}
        server.post("/write-to-online-store", {"feature_view_name": "profile", "df": row})
        server.wait_until_applied()
        server.wait_until_applied("archived")
        yield server
    structlog.reset_defaults()


def explain(live: Live, *arguments: str, repo: Path | None = None, **environment: str) -> Result:
    where = ["--repo", str(repo or live.settings.repo), "--data-dir", str(live.settings.data_dir)]
    return CliRunner().invoke(group, ["explain", *arguments, *where], env=environment)


def found(live: Live, *arguments: str) -> Any:
    result = explain(live, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_verdict_comes_first_and_every_line_fits_a_terminal(live: Live) -> None:
    text = explain(live, "card_spend", "a", COLUMNS="80").stdout
    assert text.startswith("agree: card_spend of card_id=a at ")
    table = text[text.index("feature ") :]
    assert max(map(len, table.splitlines())) <= 80
    assert "3 archived events that count" in table and "datetime" not in text and "{" not in text


def test_a_windowed_view_shows_the_events_that_count(live: Live) -> None:
    shown = found(live, "card_spend", "a")
    assert shown["agree"] is True and shown["offline"] == shown["online"]["values"] == {"count_1h": 3, "sum_1h": 6.0}
    assert [event["amount"] for event in shown["events"]] == [3.0, 2.0, 1.0]


def test_a_plain_view_shows_value_event_time_ttl_and_agreement(live: Live) -> None:
    shown = found(live, "latest", "a")
    assert (shown["agree"], shown["online"]["status"], shown["offline"]) == (True, "PRESENT", {"amount": 1.0})
    assert [event["row.from"] for event in shown["events"]] == ["event"] * 3
    assert "TTL 1h, 49m" in explain(live, "latest", "a").stdout


def test_a_row_past_its_ttl_says_so(live: Live) -> None:
    shown = found(live, "latest", "old")
    assert (shown["agree"], shown["online"]["status"], shown["offline"]) == (True, "OUTSIDE_MAX_AGE", {"amount": None})
    assert (
        "OUTSIDE_MAX_AGE: newest row at" in (text := explain(live, "latest", "old").stdout) and "past it by 1h" in text
    )


def test_direct_writes_count_in_a_plain_view(live: Live) -> None:
    shown = found(live, "profile", "a")
    assert shown["agree"] is True and shown["offline"]["city"] == "Zürich"
    assert [event["row.from"] for event in shown["events"]] == ["direct write"]


def test_a_batch_view_that_was_not_materialized_differs_with_the_remedy(live: Live) -> None:
    shown = found(live, "limits", "a")
    assert (shown["agree"], shown["differ"], shown["online"]["status"]) == (False, ["credit"], "NOT_FOUND")
    text = explain(live, "limits", "a").stdout
    assert text.startswith("DIFFER: limits of card_id=a") and "headrace materialize limits" in text
    live_rows = found(live, "limits", "nobody")
    assert live_rows["agree"] is True and live_rows["events"] == []


def test_a_past_moment_has_no_verdict_but_the_archives_value(live: Live) -> None:
    shown = found(live, "card_spend", "a", "--at", now(-900))
    assert shown["agree"] is None and shown["offline"] == {"count_1h": 2, "sum_1h": 5.0}
    assert explain(live, "card_spend", "a", "--at", now(-900)).stdout.startswith("no verdict")


def test_a_missing_batch_file_is_said_and_the_online_value_shown(live: Live, tmp_path: Path) -> None:
    result = explain(live, "limits", "a", repo=tmp_path)
    assert result.exit_code == 0 and "the archive cannot be read: Batch source 'limits'" in result.stdout


def test_wrong_names_and_keys_are_told_why(live: Live) -> None:
    on_demand = explain(live, "share", "a").exception
    assert isinstance(on_demand, UnknownNameError) and "'share' is an on-demand feature view" in str(on_demand)
    two = explain(live, "latest", "a", "b").exception
    assert isinstance(two, RequestError) and "has card_id and got 2 values" in str(two)
