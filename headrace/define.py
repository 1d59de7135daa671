"""Short forms of Feast definitions. Each returns plain Feast objects, on which stock `feast apply` works too.

card = entity("card", key="card_id")
payments = events("payments", time="ts", id="payment_id",
                  columns={"payment_id": "string", "card_id": "string", "amount": "double", "ts": "timestamp"})
card_spend = stream_view("card_spend", card, payments,
                         windows("*", ["count"], over=["10m", "1h"]),
                         windows("amount", ["sum", "max"], over=["1h", "24h"]))
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from types import FunctionType
from typing import Any, Literal

from feast import Entity, Field, FileSource, KafkaSource, PushSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_format import JsonFormat

from headrace.catalog.compile_sources import schema_text
from headrace.catalog.definitions import Column, DType
from headrace.catalog.expectations import parse_expectations, render_expectations
from headrace.catalog.fallbacks import DEFAULTS, MAX_STALENESS, render_defaults
from headrace.catalog.feast_types import StreamSource, dtype_of_entity, duration_us, feast_type, value_type
from headrace.catalog.schema import dtype_of_ddl, parse_ddl, render_ddl
from headrace.errors import DefinitionError
from headrace.windows.functions import output_dtype
from headrace.windows.window import format_duration, parse_duration_us, validate_window_us

__all__ = ["LIFETIME", "entity", "events", "kafka_events", "stream_view", "windows"]

LIFETIME = "lifetime"
"""The window that never ends, in `over`."""

Duration = str | timedelta


def entity(name: str, key: str | None = None, dtype: str = "string", **feast: Any) -> Entity:
    """An Entity with join key `key` (else `name`) of type string, int or bigint; `feast` goes to Feast as it is."""
    kind = dtype_of_ddl(dtype, f"Entity {name!r}")
    if kind not in (DType.STRING, DType.INT32, DType.INT64):
        raise DefinitionError(
            f"A join key is a string or an integer, entity {name!r} is {dtype!r}; use string or bigint."
        )
    return Entity(name=name, join_keys=[key or name], value_type=value_type(kind), **feast)


def events(
    name: str,
    *,
    time: str,
    columns: Mapping[str, str],
    id: str | None = None,
    partitions: int | None = None,
    dedup: Duration | None = None,
    max_future: Duration | None = None,
    history: str | None = None,
    retention: Duration | None = None,
    expect: Mapping[str, Sequence[str]] | None = None,
    tags: Mapping[str, str] | None = None,
    description: str = "",
    owner: str = "",
) -> PushSource:
    """A stream of events with these columns, `time` among them.

    `id` names the column by which a repeated event is known within `dedup` (10m); `max_future` (10m) is how far an
    event time may lie ahead; `history` names a Parquet file of older rows, which need not exist. `retention` says after
    how long archived events are deleted (never). `expect` holds rules by column, such as {"amount": ["not_null",
    "between(0, 1e6): drop"]}: an event that breaks one is a dead letter, with `: drop` left out and counted, with
    `: warn` kept and counted. Raises DefinitionError for an unknown type or rule, and for a `time` or `id` that is no
    column.
    """
    who = f"source {name!r}"
    if not isinstance(columns, Mapping):
        raise DefinitionError(
            f"The columns of {who} are types by name, got {_shown(columns)}; write {{'ts': 'timestamp'}}."
        )
    typed = tuple(Column(key, dtype_of_ddl(kind, f"Column {key!r} of {who}")) for key, kind in columns.items())
    for role, column in (("time", time), ("id", id)):
        if column is not None and column not in columns:
            raise DefinitionError(f"The {role} of {who} is {column!r}, its columns are {', '.join(columns)}; name one.")
    options = {
        "event_id": id,
        "partitions": partitions,
        "dedup_horizon": None if dedup is None else format_duration(_us(dedup)),
        "max_future_skew": None if max_future is None else format_duration(_us(max_future)),
        "retention": None if retention is None else format_duration(_us(retention)),
    }
    stated = {tag: str(value) for tag, value in options.items() if value is not None}
    if expect is not None:
        parse_expectations(expect, typed, time, who)
        stated["expect"] = render_expectations(expect)
    path = history or f"data/{name}.parquet"
    return PushSource(
        name=name,
        batch_source=FileSource(name=f"{name}_history", path=path, timestamp_field=time),
        tags={**(tags or {}), "schema": render_ddl(typed), **stated},
        description=description,
        owner=owner,
    )


def kafka_events(
    name: str,
    *,
    servers: str,
    topic: str | None = None,
    payload: Literal["json", "arrow"] = "json",
    **options: Any,
) -> KafkaSource:
    """Events that come as messages of a Kafka topic (called `name` unless told); `options` are those of `events`.

    `servers` is host:port, comma-separated; `partitions` is the topic's number of them. A message holds one JSON object
    (or several, a line each), or with `payload="arrow"` one Arrow IPC stream. Raises DefinitionError as `events` does.
    """
    pushed = events(name, **options)
    tags = dict(pushed.tags)
    return KafkaSource(
        name=name,
        kafka_bootstrap_servers=servers,
        topic=topic or name,
        timestamp_field=options["time"],
        message_format=JsonFormat(schema_json=tags.pop("schema")),
        batch_source=pushed.batch_source,
        tags=tags if payload == "json" else {**tags, "payload": payload},
        description=pushed.description,
        owner=pushed.owner,
    )


def windows(
    column: str,
    functions: Sequence[str],
    over: Sequence[Duration] = (LIFETIME,),
    *,
    hop: Duration | None = None,
) -> list[Aggregation]:
    """Each of `functions` over `column` (`*` for events) in each window of `over`, in this order.

    They are named like `sum_amount_24h`, `count_1h` and `max_amount_lifetime`. `hop` replaces the default hop.
    """
    for name, given in (("functions", functions), ("over", over)):
        if isinstance(given, str) or not isinstance(given, Iterable):
            write = f"[{given!r}]" if isinstance(given, str) else '["sum"] or ["1h"]'
            raise DefinitionError(f"{name} of windows({column!r}, ...) is a list, got {_shown(given)}; write {write}.")
    return [_aggregation(column, function, window, hop) for function in functions for window in over]


def _aggregation(column: str, function: str, window: Duration, hop: Duration | None) -> Aggregation:
    base = function if column == "*" else f"{function}_{column}"
    if window == LIFETIME:
        if hop is not None:
            raise DefinitionError(f"A lifetime has no hop, {base} was given {hop!r}; leave it out.")
        return Aggregation(column=column, function=function, time_window=None, name=f"{base}_{LIFETIME}")
    window_us = _us(window)
    validate_window_us(window_us)
    label = window.replace(" ", "") if isinstance(window, str) else format_duration(window_us)
    return Aggregation(
        column=column,
        function=function,
        time_window=timedelta(microseconds=window_us),
        slide_interval=None if hop is None else timedelta(microseconds=_us(hop)),
        name=f"{base}_{label}",
    )


def _us(duration: Duration) -> int:
    if not isinstance(duration, str | timedelta):
        raise DefinitionError(f"A duration is a text like 10m or a timedelta, got {_shown(duration)}; write '10m'.")
    return duration_us(duration) if isinstance(duration, timedelta) else parse_duration_us(duration)


def stream_view(
    name: str,
    entities: Entity | Sequence[Entity],
    source: StreamSource,
    *aggregations: Aggregation | Iterable[Aggregation],
    transform: FunctionType | None = None,
    engine: Literal["pandas", "polars"] = "pandas",
    columns: Mapping[str, str] | None = None,
    expect: Mapping[str, Sequence[str]] | None = None,
    defaults: Mapping[str, Any] | None = None,
    max_staleness: str | None = None,
    online: bool = True,
    tags: Mapping[str, str] | None = None,
    description: str = "",
    owner: str = "",
) -> StreamFeatureView:
    """A view of windowed aggregates of `source` by entity key, its schema filled in.

    `transform` is a row-wise function from frame to frame (of `engine`) that events pass before they are aggregated:
    it may filter, derive and explode rows and keeps the column `_row`; `columns` are those that it gives, by default
    the source's. `expect` holds rules by column of the source (see `events`): an event that breaks one is in no window
    of this view. `defaults` are values by feature for answers that neither the store nor a server's memory has in time,
    `max_staleness` (like 5m) how old a value of that memory may be. Raises DefinitionError for a source without the tag
    `schema`, a missing column, an unfit function and an unknown rule.
    """
    keyed = _entities(name, entities)
    if not isinstance(source, StreamSource):
        raise DefinitionError(
            f"A stream view reads events, view {name!r} got {_shown(source)}; give what events(...) returned."
        )
    batch, schema = source.batch_source, schema_text(source)
    if schema is None or batch is None:
        raise DefinitionError(
            f"View {name!r} takes its types from its source's schema, {source.name!r} has none; "
            "define it by events(...), or use Feast's StreamFeatureView."
        )
    given = parse_ddl(schema, f"source {source.name!r}")
    own_tags = _share_tags(f"view {name!r}", batch.timestamp_field, given, transform, engine, columns, expect)
    seen = parse_ddl(own_tags["transformed"], f"view {name!r}") if columns else given
    types = {column.name: column.dtype for column in seen}
    flat = _flat(name, aggregations)
    keys = [_field(key.join_key, _key_dtype(name, key, types)) for key in keyed]
    return StreamFeatureView(
        name=name,
        entities=keyed,
        source=source,
        schema=keys + [_feature(name, source.name, item, types) for item in flat],
        aggregations=flat,
        timestamp_field=batch.timestamp_field,
        ttl=timedelta(0),
        online=online,
        mode="pandas" if transform else "python",
        udf=None if transform is None else _unannotated(transform),
        udf_string=_source_text(transform),
        tags={**(tags or {}), **own_tags, **_fallback_tags(defaults, max_staleness)},
        description=description,
        owner=owner,
    )


def _fallback_tags(defaults: Mapping[str, Any] | None, max_staleness: str | None) -> dict[str, str]:
    found = {} if defaults is None else {DEFAULTS: render_defaults(defaults)}
    return found if max_staleness is None else {**found, MAX_STALENESS: max_staleness}


def _entities(view: str, given: Any) -> list[Entity]:
    """The entities of a view, one or several. Raises DefinitionError for anything else."""
    items = [given] if isinstance(given, Entity | str) or not isinstance(given, Iterable) else list(given)
    for item in items or [None]:
        if not isinstance(item, Entity):
            raise DefinitionError(
                f"A view is by one Entity or a list of them, view {view!r} got {_shown(item)}; "
                "write card = entity('card', key='card_id') and give card."
            )
    return items


def _shown(value: Any) -> str:
    """A wrong value in a message: short, whatever it is."""
    return repr(value) if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _flat(view: str, parts: Iterable[Any]) -> list[Aggregation]:
    """The aggregations, one by one or in lists. Raises DefinitionError for none and for anything else."""
    flat: list[Any] = []
    for part in parts:
        flat += [part] if isinstance(part, Aggregation | str) or not isinstance(part, Iterable) else list(part)
    wrong = [item for item in flat if not isinstance(item, Aggregation)]
    if wrong or not flat:
        raise DefinitionError(
            f"A stream view has aggregations, view {view!r} got {_shown(wrong[0]) if wrong else 'none'}; "
            'give what windows("amount", ["sum"], over=["1h"]) returns.'
        )
    return flat


def _share_tags(
    who: str,
    time: str,
    given: Sequence[Column],
    transform: FunctionType | None,
    engine: str,
    columns: Mapping[str, str] | None,
    expect: Mapping[str, Sequence[str]] | None,
) -> dict[str, str]:
    """The tags that say which rows a view has of its source's events."""
    tags = {}
    if transform is None and columns is not None:
        raise DefinitionError(f"columns says what a transform gives, {who} has none; leave it out.")
    if transform is not None:
        tags["engine"] = engine
    if columns is not None:
        typed = [Column(key, dtype_of_ddl(kind, f"Column {key!r} of {who}")) for key, kind in columns.items()]
        tags["transformed"] = render_ddl(typed)
    if expect is not None:
        parse_expectations(expect, given, time, who)
        tags["expect"] = render_expectations(expect)
    return tags


