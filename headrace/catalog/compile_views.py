"""Feature views and stream feature views to the catalog's views.

A view is `windowed` if it has aggregations, `plain` if it has a stream source and none, `batch` over a FileSource.
A plain view's batch file is part of it only if the file exists when it is compiled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
from feast import Entity as FeastEntity
from feast import FeatureView as FeastView
from feast import FileSource
from feast.aggregation import Aggregation as FeastAggregation

from headrace.catalog.compile_sources import compile_batch_source, file_types, timestamp_of
from headrace.catalog.compile_transforms import compile_transform, transformed_columns
from headrace.catalog.definitions import Aggregation, BatchSource, Column, DType, Entity, FeatureView, Source
from headrace.catalog.expectations import expectations_of_tag
from headrace.catalog.fallbacks import defaults_of_tag, max_staleness_of_tag
from headrace.catalog.feast_types import StreamSource, dtype_of_entity, dtype_of_feast, duration_us
from headrace.catalog.schema import RESERVED_COLUMNS, can_cast, refuse_same_but_case, refuse_twice
from headrace.errors import DefinitionError
from headrace.windows.functions import output_dtype
from headrace.windows.window import default_hop_us, format_duration

__all__ = ["Compiler", "fingerprint"]

SHORTEST_HOP_US = 50_000
MOST_TILES = 10_000
WRITE_COLUMNS = ("event_timestamp", "created", *RESERVED_COLUMNS)


def fingerprint(content: Any) -> str:
    """12 hexadecimal digits of a hash of plain `content`; equal content, equal digits."""
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


@dataclass
class Compiler:
    """What views are compiled against: the repo's folder, its entities as Feast has them, its compiled sources, and
    its modules by name, from which functions are carried."""

    root: Path
    feast_entities: Mapping[str, FeastEntity]
    sources: Mapping[str, Source]
    modules: Mapping[str, ModuleType] = field(default_factory=dict)

    def entities_of(self, views: Iterable[FeastView]) -> dict[str, Entity]:
        """Every entity with the type of its join key: its value_type, else what its views' columns say.

        Raises DefinitionError if nothing says it, or two columns say different things.
        """
        evidence: dict[str, set[DType]] = {name: set() for name in self.feast_entities}
        for view in views:
            for name in view.entities:
                key = self._entity(view, name).join_key
                evidence[name] |= self._key_types(view, key)
        return {name: _entity(entity, evidence[name]) for name, entity in self.feast_entities.items()}

    def _entity(self, view: FeastView, name: str) -> FeastEntity:
        if name not in self.feast_entities:
            known = ", ".join(self.feast_entities) or "none"
            raise DefinitionError(
                f"Entities of a view are module-level names of a definition file, view {view.name!r} has {name!r}, "
                f"the repo has: {known}; bind the Entity to a name there."
            )
        return self.feast_entities[name]

    def _key_types(self, view: FeastView, key: str) -> set[DType]:
        """What the view's declared schema, else its source, else its batch file says about a join key."""
        declared = [field for field in view.entity_columns if field.name == key]
        if declared:
            return {dtype_of_feast(field.dtype, f"Join key {key!r} of view {view.name!r}") for field in declared}
        return {column.dtype for column in self.columns_of(view) if column.name == key}

    def columns_of(self, view: FeastView) -> tuple[Column, ...]:
        """The columns that the view sees of its source; none for a batch view whose file does not exist."""
        if isinstance(view.stream_source, StreamSource):
            return transformed_columns(view, self.sources[view.stream_source.name])
        assert isinstance(view.batch_source, FileSource)
        types = file_types(view.batch_source, self.root) or {}
        return tuple(Column(name, dtype) for name, dtype in types.items() if dtype is not None)

    def view(self, view: FeastView, entities: Mapping[str, Entity]) -> FeatureView:
        """The compiled view, with its fingerprint and generation 1. Raises DefinitionError for what cannot work."""
        keys = tuple(Column(entities[name].join_key, entities[name].dtype) for name in view.entities)
        if getattr(view, "aggregations", None):
            compiled = self._windowed(view, keys)
        elif view.stream_source is not None:
            compiled = self._plain(view, keys)
        else:
            compiled = self._batch(view, keys)
        _check_features(compiled, keys)
        who = f"view {view.name!r}"
        defaults = defaults_of_tag(view.tags, compiled.features, who)
        compiled = replace(compiled, defaults=defaults, max_staleness_us=max_staleness_of_tag(view.tags, who))
        key_types = sorted((name, entities[name].join_key, entities[name].dtype) for name in view.entities)
        return replace(compiled, fingerprint=fingerprint(self._content(compiled, key_types)))

    def _windowed(self, view: FeastView, keys: tuple[Column, ...]) -> FeatureView:
        source, common = self._source(view, keys), self._common(view, "windowed")
        aggregations = tuple(compile_aggregation(view.name, item, source) for item in view.aggregations)
        features = tuple(Column(item.feature, item.dtype) for item in aggregations)
        _check_declared(view, features)
        return FeatureView(**common, features=features, source=source.name, aggregations=aggregations)

    def _plain(self, view: FeastView, keys: tuple[Column, ...]) -> FeatureView:
        source = self._source(view, keys)
        batch = view.batch_source
        assert isinstance(batch, FileSource)
        others = {source.timestamp, source.event_id, batch.created_timestamp_column, *(key.name for key in keys)}
        features = _declared(view) or tuple(column for column in source.columns if column.name not in others)
        for feature in features:
            _check_column(view, feature, source)
        common = self._common(view, "plain") | {"ttl_us": _ttl_us(view)}
        found = None if common["transform"] else file_types(batch, self.root)
        compiled = None if found is None else self._batch_source(view, batch, (*keys, *features), found)
        return FeatureView(**common, features=features, source=source.name, batch=compiled)

    def _batch(self, view: FeastView, keys: tuple[Column, ...]) -> FeatureView:
        batch = view.batch_source
        assert isinstance(batch, FileSource)
        found = file_types(batch, self.root)
        features = _declared(view) or _from_file(view, batch, found, keys)
        compiled = self._batch_source(view, batch, (*keys, *features), found)
        return FeatureView(**self._common(view, "batch"), features=features, batch=compiled, ttl_us=_ttl_us(view))

    def _common(self, view: FeastView, kind: str) -> dict[str, Any]:
        """What every kind of view has."""
        common: dict[str, Any] = {"transform": None, "expectations": ()}
        who = f"view {view.name!r}"
        if isinstance(view.stream_source, StreamSource):
            source = self.sources[view.stream_source.name]
            common["transform"] = compile_transform(view, source, self.root, self.modules)
            common["expectations"] = expectations_of_tag(view.tags, source.columns, source.timestamp, who)
        elif "expect" in view.tags:
            raise DefinitionError(f"The tag expect belongs to a view of events, {who} reads a file; take it out.")
        return common | {
            "name": view.name,
            "kind": kind,
            "entities": tuple(view.entities),
            "fingerprint": "",
            "online": view.online,
            "description": view.description,
            "tags": tuple(sorted(view.tags.items())),
        }

    def _source(self, view: FeastView, keys: tuple[Column, ...]) -> Source:
        """The view's stream as its transform leaves it, found to hold its join keys and event time."""
        assert view.stream_source is not None
        source = self.sources[view.stream_source.name]
        source = replace(source, columns=transformed_columns(view, source))
        stated = getattr(view, "timestamp_field", "") or source.timestamp
        if stated != source.timestamp:
            raise DefinitionError(
                f"The event time of a view is its source's, view {view.name!r} has timestamp_field {stated!r}, "
                f"source {source.name!r} has {source.timestamp!r}; make them equal."
            )
        for key in keys:
            column = _column(source.columns, key.name, f"join key {key.name!r} of view {view.name!r}", source.name)
            _check_cast(column.dtype, key, f"Join key {key.name!r} of view {view.name!r}", f"source {source.name!r}")
        return source

    def _batch_source(
        self, view: FeastView, batch: FileSource, columns: tuple[Column, ...], found: Mapping[str, DType | None] | None
    ) -> BatchSource:
        compiled = compile_batch_source(batch, columns)
        for column in compiled.columns if found is not None else ():
            where = f"Column {column.name!r} of view {view.name!r}"
            dtype = _column_of_file(found or {}, column.name, where, batch.path)
            _check_cast(dtype, column, where, f"file {batch.path!r}")
        return compiled

    def _content(self, view: FeatureView, key_types: list[tuple[str, str, DType]]) -> dict[str, Any]:
        """Everything that changes a value of the view, as plain data."""
        content: dict[str, Any] = {"kind": view.kind, "keys": key_types, "format": 1}
        content["features"] = [(feature.name, feature.dtype) for feature in view.features]
        if view.source is not None:
            content["source"] = _source_content(self.sources[view.source], view, {key for _, key, _ in key_types})
        content |= _share_content(view)
        if view.kind == "windowed":
            return content | {"aggregations": [asdict(item) for item in view.aggregations]}
        content["ttl_us"] = view.ttl_us
        if view.kind == "batch" and view.batch is not None:
            content["batch"] = {**asdict(view.batch), "name": ""}
        return content


