"""A repo written from text, loaded and compiled."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.catalog.compile import compile_repo
from headrace.catalog.definitions import Catalog
from headrace.catalog.load import Repo, load_repo

IMPORTS = """
from datetime import timedelta
import numpy as np
import pandas as pd
from feast import *
from feast import Aggregation
from feast.data_format import DeltaFormat
from feast.data_source import KafkaSource, PushSource, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import *
from headrace.define import entity, events, stream_view, windows

card = entity("card", key="card_id")
shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
payments = events(
    "payments", time="ts", id="payment_id",
    columns={"payment_id": "string", "card_id": "string", "shop_id": "bigint", "amount": "double",
             "count_items": "int", "country": "string", "ts": "timestamp"},
)
"""
SPEND = 'spend = stream_view("spend", card, payments, windows("amount", ["sum"], over=["1h"]))\n'

WriteRepo = Callable[..., Path]


@pytest.fixture
def write_repo(tmp_path: Path) -> WriteRepo:
    """Write feature_store.yaml and definition files (by name without .py) to a folder and return it."""

    def write(**files: str) -> Path:
        root = tmp_path / "repo"
        root.mkdir(exist_ok=True)
        (root / "feature_store.yaml").write_text("project: shop\nregistry: data/registry.db\n")
        for name, text in files.items():
            (root / f"{name}.py").write_text(textwrap.dedent(text))
        return root

    return write


@pytest.fixture
def load(write_repo: WriteRepo) -> Callable[[str], Repo]:
    """Load definitions written after the usual imports, entities and source."""
    return lambda text: load_repo(write_repo(features=IMPORTS + textwrap.dedent(text)))


@pytest.fixture
def compiled(load: Callable[[str], Repo]) -> Callable[..., Catalog]:
    def compile_text(text: str, **options: Any) -> Catalog:
        return compile_repo(load(text), **options)

    return compile_text
