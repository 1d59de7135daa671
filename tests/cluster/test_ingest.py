"""What tests/materialize/test_ingest.py says, on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cluster.contract import contract, load

from headrace.settings import Settings

pytestmark = pytest.mark.usefixtures("clustered")
module: Any = load("materialize/test_ingest.py")


def on_the_cluster(*, repo: Path, data_dir: Path, **_: Any) -> Settings:
    return Settings(repo=repo, data_dir=data_dir)


module.Settings, module.attach = on_the_cluster, str
globals().update(
    contract(
        module,
        test_online_and_datasets_equal_the_oracle_however_events_are_split=0,
        test_an_import_moves_where_views_are_complete_from=None,
    )
)