def _unannotated(function: FunctionType) -> FunctionType:
    """The same function without type hints: Feast accepts no frame of Polars there."""
    bare = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    bare.__kwdefaults__, bare.__doc__ = function.__kwdefaults__, function.__doc__
    bare.__module__, bare.__qualname__ = function.__module__, function.__qualname__
    return bare


def _source_text(function: FunctionType | None) -> str:
    """What Feast's registry shows of a function."""
    if function is None:
        return ""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""


def _field(name: str, dtype: DType) -> Field:
    return Field(name=name, dtype=feast_type(dtype))


def _key_dtype(view: str, key: Entity, columns: Mapping[str, DType]) -> DType:
    declared = dtype_of_entity(key.value_type, f"Entity {key.name!r}")
    return declared or _column(columns, key.join_key, f"View {view!r}")


def _feature(view: str, source: str, item: Aggregation, columns: Mapping[str, DType]) -> Field:
    feature = item.resolved_name(item.time_window)
    where = f"Feature {feature!r} of view {view!r} over source {source!r}"
    dtype = DType.INT64 if item.column == "*" else _column(columns, item.column, where)
    try:
        return _field(feature, output_dtype(item.function, item.column, dtype))
    except DefinitionError as error:
        raise DefinitionError(f"{where}: {error}") from None


def _column(columns: Mapping[str, DType], name: str, where: str) -> DType:
    if name not in columns:
        raise DefinitionError(f"{where} needs column {name!r}, its source has: {', '.join(columns)}; correct the name.")
    return columns[name]
