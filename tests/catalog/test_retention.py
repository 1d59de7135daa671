"""A source keeps what its views look back to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from headrace.errors import DefinitionError

DAY_US = 86_400_000_000

CLICKS = 'clicks = events("clicks", time="ts", retention="{}", columns={{"card_id": "string", "ts": "timestamp"}})\n'
WINDOW = 'seen = stream_view("seen", card, clicks, windows("*", ["count"], over=["{}"]))\n'
PLAIN = """
kept = FeatureView(name="kept", entities=[card], source=clicks, ttl=timedelta(days={}),
                   schema=[Field(name="card_id", dtype=String), Field(name="n", dtype=Int64)])
"""


def test_a_retention_that_reaches_far_enough_is_taken(compiled: Callable[..., Any]) -> None:
    catalog = compiled(CLICKS.format("10d") + WINDOW.format("7d"))
    assert {source.name: source.retention_us for source in catalog.sources} == {"payments": 0, "clicks": 10 * DAY_US}


REFUSED = {
    "short": (CLICKS.format("8d") + WINDOW.format("7d"), r"'clicks' has 8d and view 'seen' .*use at least 10d"),
    "lifetime": (CLICKS.format("900d") + WINDOW.format("lifetime"), "looks back for ever.*'seen'.*give it windows"),
    "no ttl": (
        CLICKS.format("900d").replace('"string",', '"string", "n": "bigint",') + PLAIN.format(0),
        "looks back for ever.*'kept'.*give it a ttl",
    ),
    "no duration": (CLICKS.format("soon"), "tag retention|got 'soon'"),
}


@pytest.mark.parametrize(("text", "words"), REFUSED.values(), ids=REFUSED)
def test_a_retention_that_would_starve_a_view_is_refused(compiled: Callable[..., Any], text: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        compiled(text)
