"""Headrace, a real-time feature store: one definition for the stream, the lookup and the training set.

import headrace
rows = headrace.training_set("flight_delay_v1", "labels.parquet")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headrace.errors import (
    AsOfError,
    DataError,
    DefinitionError,
    HeadraceError,
    RequestError,
    SettingsError,
    StoreLostError,
    StreamFullError,
    UnavailableError,
    UnknownNameError,
)

if TYPE_CHECKING:
    from headrace.read.dataset import training_set
    from headrace.read.preview import preview

__all__ = [
    "AsOfError",
    "DataError",
    "DefinitionError",
    "HeadraceError",
    "RequestError",
    "SettingsError",
    "StoreLostError",
    "StreamFullError",
    "UnavailableError",
    "UnknownNameError",
    "preview",
    "training_set",
]

# so that `import headrace` loads neither pandas nor pyarrow
_LAZY = {"training_set": "headrace.read.dataset", "preview": "headrace.read.preview"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
