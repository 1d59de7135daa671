"""What Feast's universal tests run against: our stores, by FULL_REPO_CONFIGS_MODULE.

FEAST_TESTS_DATA is the data directory; FEAST_TESTS_AS the name under which the online store runs: some tests ask for
a store by its name (redis, sqlite; file for the offline store) though they need nothing of it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from tests.universal.feature_repos.universal.data_sources.file import FileDataSourceCreator

from headrace.feast_plugin import HeadraceOfflineStoreConfig

DATA = os.environ["FEAST_TESTS_DATA"]


class HeadraceDataSourceCreator(FileDataSourceCreator):  # type: ignore[misc]
    """Parquet files, read by our offline store."""

    def create_offline_store_config(self) -> HeadraceOfflineStoreConfig:
        return HeadraceOfflineStoreConfig(data_dir=DATA)


ONLINE: dict[str, Any] = {
    "type": "headrace.feast_plugin.HeadraceOnlineStore",
    "data_dir": DATA,
    "other_views": "keep",
}
AVAILABLE_ONLINE_STORES = {os.environ["FEAST_TESTS_AS"]: (ONLINE, None)}
AVAILABLE_OFFLINE_STORES = [("local", HeadraceDataSourceCreator)]
if os.environ["FEAST_TESTS_AS"] == "redis":
    os.environ["FEAST_IS_LOCAL_TEST"] = "False"  # else two tests return at once; it was read for what else it says

sys.modules["tests.universal.feature_repos.repo_configuration"].OFFLINE_STORE_TO_PROVIDER_CONFIG["file"] = (
    "local",
    HeadraceDataSourceCreator,
)