def _share_content(view: FeatureView) -> dict[str, Any]:
    """What changes which rows a view has; what only warns does not."""
    content: dict[str, Any] = {}
    if view.transform is not None:
        content["transform"] = asdict(view.transform)
    expected = [asdict(item) for item in view.expectations if item.action != "warn"]
    return content | ({"expectations": expected} if expected else {})


def _source_content(source: Source, view: FeatureView, keys: set[str]) -> dict[str, Any]:
    """What of `source` changes values of `view`: a column that it does not read changes none."""
    read = keys | {item.column for item in view.aggregations} | {source.timestamp}
    if view.kind != "windowed":
        read |= {feature.name for feature in view.features}
    read |= {item.column for item in view.expectations}
    if view.transform is not None:
        read |= {column.name for column in source.columns}
    expected = [asdict(item) for item in source.expectations if item.action != "warn"]
    return ({"expectations": expected} if expected else {}) | {
        "name": source.name,
        "columns": sorted((column.name, column.dtype) for column in source.columns if column.name in read),
        "timestamp": source.timestamp,
        "event_id": source.event_id,
        "dedup_horizon_us": source.dedup_horizon_us if source.event_id else None,
        "max_future_us": source.max_future_us,
    }


def _entity(entity: FeastEntity, evidence: set[DType]) -> Entity:
    who = f"Entity {entity.name!r}"
    declared = dtype_of_entity(entity.value_type, who)
    candidates = {declared} if declared is not None else evidence
    if len(candidates) != 1:
        said = " and ".join(sorted(candidates)) or "nothing"
        raise DefinitionError(f"{who} has one type, its views' columns say {said}; give it a value_type.")
    dtype = next(iter(candidates))
    if dtype not in (DType.INT32, DType.INT64, DType.STRING):
        raise DefinitionError(f"A join key is a string or an integer, {entity.join_key!r} of {who} is {dtype}.")
    return Entity(entity.name, entity.join_key, dtype, entity.description)


