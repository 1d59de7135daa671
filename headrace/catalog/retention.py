"""How long a source's events must be kept for its views to be right when they are built anew."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.catalog.definitions import FeatureView, Source
from headrace.errors import DefinitionError
from headrace.windows.window import format_duration

__all__ = ["refuse_short_retention"]

DAY_US = 86_400_000_000
MARGIN_US = 2 * DAY_US
"""Event dates go as a whole, and events may come late."""


def refuse_short_retention(sources: Sequence[Source], views: Sequence[FeatureView]) -> None:
    """Raises DefinitionError for a source whose retention is shorter than a view of it looks back."""
    for source in sources:
        if not source.retention_us:
            continue
        for view in (view for view in views if view.source == source.name):
            needed = _reach_us(view)
            if needed is None:
                raise DefinitionError(
                    f"A source with a retention feeds no view that looks back for ever, view {view.name!r} does over "
                    f"source {source.name!r} with retention {format_duration(source.retention_us)}; "
                    f"{_bound(view)}, or leave the retention out."
                )
            if source.retention_us < needed + MARGIN_US:
                least = -(-(needed + MARGIN_US) // DAY_US) * DAY_US
                raise DefinitionError(
                    f"A retention is at least what its views look back and {format_duration(MARGIN_US)} more, source "
                    f"{source.name!r} has {format_duration(source.retention_us)} and view {view.name!r} looks back "
                    f"{format_duration(needed)}; use at least {format_duration(least)}."
                )


def _reach_us(view: FeatureView) -> int | None:
    """How far before a read the oldest event lies that counts, None for any distance."""
    if view.kind != "windowed":
        return view.ttl_us or None
    lengths = [None if agg.window_us is None else agg.window_us + agg.hop_us for agg in view.aggregations]
    return None if None in lengths else max(length or 0 for length in lengths)


def _bound(view: FeatureView) -> str:
    return "give it windows" if view.kind == "windowed" else "give it a ttl"
