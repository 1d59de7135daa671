"""Push and Kafka sources to streams of events, file sources to batch sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from feast import FileSource, KafkaSource

from headrace.catalog.definitions import BatchSource, Column, DType, KafkaTopic, Source
from headrace.catalog.expectations import expectations_of_tag
from headrace.catalog.feast_types import StreamSource
from headrace.catalog.refuse import refuse_file_source, refuse_kafka_source, refuse_push_source
from headrace.catalog.schema import dtype_of_arrow, parse_ddl, refuse_reserved, refuse_same_but_case
from headrace.errors import DataError, DefinitionError
from headrace.windows.window import parse_duration_us

__all__ = ["compile_batch_source", "compile_source", "file_path", "file_types", "schema_text", "timestamp_of"]

MOST_PARTITIONS = 256


def compile_source(source: StreamSource, root: Path) -> Source:
    """The stream of a PushSource (its schema is its tag `schema`, else what its batch file holds) or of a KafkaSource
    (its schema is its message_format's; the tag `payload` says how messages hold it).

    Raises DefinitionError for what refuse.py refuses of it, an unknown schema and tags that do not fit it.
    """
    who = f"source {source.name!r}"
    if isinstance(source, KafkaSource):
        refuse_kafka_source(source)
    else:
        refuse_push_source(source)
    batch = source.batch_source
    assert isinstance(batch, FileSource)
    refuse_file_source(batch)
    columns = _columns(source, batch, root, who)
    timestamp = timestamp_of(batch)
    _check_timestamp(columns, timestamp, who)
    refuse_reserved(columns, timestamp, who)
    refuse_same_but_case((column.name for column in columns), who)
    return Source(
        name=source.name,
        columns=columns,
        timestamp=timestamp,
        event_id=_event_id(source.tags, columns, who),
        partitions=_partitions(source.tags, who),
        dedup_horizon_us=_duration(source.tags, "dedup_horizon", who),
        max_future_us=_duration(source.tags, "max_future_skew", who),
        expectations=expectations_of_tag(source.tags, columns, timestamp, who),
        description=source.description,
        retention_us=_duration(source.tags, "retention", who) if "retention" in source.tags else 0,
        kafka=_topic(source, who) if isinstance(source, KafkaSource) else None,
    )


def schema_text(source: StreamSource) -> str | None:
    """The DDL of a stream's columns, None where its definition has none."""
    text = source.kafka_options.message_format.schema_json if isinstance(source, KafkaSource) else None
    ddl: str | None = source.tags.get("schema") if text is None else text
    return ddl


def _topic(source: KafkaSource, who: str) -> KafkaTopic:
    payload = source.tags.get("payload", "json")
    if payload not in ("json", "arrow"):
        raise DefinitionError(f"The tag payload of {who} is json or arrow, got {payload!r}; write one of them.")
    options = source.kafka_options
    return KafkaTopic(options.kafka_bootstrap_servers, options.topic, "arrow" if payload == "arrow" else "json")


def timestamp_of(source: FileSource) -> str:
    """The event time column as a view sees it."""
    name: str = source.field_mapping.get(source.timestamp_field, source.timestamp_field)
    return name


def _columns(source: StreamSource, batch: FileSource, root: Path, who: str) -> tuple[Column, ...]:
    ddl = schema_text(source)
    if ddl is not None:
        return parse_ddl(ddl, who)
    types = file_types(batch, root)
    if types is None:
        raise DefinitionError(
            f"A source needs a schema, {who} has no tag 'schema' and its batch file {batch.path!r} does not exist; "
            'give it tags={"schema": "id string, amount double, ts timestamp"}, or write the file first.'
        )
    return tuple(Column(name, _known(dtype, name, who)) for name, dtype in types.items())


def _known(dtype: DType | None, name: str, who: str) -> DType:
    if dtype is None:
        raise DefinitionError(
            f"Column {name!r} in the batch file of {who} has a type that is not supported; "
            "name the columns that events have in the tag 'schema', without it."
        )
    return dtype


def _check_timestamp(columns: tuple[Column, ...], timestamp: str, who: str) -> None:
    found = {column.name: column.dtype for column in columns}
    if timestamp not in found:
        raise DefinitionError(
            f"The event time of {who} is {timestamp!r}, which its schema does not hold ({', '.join(found)}); "
            "correct timestamp_field or the schema."
        )
    if found[timestamp] is not DType.TIMESTAMP:
        raise DefinitionError(
            f"The event time of {who} is of type timestamp, {timestamp!r} is {found[timestamp]}; declare it so."
        )


def _event_id(tags: Mapping[str, str], columns: tuple[Column, ...], who: str) -> str | None:
    name = tags.get("event_id")
    if name is None:
        return None
    found = {column.name: column.dtype for column in columns}
    if name not in found:
        raise DefinitionError(f"The event_id of {who} is {name!r}, its columns are {', '.join(found)}; name one.")
    if not (found[name].is_integer or found[name] is DType.STRING):
        raise DefinitionError(f"The event_id of {who} is a string or integer, {name!r} is {found[name]}; name another.")
    return name


def _partitions(tags: Mapping[str, str], who: str) -> int:
    text = tags.get("partitions", "1")
    if not text.isdecimal() or not 1 <= int(text) <= MOST_PARTITIONS:
        raise DefinitionError(f"The tag partitions of {who} is a number from 1 to {MOST_PARTITIONS}, got {text!r}.")
    return int(text)


def _duration(tags: Mapping[str, str], tag: str, who: str) -> int:
    try:
        return parse_duration_us(tags.get(tag, "10m"))
    except DefinitionError as error:
        raise DefinitionError(f"The tag {tag} of {who}: {error}") from None


def file_path(source: FileSource, root: Path) -> Path:
    """Where the file of `source` lies; a relative path is relative to the repo."""
    return root / str(source.path)


def file_types(source: FileSource, root: Path) -> dict[str, DType | None] | None:
    """Types of the file's columns under the names that a view sees, None for an unsupported type.

    None if there is no file. Raises DefinitionError for a source and DataError for a file that we cannot read.
    """
    refuse_file_source(source)
    path = file_path(source, root)
    if not path.exists():
        return None
    if (path / "_delta_log").is_dir():
        raise DefinitionError(f"FileSource {source.name!r}: a Delta table is not supported; write the rows as Parquet.")
    try:
        schema = ds.dataset(path, format="parquet").schema if path.is_dir() else pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} (FileSource {source.name!r}) is not Parquet: {error}; write it as Parquet.") from None
    mapping = source.field_mapping
    return {mapping.get(field.name, field.name): dtype_of_arrow(field.type) for field in schema}


def compile_batch_source(source: FileSource, columns: tuple[Column, ...]) -> BatchSource:
    """The batch source of a view that reads `columns`: its join keys and features."""
    mapping = source.field_mapping
    created = source.created_timestamp_column
    created = mapping.get(created, created) or None
    times = [Column(name, DType.TIMESTAMP) for name in (timestamp_of(source), created) if name]
    return BatchSource(
        name=source.name,
        path=source.path,
        timestamp=timestamp_of(source),
        columns=(*columns, *times),
        created_timestamp=created,
        field_mapping=tuple(mapping.items()),
    )