def compile_aggregation(view: str, item: FeastAggregation, source: Source) -> Aggregation:
    """One aggregation of a view over `source`, with Feast's feature name, its hop and its types."""
    window_us = None if item.time_window is None else duration_us(item.time_window)
    feature = item.resolved_name(item.time_window)
    who = f"Feature {feature!r} of view {view!r}"
    if not item.column:
        raise DefinitionError(f"{who}: an aggregation names a column; write column='*' to count events.")
    try:
        dtype = DType.INT64 if item.column == "*" else _column(source.columns, item.column, who, source.name).dtype
        output = output_dtype(item.function, item.column, dtype)
        hop_us = _hop_us(item, window_us)
    except DefinitionError as error:
        raise error if str(error).startswith(who) else DefinitionError(f"{who}: {error}") from None
    return Aggregation(feature, item.function, item.column, window_us, hop_us, dtype, output)


def _hop_us(item: FeastAggregation, window_us: int | None) -> int:
    slide_us = None if item.slide_interval is None else duration_us(item.slide_interval)
    if window_us is None:
        if slide_us is not None:
            raise DefinitionError(f"A lifetime has no slide_interval, got {format_duration(slide_us)}; leave it out.")
        return 0
    default = default_hop_us(window_us)
    if slide_us is None or slide_us == window_us:
        return default
    shortest = max(SHORTEST_HOP_US, -(-window_us // MOST_TILES))
    if not shortest <= slide_us < window_us:
        raise DefinitionError(
            f"A slide_interval is shorter than its window of {format_duration(window_us)} and at least "
            f"{format_duration(shortest)}, got {format_duration(slide_us)}; "
            f"leave it out for {format_duration(default)}."
        )
    return slide_us


def _ttl_us(view: FeastView) -> int:
    """The view's TTL, 0 for none."""
    ttl_us = duration_us(view.ttl) if view.ttl else 0
    if ttl_us < 0:
        raise DefinitionError(f"A ttl is positive, or 0 for none, view {view.name!r} has {view.ttl}; correct it.")
    return ttl_us


def _declared(view: FeastView, lists: bool = False) -> tuple[Column, ...]:
    """The features of the view's schema, in its order."""
    where = f"of view {view.name!r}"
    return tuple(
        Column(field.name, dtype_of_feast(field.dtype, f"Feature {field.name!r} {where}", lists))
        for field in view.features
    )


def _check_declared(view: FeastView, compiled: tuple[Column, ...]) -> None:
    """Raises DefinitionError if the schema of a windowed view names what its aggregations do not give."""
    known = {column.name: column.dtype for column in compiled}
    for column in _declared(view, lists=True):
        if column.name not in known:
            raise DefinitionError(
                f"The schema of view {view.name!r} names its aggregations' features ({', '.join(known)}), "
                f"got {column.name!r}; correct it, or leave the schema out."
            )
        if known[column.name] is not column.dtype:
            raise DefinitionError(
                f"Feature {column.name!r} of view {view.name!r} is {known[column.name]}, its schema says "
                f"{column.dtype}; correct it, or leave the schema out."
            )


def _check_column(view: FeastView, feature: Column, source: Source) -> None:
    where = f"Feature {feature.name!r} of view {view.name!r}"
    column = _column(source.columns, feature.name, where, source.name)
    if column.dtype is not feature.dtype:
        raise DefinitionError(
            f"{where} is declared as {feature.dtype}, source {source.name!r} has it as {column.dtype}; make them equal."
        )


def _check_features(view: FeatureView, keys: tuple[Column, ...]) -> None:
    """Raises DefinitionError for features of one name, of a join key's name, or of a name we write with; in a view
    that takes rows directly names must differ in more than case."""
    if not view.features:
        raise DefinitionError(f"View {view.name!r} has no features; declare them by schema=[Field(...), ...].")
    names = [feature.name for feature in view.features]
    refuse_twice(names, f"the features of view {view.name!r}")
    taken = {key.name for key in keys}
    written = set() if view.kind == "windowed" else set(WRITE_COLUMNS)
    for name in names:
        if name in taken or name.lower() in written:
            other = "its join key" if name in taken else "a column that every row has"
            raise DefinitionError(f"Feature {name!r} of view {view.name!r} is named like {other}; rename it.")
    for name in (name for name in taken if name.lower() in written):
        raise DefinitionError(f"Join key {name!r} of view {view.name!r} is named like a column that every row has.")
    if view.kind != "windowed":
        refuse_same_but_case([*taken, *names], f"view {view.name!r}")


def _column(columns: Iterable[Column], name: str, where: str, source: str) -> Column:
    found = {column.name: column for column in columns}
    if name not in found:
        raise DefinitionError(
            f"{where[0].upper()}{where[1:]} needs column {name!r}, source {source!r} has: {', '.join(found)}; "
            "correct the name or the schema."
        )
    return found[name]


def _column_of_file(found: Mapping[str, DType | None], name: str, where: str, path: str) -> DType:
    dtype = found.get(name)
    if name not in found:
        raise DefinitionError(f"{where} is not in file {path!r}, which has: {', '.join(found)}; correct the name.")
    if dtype is None:
        raise DefinitionError(f"{where} has in file {path!r} a type that is not supported; leave it out of the schema.")
    return dtype


def _check_cast(found: DType, declared: Column, where: str, holder: str) -> None:
    if not can_cast(found, declared.dtype):
        raise DefinitionError(f"{where} is declared as {declared.dtype}, {holder} has it as {found}; make them equal.")


def _from_file(
    view: FeastView, batch: FileSource, found: Mapping[str, DType | None] | None, keys: tuple[Column, ...]
) -> tuple[Column, ...]:
    """The features of a view without schema: every column of the file but keys, times and `__` names, as in Feast."""
    if found is None:
        raise DefinitionError(
            f"View {view.name!r} has no schema and its file {batch.path!r} does not exist; "
            "declare schema=[Field(...), ...], or write the file first."
        )
    mapping, created = batch.field_mapping, batch.created_timestamp_column
    others = {timestamp_of(batch), mapping.get(created, created), *(key.name for key in keys)}
    names = [name for name in found if name not in others and not name.startswith("__") and not name.endswith("__")]
    return tuple(
        Column(name, _column_of_file(found, name, f"Column {name!r} of view {view.name!r}", batch.path))
        for name in names
    )
