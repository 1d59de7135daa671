"""Feast's SDK and CLI on Headrace's stores: what `feature_store.yaml` names.

online_store:  {type: headrace.feast_plugin.HeadraceOnlineStore}
offline_store: {type: headrace.feast_plugin.HeadraceOfflineStore}
batch_engine:  {type: headrace.feast_plugin.HeadraceBatchEngine}
"""

from headrace.feast_plugin.config import (
    HeadraceBatchEngineConfig,
    HeadraceOfflineStoreConfig,
    HeadraceOnlineStoreConfig,
)
from headrace.feast_plugin.engine import HeadraceBatchEngine
from headrace.feast_plugin.event_writes import let_feast_write_events
from headrace.feast_plugin.offline import HeadraceOfflineStore
from headrace.feast_plugin.online import HeadraceOnlineStore

__all__ = [
    "HeadraceBatchEngine",
    "HeadraceBatchEngineConfig",
    "HeadraceOfflineStore",
    "HeadraceOfflineStoreConfig",
    "HeadraceOnlineStore",
    "HeadraceOnlineStoreConfig",
]

for _config in (HeadraceBatchEngineConfig, HeadraceOfflineStoreConfig, HeadraceOnlineStoreConfig):
    _config.__module__ = __name__  # where Feast looks for the class that a configuration is of

let_feast_write_events()
