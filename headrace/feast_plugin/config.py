"""What `feature_store.yaml` says of our stores, and the settings that it comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from feast.repo_config import FeastConfigBaseModel, RepoConfig

from headrace.settings import Settings, load_settings

__all__ = [
    "HeadraceBatchEngineConfig",
    "HeadraceOfflineStoreConfig",
    "HeadraceOnlineStoreConfig",
    "repo_of",
    "settings_of",
]


class _Place(FeastConfigBaseModel):  # type: ignore[misc]
    """Where the stores are; what is left out is as `HEADRACE_*` says."""

    data_dir: str | None = None
    """Folder of the offline store, the mirrored catalog and the embedded store; relative to the repo."""

    redis_url: str | None = None
    """URL of the online store; without one the data directory's embedded store."""


class HeadraceOnlineStoreConfig(_Place):
    """`online_store` in feature_store.yaml."""

    type: Literal["headrace.feast_plugin.HeadraceOnlineStore"] = "headrace.feast_plugin.HeadraceOnlineStore"

    other_views: Literal["refuse", "keep"] = "refuse"
    """What to do with a view that `headrace apply` refuses (without entities, of maps, a BatchFeatureView ...):
    `refuse` it too, or `keep` its rows as Feast's own values, for Feast's SDK alone."""


class HeadraceOfflineStoreConfig(_Place):
    """`offline_store` in feature_store.yaml."""

    type: Literal["headrace.feast_plugin.HeadraceOfflineStore"] = "headrace.feast_plugin.HeadraceOfflineStore"

    memory: str = "2GB"
    """How much memory a point-in-time join over the archive may take before it spills to disk."""


class HeadraceBatchEngineConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """`batch_engine` in feature_store.yaml."""

    type: Literal["headrace.feast_plugin.HeadraceBatchEngine"] = "headrace.feast_plugin.HeadraceBatchEngine"


def repo_of(config: RepoConfig) -> Path:
    """The folder that relative paths are relative to."""
    return Path(config.repo_path or ".").absolute()


def settings_of(config: RepoConfig) -> Settings:
    """The settings of the store that `config` names, the online store's place before the offline store's.

    Raises SettingsError for an environment that cannot be.
    """
    repo = repo_of(config)
    places = [place for place in (config.online_store, config.offline_store) if isinstance(place, _Place)]
    data_dir = next((place.data_dir for place in places if place.data_dir is not None), None)
    redis_url = next((place.redis_url for place in places if place.redis_url is not None), None)
    return load_settings(repo=repo, data_dir=None if data_dir is None else repo / data_dir, redis_url=redis_url)
