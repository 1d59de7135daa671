"""What changes between two catalogs, and which changes are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from headrace.catalog.definitions import Catalog, Column, DType, Entity, FeatureView, Source
from headrace.catalog.evolve import Change, changes, refuse_unsafe
from headrace.errors import DefinitionError

SOURCE = Source(
    "payments",
    (Column("card", DType.STRING), Column("amount", DType.FLOAT64), Column("ts", DType.TIMESTAMP)),
    "ts",
    partitions=4,
)
ROWS = FeatureView("rows", "batch", ("card",), (Column("score", DType.INT64),), "c" * 12)
VIEW = FeatureView("last", "plain", ("card",), (Column("amount", DType.FLOAT64),), "a" * 12, source="payments")
CATALOG = Catalog("shop", 3, "wall", (Entity("card", "card", DType.STRING),), (SOURCE,), (VIEW,))
WITH_ROWS = replace(CATALOG, views=(VIEW, ROWS))


def with_source(**fields: Any) -> Catalog:
    return replace(CATALOG, sources=(replace(SOURCE, **fields),))


def test_at_first_everything_is_added() -> None:
    assert [(change.action, change.kind, change.name) for change in changes(None, CATALOG)] == [
        ("added", "entity", "card"),
        ("added", "source", "payments"),
        ("added", "feature view", "last"),
    ]


def test_an_equal_catalog_of_another_version_changes_nothing() -> None:
    assert changes(CATALOG, replace(CATALOG, version=9)) == []


def test_a_changed_view_says_what_differs_and_that_it_is_rebuilt() -> None:
    changed = replace(VIEW, features=(Column("amount", DType.FLOAT32),), fingerprint="b" * 12, generation=4)
    assert changes(CATALOG, replace(CATALOG, views=(changed,))) == [
        Change(
            "changed",
            "feature view",
            "last",
            (
                "features: - amount float64, + amount float32",
                f"fingerprint: {'a' * 12} -> {'b' * 12}: the view is rebuilt",
            ),
        )
    ]


def test_what_is_gone_is_removed_and_says_what_stays() -> None:
    found = changes(CATALOG, replace(CATALOG, views=(), sources=()))
    assert [(change.action, change.name) for change in found] == [("removed", "payments"), ("removed", "last")]
    assert found[0].details == ("its archived events stay",)


def test_a_description_changes_without_a_rebuild() -> None:
    found = changes(CATALOG, replace(CATALOG, views=(replace(VIEW, description="new"),)))
    assert found[0].details == ("description:  -> new",)


SAFE = {
    "nothing": CATALOG,
    "new column": with_source(columns=(*SOURCE.columns, Column("shop", DType.INT64))),
    "another order": with_source(columns=SOURCE.columns[::-1]),
    "more partitions": with_source(partitions=8),
    "another horizon": with_source(dedup_horizon_us=1),
    "no source": replace(CATALOG, sources=()),
}


@pytest.mark.parametrize("catalog", SAFE.values(), ids=SAFE)
def test_safe_changes_pass(catalog: Catalog) -> None:
    refuse_unsafe(CATALOG, catalog)
    refuse_unsafe(None, catalog)


UNSAFE = {
    "lost column": (with_source(columns=SOURCE.columns[1:]), "had 'card' as string and would lose it.*another name"),
    "changed column": (
        with_source(columns=(Column("card", DType.INT64), *SOURCE.columns[1:])),
        "had 'card' as string and would have it as int64",
    ),
    "event time": (
        with_source(columns=(*SOURCE.columns, Column("at", DType.TIMESTAMP)), timestamp="at"),
        "keeps its event time.*'ts'.*'at'",
    ),
    "fewer partitions": (with_source(partitions=2), "had 4 and would have 2; keep 4"),
    "clock": (replace(CATALOG, clock="event"), "fixed by the first apply.*'wall'.*'event'"),
    "kind": (replace(CATALOG, views=(replace(VIEW, kind="windowed"),)), "'last' was plain and would be windowed"),
    "project": (replace(CATALOG, project="other"), "holds 'shop', the repo is 'other'"),
}


@pytest.mark.parametrize(("catalog", "words"), UNSAFE.values(), ids=UNSAFE)
def test_changes_that_would_make_stored_events_lie_are_refused(catalog: Catalog, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        refuse_unsafe(CATALOG, catalog)


def rows_with(*features: Column) -> Catalog:
    return replace(WITH_ROWS, views=(VIEW, replace(ROWS, features=features, fingerprint="d" * 12)))


@pytest.mark.parametrize("dtype", [DType.STRING, DType.FLOAT64, DType.INT32])
def test_a_view_that_takes_rows_keeps_its_features_types(dtype: DType) -> None:
    words = f"view 'rows' had 'score' as int64 and would have it as {dtype}; give the new view another name"
    with pytest.raises(DefinitionError, match=words):
        refuse_unsafe(WITH_ROWS, rows_with(Column("score", dtype)))


def test_a_plain_view_that_moves_to_another_source_keeps_its_features_types() -> None:
    other = replace(SOURCE, name="refunds", columns=(*SOURCE.columns[::2], Column("amount", DType.INT64)))
    moved = replace(VIEW, source="refunds", features=(Column("amount", DType.INT64),))
    with pytest.raises(DefinitionError, match="view 'last' had 'amount' as float64 and would have it as int64"):
        refuse_unsafe(CATALOG, replace(CATALOG, sources=(SOURCE, other), views=(moved,)))


def test_a_view_that_takes_rows_keeps_its_join_key_s_type() -> None:
    catalog = replace(WITH_ROWS, entities=(Entity("card", "card", DType.INT64),))
    with pytest.raises(DefinitionError, match="had 'card' as string and would have it as int64"):
        refuse_unsafe(WITH_ROWS, catalog)


def test_a_view_that_takes_rows_may_gain_and_lose_features() -> None:
    refuse_unsafe(WITH_ROWS, rows_with(Column("score", DType.INT64), Column("rank", DType.INT32)))
    refuse_unsafe(WITH_ROWS, rows_with(Column("rank", DType.INT32)))
    refuse_unsafe(WITH_ROWS, replace(WITH_ROWS, views=(VIEW, replace(ROWS, name="new"))))
