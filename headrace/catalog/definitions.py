"""What apply compiles a repo to: plain frozen data that every process reads; no Feast, no functions, no pickle.

Times are microseconds (`_us`), names are the user's own, tuples keep the declared order.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import orjson

from headrace.dtypes import DType
from headrace.errors import DataError, UnknownNameError
from headrace.windows.functions import Aggregation

__all__ = [
    "CATALOG_FORMAT",
    "Aggregation",
    "BatchSource",
    "Catalog",
    "Column",
    "DType",
    "Entity",
    "Expectation",
    "FeatureView",
    "KafkaTopic",
    "Layout",
    "OnDemandView",
    "Service",
    "Source",
    "Transform",
    "ViewReference",
    "catalog_from_json",
    "catalog_to_json",
    "write_source",
]

CATALOG_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    dtype: DType


@dataclass(frozen=True, slots=True)
class Entity:
    """What a feature describes. `dtype` is int32, int64 or string."""

    name: str
    join_key: str
    dtype: DType
    description: str = ""


@dataclass(frozen=True, slots=True)
class BatchSource:
    """A file (or folder) of rows: `path` as written in the repo, relative to it unless absolute.

    `columns` are named as the view sees them; `field_mapping` holds (name in the file, name in the view).
    """

    name: str
    path: str
    timestamp: str
    columns: tuple[Column, ...]
    file_format: Literal["parquet", "delta", "csv"] = "parquet"
    created_timestamp: str | None = None
    field_mapping: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is expected of a column; `text` is the rule as it was written.

    rule: not_null, between, is_in, matches, min_length, max_length, max_lateness (microseconds). action: `quarantine`
    (the event is a dead letter), `drop` (it is left out and counted), `warn` (it is kept and counted).
    """

    column: str
    rule: str
    arguments: tuple[Any, ...]
    text: str
    action: Literal["quarantine", "drop", "warn"] = "quarantine"


@dataclass(frozen=True, slots=True)
class KafkaTopic:
    """A topic whose messages are a source's events. `servers` is host:port, comma-separated; a message holds one JSON
    object (or several, a line each) or one Arrow IPC stream. Credentials are settings, never part of the catalog."""

    servers: str
    topic: str
    payload: Literal["json", "arrow"] = "json"


@dataclass(frozen=True, slots=True)
class Source:
    """A stream of events: pushed ones, or a topic's if it has `kafka`, whose partitions are then the topic's.
    `columns` holds every column, the timestamp among them, under its own name.

    `added` holds (column, catalog version) of columns that the source did not begin with: an event whose producer
    knew an older catalog has none, whatever it brought. Archived events older than `retention_us` are deleted by whole
    event dates; 0 keeps them for ever.
    """

    name: str
    columns: tuple[Column, ...]
    timestamp: str
    event_id: str | None = None
    partitions: int = 1
    dedup_horizon_us: int = 600_000_000
    max_future_us: int = 600_000_000
    added: tuple[tuple[str, int], ...] = ()
    expectations: tuple[Expectation, ...] = ()
    description: str = ""
    retention_us: int = 0
    kafka: KafkaTopic | None = None

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


@dataclass(frozen=True, slots=True)
class Transform:
    """A row-wise function that a view's events pass before anything else; `columns` is what it gives.

    `code` is a self-contained module that defines `function`, from frame to frame. mode: `pandas`, `polars`.
    `moves_time` says that it may give rows an event time other than their event's.
    """

    mode: Literal["pandas", "polars"]
    code: str
    function: str
    columns: tuple[Column, ...]
    moves_time: bool = False


@dataclass(frozen=True, slots=True)
class FeatureView:
    """A view of features by entity key.

    kind: `windowed` (aggregations over `source`), `plain` (last row of `source`, of rows written directly,
    and of `batch` when it has one), `batch` (last row of `batch`, materialized, and of rows written directly).
    Events of `source` pass `expectations`, then `transform`, before they count; rows written directly do not.
    `entities` are names, in declared order; `features` in declared order.
    `ttl_us` 0 means that a row never expires. `fingerprint` is a hash of everything that changes a value.
    `defaults` (JSON text by feature) and `max_staleness_us` (None: the server's) are for degraded answers.
    """

    name: str
    kind: Literal["windowed", "plain", "batch"]
    entities: tuple[str, ...]
    features: tuple[Column, ...]
    fingerprint: str
    source: str | None = None
    batch: BatchSource | None = None
    aggregations: tuple[Aggregation, ...] = ()
    ttl_us: int = 0
    generation: int = 1
    online: bool = True
    description: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    transform: Transform | None = None
    expectations: tuple[Expectation, ...] = ()
    defaults: tuple[tuple[str, str], ...] = ()
    max_staleness_us: int | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """A view's layout beside the one that serves, with the entities that it was compiled with.

    `until_us` is 0 for one that is being built. One that served before is kept up to date until then, by the store's
    clock, for readers that hold an earlier catalog, and swept after.
    """

    view: FeatureView
    entities: tuple[Entity, ...]
    until_us: int = 0


