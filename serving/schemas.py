"""The JSON bodies of requests, as Feast's SDK posts them, with Headrace's additions."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LookupBody", "PredictBody", "PushBody", "WriteBody"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class LookupBody(_Body):
    """Which features of which entities."""

    entities: dict[str, list[Any]] = Field(
        description="Join keys (and request data of on-demand views), each with one value per row."
    )
    feature_service: str | None = Field(None, description="Name of a feature service; this or `features`.")
    features: list[str] = Field([], description="References `view:feature`; this or `feature_service`.")
    full_feature_names: bool = Field(False, description="Name features `view__feature`.")
    as_of: str | None = Field(None, description="RFC 3339 moment, one for all rows; unset is now.")
    project: str | None = Field(None, description="Taken for Feast's sake, and not used.")
    include_feature_view_version_metadata: bool = Field(False, description="Taken for Feast's sake, and not used.")


class PushBody(_Body):
    """Events of one source, by column."""

    push_source_name: str
    df: dict[str, list[Any]] = Field(description="The events' columns, of equal length.")
    to: str = Field("online", description="`online` or `online_and_offline`: both append to the stream.")
    allow_registry_cache: bool = True
    transform_on_write: bool = True


class WriteBody(_Body):
    """Rows of a plain or batch view, by column: join keys, features, `event_timestamp`, and `created` if need be."""

    feature_view_name: str
    df: dict[str, list[Any]]
    allow_registry_cache: bool = True
    transform_on_write: bool = True


class PredictBody(_Body):
    """Rows to score."""

    entities: dict[str, list[Any]] = Field(
        description="Join keys (and request data of on-demand views), each with one value per row."
    )
    model: str | None = Field(None, description="Name of a model; unset is the one that serves `feature_service`.")
    feature_service: str | None = Field(None, description="Must be the model's own, when given.")
    as_of: str | None = Field(None, description="RFC 3339 moment, one for all rows; unset is now.")
