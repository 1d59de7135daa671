"""What Feast can say and Headrace cannot do: refused by name, each with what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from feast import (
    BatchFeatureView,
    Entity,
    FeatureService,
    FeatureView,
    FileSource,
    KafkaSource,
    OnDemandFeatureView,
    PushSource,
    RequestSource,
    StreamFeatureView,
)
from feast.data_format import JsonFormat, ParquetFormat
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_NAME
from feast.labeling.label_view import LabelView
from feast.permissions.permission import Permission

from headrace.catalog.feast_types import StreamSource
from headrace.catalog.tags import KAFKA_TAGS, SOURCE_TAGS, VIEW_TAGS, refuse_tags
from headrace.errors import DefinitionError

__all__ = [
    "refuse_file_source",
    "refuse_kafka_source",
    "refuse_name",
    "refuse_object",
    "refuse_on_demand",
    "refuse_push_source",
    "refuse_same_names",
    "refuse_service",
    "refuse_view",
]

Rules = Iterable[tuple[bool, str, str]]


def _refuse(who: str, rules: Rules) -> None:
    """Raises DefinitionError for the first rule that holds: (is it so, what is not supported, the remedy)."""
    for holds, what, remedy in rules:
        if holds:
            raise DefinitionError(f"{who}: {what} is not supported; {remedy}.")


RESERVED_SOURCES = ("archive", "writes")


def refuse_name(name: str, who: str, forbidden: str) -> None:
    """Raises DefinitionError for an empty name, one with a character of `forbidden`, or one with a leading dot."""
    if not name or name[0] == "." or re.search(f"[{re.escape(forbidden)}\x00-\x1f]", name):
        raise DefinitionError(
            f"The name of {who} is not empty, begins with no dot and holds none of {' '.join(forbidden)}, "
            f"got {name!r}; rename it."
        )


def refuse_same_names(items: Iterable[Any], word: str) -> None:
    """Raises DefinitionError if two different objects bear one name (Feast takes case for the same)."""
    seen: dict[str, Any] = {}
    for item in items:
        known = seen.setdefault(item.name.lower(), item)
        if known is not item:
            raise DefinitionError(
                f"Each {word} has its own name, {known.name!r} and {item.name!r} are two; rename one, write copies "
                "(with_name, [[...]]) inside the feature service, and import siblings as 'from file import name'."
            )


def refuse_object(item: Any) -> None:
    """Raises DefinitionError for a kind of definition that we do not have."""
    who = f"{type(item).__name__} {getattr(item, 'name', '')!r}"
    sources = (PushSource, KafkaSource, FileSource, RequestSource)
    _refuse(
        who,
        [
            (isinstance(item, BatchFeatureView), "BatchFeatureView", "use FeatureView over a FileSource"),
            (isinstance(item, LabelView), "LabelView", "give labels as a file to headrace dataset"),
            (isinstance(item, Permission), "Permission", "leave it out and guard the server's port"),
            (
                isinstance(item, DataSource) and not isinstance(item, sources),
                type(item).__name__,
                "use a PushSource or KafkaSource for events and a FileSource (Parquet) for rows",
            ),
            (isinstance(item, Entity) and not item.name, "an entity without a name", "name it"),
        ],
    )


def refuse_push_source(source: PushSource) -> None:
    """Raises DefinitionError for a PushSource that cannot be a stream."""
    who = f"PushSource {source.name!r}"
    _refuse_source_name(source.name, who)
    refuse_tags(source.tags, SOURCE_TAGS, who)
    _refuse(who, _history(source))


def refuse_kafka_source(source: KafkaSource) -> None:
    """Raises DefinitionError for a KafkaSource that cannot be a stream."""
    who = f"KafkaSource {source.name!r}"
    _refuse_source_name(source.name, who)
    options = source.kafka_options
    batch = source.batch_source
    _refuse(
        who,
        [
            (not options.topic, "a source without a topic", "name it by topic="),
            (not options.kafka_bootstrap_servers, "a source without servers", "name them by kafka_bootstrap_servers="),
            (
                not isinstance(options.message_format, JsonFormat),
                type(options.message_format).__name__,
                'write message_format=JsonFormat(schema_json="id string, ts timestamp") (for Arrow with the tag '
                "payload: arrow)",
            ),
            ("schema" in source.tags, "the tag schema", "its message_format says the schema"),
            (bool(source.field_mapping), "field_mapping", "name the columns as the messages do"),
            (bool(source.created_timestamp_column), "created_timestamp_column", "leave it out: the later offset wins"),
            (
                options.watermark_delay_threshold is not None,
                "watermark_delay_threshold",
                """write the tag expect: '{"ts": ["max_lateness(\\"1h\\"): drop"]}'""",
            ),
            *_history(source),
            (
                batch is not None and batch.timestamp_field != source.timestamp_field,
                f"the timestamp_field {source.timestamp_field!r} over a batch_source with another",
                "make them equal",
            ),
        ],
    )
    refuse_tags(source.tags, KAFKA_TAGS, who)


def _refuse_source_name(name: str, who: str) -> None:
    refuse_name(name, "a source", "/\\%")
    if name in RESERVED_SOURCES:
        raise DefinitionError(f"{who} has a name that Headrace's own streams begin with; rename it.")


def _history(source: StreamSource) -> Rules:
    """What the file of older rows beside a stream must be."""
    batch = source.batch_source
    return [
        (
            not isinstance(batch, FileSource),
            f"a batch_source of {type(batch).__name__}",
            'write batch_source=FileSource(path="data/NAME.parquet", timestamp_field="..."), there or not',
        ),
        (
            batch is not None and not batch.timestamp_field,
            "a batch_source without timestamp_field",
            "name the event time column there",
        ),
    ]


def refuse_file_source(source: FileSource) -> None:
    """Raises DefinitionError for a FileSource that we cannot read."""
    options = source.file_options
    _refuse(
        f"FileSource {source.name!r}",
        [
            ("://" in source.path, f"the path {source.path!r}", "use a local path, or mount the bucket"),
            (bool(options.s3_endpoint_override), "s3_endpoint_override", "use a local path"),
            (
                not isinstance(options.file_format, ParquetFormat | None) or source.path.endswith((".csv", ".csv.gz")),
                f"the format {type(options.file_format).__name__ if options.file_format else 'csv'}",
                "write the rows as Parquet",
            ),
            (not source.timestamp_field, "a file without timestamp_field", "name the event time column"),
            (bool(source.date_partition_column), "date_partition_column", "leave it out"),
            (source.timestamp_field_type.upper() not in ("", "TIMESTAMP"), "timestamp_field_type", "write timestamps"),
            (source.connection_ref is not None, "connection_ref", "use a local path"),
        ],
    )


def refuse_view(view: FeatureView) -> None:
    """Raises DefinitionError for a FeatureView or StreamFeatureView with an option that we do not have."""
    refuse_object(view)
    refuse_name(view.name, "a feature view", "@:/")
    refuse_tags(view.tags, VIEW_TAGS, f"{type(view).__name__} {view.name!r}")
    stream = isinstance(view, StreamFeatureView)
    udf = getattr(view, "udf", None)
    mode = getattr(view.mode, "value", view.mode)
    source = view.stream_source or view.batch_source
    _refuse(
        f"{type(view).__name__} {view.name!r}",
        [
            (view.entities == [DUMMY_ENTITY_NAME], "a view without entities", "give it entities=[...]"),
            (bool(view.source_views), "a view of other views", "give it a PushSource, KafkaSource or FileSource"),
            (source is None, "a view without a source", "give it a PushSource, KafkaSource or FileSource"),
            (
                source is not None and not isinstance(source, StreamSource | FileSource),
                f"a source of {type(source).__name__}",
                "use a PushSource or KafkaSource for events and a FileSource (Parquet) for rows",
            ),
            (
                udf is not None and not isinstance(view.stream_source, StreamSource),
                "a udf over a file",
                "transform the file's rows before, or compute in an on-demand feature view",
            ),
            (
                udf is None and getattr(view, "feature_transformation", None) is not None,
                "a feature_transformation",
                "write a StreamFeatureView with udf=function and mode='pandas'",
            ),
            (
                udf is not None and mode != "pandas",
                f"the mode {mode!r}",
                "use mode='pandas' (for Polars with tags={'engine': 'polars'})",
            ),
            (stream and bool(getattr(view, "stream_engine", None)), "stream_engine", "leave it out"),
            (
                stream and bool(getattr(view, "tiling_hop_size", None)),
                "tiling_hop_size",
                "set slide_interval on the aggregations",
            ),
            (view.enable_validation, "enable_validation", "leave it out"),
            *_versions(view),
        ],
    )


def _versions(view: Any) -> Rules:
    return [
        (
            str(view.version).lower() != "latest",
            f"the pinned version {view.version!r}",
            "leave version out and give a changed view another name",
        ),
        (not view.enabled, "enabled=False", "take the view out of the repo"),
    ]


def refuse_on_demand(view: OnDemandFeatureView) -> None:
    """Raises DefinitionError for an on-demand feature view with an option that we do not have."""
    refuse_name(view.name, "an on-demand feature view", "@:/")
    _refuse(
        f"OnDemandFeatureView {view.name!r}",
        [
            (view.write_to_online_store, "write_to_online_store", "leave it out: it is computed at read time"),
            (bool(view.aggregations), "aggregations in it", "aggregate in a StreamFeatureView"),
            (view.entities not in ([], [DUMMY_ENTITY_NAME], None), "entities in it", "leave them out"),
            (view.mode not in ("pandas", "python"), f"the mode {view.mode!r}", "use mode='pandas' or mode='python'"),
            (view.feature_transformation is None, "a view without a function", "give it udf=function"),
            (not view.features, "a view without schema", "declare its features by schema=[Field(...), ...]"),
            *_versions(view),
        ],
    )


def refuse_service(service: FeatureService) -> None:
    """Raises DefinitionError for a feature service with an option that we do not have."""
    refuse_name(service.name, "a feature service", "@:/\\")
    pinned = [str(item) for item in service._features if isinstance(item, str) and "@" in item]
    pinned += [item.name_to_use() for item in service.feature_view_projections if item.version_tag is not None]
    _refuse(
        f"FeatureService {service.name!r}",
        [
            (not service._features, "a service without features", "give it features=[...]"),
            (service.precompute_online, "precompute_online", "leave it out"),
            (service.logging_config is not None, "logging_config", 'give it tags={"log_rate": "0.01"}'),
            (bool(pinned), f"the pinned version {pinned[:1]}", "name the view without '@'"),
            (any(isinstance(item, LabelView) for item in service._features), "LabelView", "take it out"),
        ],
    )
