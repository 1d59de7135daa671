"""Headrace, a real-time feature store: one definition for the stream, the lookup and the training set.

import headrace
rows = headrace.training_set("flight_delay_v1", "labels.parquet").to_pandas()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headrace.errors import (
    AsOfError,
    DataError,
    DeadlineError,
    DefinitionError,
    HeadraceError,
    RequestError,
    ServerError,
    SettingsError,
    StoreLostError,
    StreamFullError,
    UnavailableError,
    UnknownNameError,
)

if TYPE_CHECKING:
    from headrace.client import AsyncFeatureClient, FeatureClient, FeatureVectors
    from headrace.read.grid import grid
    from headrace.read.preview import preview
    from headrace.read.training_set import TrainingSet, rebuild_training_set, training_set

__all__ = [
    "AsOfError",
    "AsyncFeatureClient",
    "DataError",
    "DeadlineError",
    "DefinitionError",
    "FeatureClient",
    "FeatureVectors",
    "HeadraceError",
    "RequestError",
    "ServerError",
    "SettingsError",
    "StoreLostError",
    "StreamFullError",
    "TrainingSet",
    "UnavailableError",
    "UnknownNameError",
    "grid",
    "preview",
    "rebuild_training_set",
    "training_set",
]

# so that `import headrace` loads neither pandas nor pyarrow
_LAZY = {
    "AsyncFeatureClient": "headrace.client",
    "FeatureClient": "headrace.client",
    "FeatureVectors": "headrace.client",
    "TrainingSet": "headrace.read.training_set",
    "grid": "headrace.read.grid",
    "preview": "headrace.read.preview",
    "rebuild_training_set": "headrace.read.training_set",
    "training_set": "headrace.read.training_set",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