@dataclass(frozen=True, slots=True)
class ViewReference:
    """Features of one view as a service (or an on-demand view) uses them.

    `name` is the view's own or its alias (`with_name`); `join_key_map` holds (join key, key in the request).
    """

    view: str
    name: str
    features: tuple[str, ...]
    join_key_map: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class OnDemandView:
    """Features computed at read time from request data and other views' features.

    `code` is a self-contained module that defines `function`; inputs arrive under their bare names.
    mode: `pandas` (DataFrame to DataFrame), `python` (dict of lists to dict of lists),
    `singleton` (dict of values to dict of values, called per row).
    """

    name: str
    features: tuple[Column, ...]
    inputs: tuple[ViewReference, ...]
    request: tuple[Column, ...]
    mode: Literal["pandas", "python", "singleton"]
    code: str
    function: str
    fingerprint: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """A named feature vector: references in declared order, to views and on-demand views alike. `log_rate` is the share
    of its requests, from 0 to 1, whose answers are logged."""

    name: str
    references: tuple[ViewReference, ...]
    description: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    log_rate: float = 0.0


@dataclass(frozen=True)
class Catalog:
    """All definitions of one project. `version` rises with every apply or rebuild that changes anything.

    `arriving` are layouts under construction, `retiring` those that served until lately: readers use neither.
    """

    project: str
    version: int
    clock: Literal["wall", "event"]
    entities: tuple[Entity, ...] = ()
    sources: tuple[Source, ...] = ()
    views: tuple[FeatureView, ...] = ()
    on_demand_views: tuple[OnDemandView, ...] = ()
    services: tuple[Service, ...] = ()
    arriving: tuple[Layout, ...] = ()
    retiring: tuple[Layout, ...] = ()
    format: int = field(default=CATALOG_FORMAT)

    @cached_property
    def _named(self) -> dict[str, dict[str, Any]]:
        return {
            kind: {item.name: item for item in getattr(self, kind)}
            for kind in ("entities", "sources", "views", "on_demand_views", "services")
        }

    def _get(self, kind: str, word: str, name: str) -> Any:
        try:
            return self._named[kind][name]
        except KeyError:
            known = ", ".join(sorted(self._named[kind])) or "none"
            if kind == "views" and self.is_on_demand(name):
                raise UnknownNameError(
                    f"{name!r} is an on-demand feature view, computed at each read; name a stored one: {known}."
                ) from None
            raise UnknownNameError(f"There is no {word} {name!r}; the catalog has: {known}.") from None

    def entity(self, name: str) -> Entity:
        found: Entity = self._get("entities", "entity", name)
        return found

    def source(self, name: str) -> Source:
        found: Source = self._get("sources", "source", name)
        return found

    def view(self, name: str) -> FeatureView:
        found: FeatureView = self._get("views", "feature view", name)
        return found

    def on_demand_view(self, name: str) -> OnDemandView:
        found: OnDemandView = self._get("on_demand_views", "on-demand feature view", name)
        return found

    def service(self, name: str) -> Service:
        found: Service = self._get("services", "feature service", name)
        return found

    def is_on_demand(self, name: str) -> bool:
        return name in self._named["on_demand_views"]

    def has_view(self, name: str) -> bool:
        return name in self._named["views"]

    def join_keys(self, view: FeatureView) -> tuple[Column, ...]:
        """The join keys of `view` with their types, in the declared order of its entities."""
        entities = [self.entity(name) for name in view.entities]
        return tuple(Column(entity.join_key, entity.dtype) for entity in entities)

    def sorted_join_keys(self, view: FeatureView) -> tuple[Column, ...]:
        """The join keys of `view` in the order of its sorted entity names: the order of values in an entity key."""
        entities = [self.entity(name) for name in sorted(view.entities)]
        return tuple(Column(entity.join_key, entity.dtype) for entity in entities)

    def views_of(self, source: str) -> tuple[FeatureView, ...]:
        return tuple(view for view in self.views if view.source == source)

    @property
    def stored_views(self) -> tuple[FeatureView, ...]:
        """Every layout that the store may hold values of: those that serve, and those beside them."""
        return (*self.views, *(layout.view for layout in (*self.arriving, *self.retiring)))


def write_source(catalog: Catalog, view: FeatureView) -> Source:
    """The internal source `writes/VIEW` that rows written directly into a plain or batch view travel through."""
    extra = (Column("event_timestamp", DType.TIMESTAMP), Column("created", DType.TIMESTAMP))
    keys = tuple(column for column in catalog.join_keys(view) if column not in view.features)
    return Source(f"writes/{view.name}", (*keys, *view.features, *extra), "event_timestamp")


def catalog_to_json(catalog: Catalog) -> bytes:
    """Canonical UTF-8 JSON of `catalog`; equal catalogs give equal bytes."""
    return orjson.dumps(dataclasses.asdict(catalog), option=orjson.OPT_SORT_KEYS)


def catalog_from_json(data: bytes) -> Catalog:
    """The inverse of `catalog_to_json`. Raises DataError for another format."""
    raw = orjson.loads(data)
    if raw.get("format") != CATALOG_FORMAT:
        raise DataError(
            f"The catalog has format {raw.get('format')!r}, this Headrace reads {CATALOG_FORMAT}; run headrace apply."
        )
    built: Catalog = _build(Catalog, raw)
    return built


def _build(kind: Any, value: Any) -> Any:
    """`value` (plain JSON) as `kind`: a dataclass, a tuple, an optional, an enum or a scalar."""
    if value is None:
        return None
    origin = typing.get_origin(kind)
    if origin is tuple:
        inner = typing.get_args(kind)
        if inner[-1] is Ellipsis:
            return tuple(_build(inner[0], item) for item in value)
        return tuple(_build(part, item) for part, item in zip(inner, value, strict=True))
    if origin in (types.UnionType, typing.Union):
        return _build(next(part for part in typing.get_args(kind) if part is not type(None)), value)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _build(hints[name], item) for name, item in value.items()})  # type: ignore[operator]
    return DType(value) if kind is DType else value
