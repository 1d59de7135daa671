"""Tags that are nearly ours are refused with the right name; the user's own are left alone."""

import pytest

from headrace.catalog.tags import SOURCE_TAGS, VIEW_TAGS, refuse_tags
from headrace.errors import DefinitionError


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("eventid", "event_id"),
        ("event-id", "event_id"),
        ("Event_ID", "event_id"),
        ("partition", "partitions"),
        ("dedupe_horizon", "dedup_horizon"),
        ("max_future", "max_future_skew"),
        ("schemas", "schema"),
    ],
)
def test_a_slip_is_refused_with_the_right_name(slip, meant):
    with pytest.raises(DefinitionError, match=f"nearly '{meant}'.*{slip!r}"):
        refuse_tags({slip: "x"}, SOURCE_TAGS, "PushSource 'payments'")
    with pytest.raises(DefinitionError, match=meant):
        refuse_tags({slip: "x"}, VIEW_TAGS, "FeatureView 'v'")


def test_a_tag_of_a_source_on_a_view_is_refused():
    with pytest.raises(DefinitionError, match="belongs to a PushSource"):
        refuse_tags({"event_id": "id"}, VIEW_TAGS, "FeatureView 'v'")


def test_ours_and_the_users_own_pass():
    refuse_tags({"event_id": "id", "schema": "id string", "team": "risk", "owner": "a", "pii": "no"}, SOURCE_TAGS, "")
    refuse_tags({"team": "risk", "version": "2", "release": "1"}, VIEW_TAGS, "")


def test_a_repo_with_a_slip_is_refused(compiled):
    with pytest.raises(DefinitionError, match="nearly 'event_id'"):
        compiled('other = events("other", time="ts", columns={"ts": "timestamp"}, tags={"eventid": "id"})')
