"""The tags that mean something to us: what Feast has no field for, and what tags must not be by mistake."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from headrace.errors import DefinitionError

__all__ = ["KAFKA_TAGS", "SOURCE_TAGS", "VIEW_TAGS", "refuse_tags"]

SOURCE_TAGS = ("event_id", "partitions", "dedup_horizon", "max_future_skew", "schema", "expect", "retention")
KAFKA_TAGS = (*(tag for tag in SOURCE_TAGS if tag != "schema"), "payload")
VIEW_TAGS = ("expect", "transformed", "engine", "defaults", "max_staleness")
NEAR = 0.8
"""How alike, from 0 to 1, a tag must be to one of ours to be taken for a slip."""


def refuse_tags(tags: Mapping[str, str], own: tuple[str, ...], who: str) -> None:
    """Raises DefinitionError for a tag that is nearly one of ours, and for one of ours that is not of `own`; any
    other is the user's and means nothing here."""
    for tag in tags:
        if tag in own:
            continue
        if tag in SOURCE_TAGS:
            raise DefinitionError(f"The tag {tag!r} belongs to a PushSource, {who} has it; move it to its source.")
        plain = tag.lower().replace("-", "_").replace(" ", "_")
        near = difflib.get_close_matches(plain, own, n=1, cutoff=NEAR)
        near = near or difflib.get_close_matches(plain, SOURCE_TAGS, n=1, cutoff=NEAR)
        if near:
            raise DefinitionError(
                f"A tag that is nearly {near[0]!r} would be taken for a remark, {who} has {tag!r}; "
                f"write {near[0]!r}, or name a tag of your own less alike."
            )
