"""A loaded repo to the catalog: plain data that every process reads instead of Feast's objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from feast import Entity as FeastEntity
from feast import (
    FeatureService,
    FeatureView,
    FileSource,
    OnDemandFeatureView,
    Project,
    RequestSource,
    StreamFeatureView,
)
from feast.data_source import DataSource
from feast.feature_view_projection import FeatureViewProjection
from feast.field import Field

from headrace.catalog.compile_services import log_rate
from headrace.catalog.compile_sources import compile_source, file_path
from headrace.catalog.compile_views import Compiler, fingerprint
from headrace.catalog.definitions import Catalog, Column, Entity, OnDemandView, Service, Source, ViewReference
from headrace.catalog.definitions import FeatureView as View
from headrace.catalog.feast_types import StreamSource, dtype_of_feast
from headrace.catalog.functions import carry
from headrace.catalog.layouts import continued
from headrace.catalog.load import Repo
from headrace.catalog.refuse import (
    refuse_name,
    refuse_object,
    refuse_on_demand,
    refuse_same_names,
    refuse_service,
    refuse_view,
)
from headrace.catalog.retention import refuse_short_retention
from headrace.catalog.schema import refuse_twice
from headrace.errors import DefinitionError

__all__ = ["compile_repo", "continue_catalog", "name_notes", "notes_of", "places_of", "sources_of", "views_of"]

Known = Mapping[str, View | OnDemandView]


def compile_repo(
    repo: Repo, *, clock: Literal["wall", "event"] | None = None, previous: Catalog | None = None
) -> Catalog:
    """The catalog of `repo`, one version above `previous` if anything differs from it, else of its version.

    `clock` None keeps the previous clock, `wall` at first. A view that keeps its fingerprint keeps its generation.
    Raises DefinitionError with rule, value and remedy for the first thing that cannot work.
    """
    _check_objects(repo)
    views = views_of(repo)
    pushed = [source for source in sources_of(repo) if isinstance(source, StreamSource)]
    sources = {source.name: compile_source(source, repo.root) for source in pushed}
    compiler = Compiler(repo.root, {entity.name: entity for entity in repo.of(FeastEntity)}, sources, repo.modules)
    entities = compiler.entities_of(views)
    compiled = [compiler.view(view, entities) for view in views]
    refuse_short_retention(list(sources.values()), compiled)
    known: dict[str, View | OnDemandView] = {view.name: view for view in compiled}
    feast_views = {view.name: view for view in views}
    on_demand = [_on_demand(repo, view, known, feast_views, entities) for view in repo.of(OnDemandFeatureView)]
    known |= {view.name: view for view in on_demand}
    everything = feast_views | {view.name: view for view in repo.of(OnDemandFeatureView)}
    services = [_service(service, known, everything, entities) for service in repo.of(FeatureService)]
    catalog = Catalog(
        project=repo.project,
        version=previous.version + 1 if previous else 1,
        clock=clock or (previous.clock if previous else "wall"),
        entities=tuple(entities.values()),
        sources=tuple(sources.values()),
        views=tuple(compiled),
        on_demand_views=tuple(on_demand),
        services=tuple(services),
    )
    return continue_catalog(catalog, previous)


def continue_catalog(catalog: Catalog, previous: Catalog | None) -> Catalog:
    """`catalog` with the layouts and, if it is the same, the version of `previous`."""
    known = {source.name: source for source in previous.sources} if previous else {}
    sources = tuple(_with_added(source, known.get(source.name), catalog.version) for source in catalog.sources)
    catalog = continued(replace(catalog, sources=sources), previous)
    same = previous is not None and replace(catalog, version=previous.version) == previous
    return previous if same and previous is not None else catalog


def _with_added(source: Source, before: Source | None, version: int) -> Source:
    """`source` with what it says of columns that it gained, now or earlier."""
    if before is None:
        return source
    held = {column.name for column in before.columns}
    new = tuple((column.name, version) for column in source.columns if column.name not in held)
    return replace(source, added=before.added + new)


def views_of(repo: Repo) -> list[FeatureView]:
    """The repo's feature views and stream feature views, in declared order."""
    return repo.of(FeatureView)


def _check_objects(repo: Repo) -> None:
    """Refuse what no other step looks at, and two objects of one name."""
    for item in repo.objects:
        refuse_object(item)
    for project in repo.of(Project):
        if project.name != repo.project:
            raise DefinitionError(
                f"A repo has one project, feature_store.yaml says {repo.project!r} and a Project says "
                f"{project.name!r}; make them equal."
            )
    for view in views_of(repo):
        refuse_view(view)
    for on_demand in repo.of(OnDemandFeatureView):
        refuse_on_demand(on_demand)
    for entity in repo.of(FeastEntity):
        refuse_name(entity.name, "an entity", "/")
    refuse_same_names([*views_of(repo), *repo.of(OnDemandFeatureView)], "feature view")
    refuse_same_names(repo.of(FeastEntity), "entity")
    refuse_same_names(repo.of(FeatureService), "feature service")
    refuse_same_names(sources_of(repo), "source")


def sources_of(repo: Repo) -> list[DataSource]:
    """The sources at module level, and those that only views and other sources hold, each once."""
    sources: list[DataSource] = list(repo.of(DataSource))
    for view in views_of(repo):
        sources += [source for source in (view.stream_source, view.batch_source) if source is not None]
    for on_demand in repo.of(OnDemandFeatureView):
        sources += [source for source in on_demand.sources if isinstance(source, RequestSource)]
    sources += [source.batch_source for source in sources if isinstance(source, StreamSource) and source.batch_source]
    unique: list[DataSource] = []
    for source in sources:
        if not any(_is_same(source, known) for known in unique):
            unique.append(source)
    return unique


def _is_same(source: DataSource, known: DataSource) -> bool:
    """Whether two are one: the same object, or equal files, for Feast copies a file's source into its views."""
    files = isinstance(source, FileSource) and isinstance(known, FileSource)
    return source is known or (files and bool(source == known))


def _on_demand(
    repo: Repo,
    view: OnDemandFeatureView,
    known: Known,
    feast_views: Mapping[str, FeatureView],
    entities: Mapping[str, Entity],
) -> OnDemandView:
    who = f"on-demand feature view {view.name!r}"
    features = _fields(view.features, f"of {who}")
    refuse_twice([feature.name for feature in features], f"the features of {who}")
    inputs = tuple(
        _reference(_projection(source), who, known, feast_views, entities)
        for source in view.sources
        if not isinstance(source, RequestSource)
    )
    refuse_twice([reference.view for reference in inputs], f"the source views of {who}")
    request = tuple(
        column
        for source in view.source_request_sources.values()
        for column in _fields(source.schema, f"of request source {source.name!r}")
    )
    refuse_twice([name for ref in inputs for name in ref.features] + [c.name for c in request], f"the inputs of {who}")
    udf = view.feature_transformation.udf
    compiled = OnDemandView(
        name=view.name,
        features=features,
        inputs=inputs,
        request=request,
        mode="singleton" if view.singleton else "python" if view.mode == "python" else "pandas",
        code=carry(udf, repo.root, repo.modules, who),
        function=udf.__name__,
        fingerprint="",
        description=view.description,
    )
    content = {key: value for key, value in asdict(compiled).items() if key not in ("name", "description")}
    return replace(compiled, fingerprint=fingerprint(content))


def _projection(source: Any) -> FeatureViewProjection:
    projection: FeatureViewProjection = source if isinstance(source, FeatureViewProjection) else source.projection
    return projection


def _fields(fields: Iterable[Field], where: str) -> tuple[Column, ...]:
    return tuple(Column(field.name, dtype_of_feast(field.dtype, f"Field {field.name!r} {where}")) for field in fields)


def _reference(
    projection: FeatureViewProjection,
    who: str,
    known: Known,
    feast_views: Mapping[str, Any],
    entities: Mapping[str, Entity],
) -> ViewReference:
    """What a service or an on-demand view takes of one view."""
    view = known.get(projection.name)
    if view is None:
        raise _unknown(who, projection.name, known)
    if projection.version_tag is not None:
        raise DefinitionError(f"{who}: the pinned version of {projection.name!r} is not supported; leave it out.")
    wanted = projection.desired_features or [field.name for field in projection.features]
    declared = [field.name for field in feast_views[projection.name].features]
    names = _features(view, [] if wanted == declared else wanted, who)
    name = projection.name_alias or projection.name
    refuse_name(name, f"a copy of view {view.name!r} in {who}", "@:/")
    return ViewReference(view.name, name, names, _join_key_map(projection.join_key_map, view, who, entities))


def _features(view: View | OnDemandView, wanted: Sequence[str], who: str) -> tuple[str, ...]:
    """The names wanted, all of the view's if none are; each must be there."""
    available = [feature.name for feature in view.features]
    for name in wanted:
        if name not in available:
            raise DefinitionError(
                f"{who[0].upper()}{who[1:]} names feature {name!r} of view {view.name!r}, which has: "
                f"{', '.join(available)}; correct the name."
            )
    refuse_twice(list(wanted), f"the features of view {view.name!r} in {who}")
    return tuple(wanted or available)


def _join_key_map(
    given: Mapping[str, str], view: View | OnDemandView, who: str, entities: Mapping[str, Entity]
) -> tuple[tuple[str, str], ...]:
    keys = [entities[name].join_key for name in view.entities] if isinstance(view, View) else []
    for key in given:
        if key not in keys:
            raise DefinitionError(
                f"{who[0].upper()}{who[1:]} maps join key {key!r} of view {view.name!r}, which has: "
                f"{', '.join(keys) or 'none'}; correct with_join_key_map."
            )
    refuse_twice([given.get(key, key) for key in keys], f"the join keys of view {view.name!r} in {who}")
    return tuple(given.items())


def _unknown(who: str, name: str, known: Known) -> DefinitionError:
    return DefinitionError(
        f"{who[0].upper()}{who[1:]} names view {name!r}, the repo has: {', '.join(known) or 'none'}; correct the name, "
        "or bind the view to a module-level name of a definition file."
    )


def _service(
    service: FeatureService, known: Known, feast_views: Mapping[str, Any], entities: Mapping[str, Entity]
) -> Service:
    refuse_service(service)
    who = f"feature service {service.name!r}"
    projections = iter(service.feature_view_projections)
    references = tuple(
        _named_reference(item, who, known)
        if isinstance(item, str)
        else _reference(next(projections), who, known, feast_views, entities)
        for item in service._features
    )
    _check_references(references, who)
    _check_keys(references, who, known, entities)
    tags = tuple(sorted(service.tags.items()))
    return Service(service.name, references, service.description, tags, log_rate(service.name, service.tags))


def _named_reference(text: str, who: str, known: Known) -> ViewReference:
    """A reference written as `view` or `view:feature`."""
    name, _, feature = text.partition(":")
    view = known.get(name)
    if view is None:
        raise _unknown(who, name, known)
    return ViewReference(name, name, _features(view, [feature] if feature else [], who))


def _check_references(references: Sequence[ViewReference], who: str) -> None:
    """One name stands for one view with one join key map, and no feature comes twice under it."""
    first: dict[str, ViewReference] = {}
    for reference in references:
        known = first.setdefault(reference.name, reference)
        if (known.view, known.join_key_map) != (reference.view, reference.join_key_map):
            raise DefinitionError(
                f"In {who} the name {reference.name!r} stands for two things; tell them apart by with_name(...)."
            )
    refuse_twice([f"{ref.name}:{name}" for ref in references for name in ref.features], f"the features of {who}")


def _check_keys(references: Sequence[ViewReference], who: str, known: Known, entities: Mapping[str, Entity]) -> None:
    """One key or request field of a request has one type, whatever views read it."""
    types: dict[str, Any] = {}
    for column in (column for reference in references for column in _asked(reference, known, entities)):
        if types.setdefault(column.name, column.dtype) is not column.dtype:
            raise DefinitionError(
                f"A request gives {column.name!r} once, in {who} it is both {types[column.name]} and {column.dtype}; "
                "rename one, for example by with_join_key_map."
            )


def _asked(reference: ViewReference, known: Known, entities: Mapping[str, Entity]) -> list[Column]:
    """What a request must give for one reference: join keys, and request data of on-demand views."""
    view = known[reference.view]
    if isinstance(view, OnDemandView):
        return [*view.request, *(column for item in view.inputs for column in _asked(item, known, entities))]
    renamed = dict(reference.join_key_map)
    keys = [entities[name] for name in view.entities]
    return [Column(renamed.get(key.join_key, key.join_key), key.dtype) for key in keys]


def notes_of(repo: Repo) -> list[str]:
    """What the user should know about definitions that work: options without effect, files that are not there."""
    notes = []
    for view in views_of(repo):
        if isinstance(view, StreamFeatureView) and view.aggregations and view.ttl:
            notes.append(f"View {view.name!r}: ttl has no effect on windows, they end by themselves.")
        notes += _file_notes(repo, view)
    return notes


def name_notes(catalog: Catalog) -> list[str]:
    """Services in which short names collide, so that they can be asked with full feature names alone."""
    notes = []
    for service in catalog.services:
        names = [name for reference in service.references for name in reference.features]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            notes.append(
                f"Service {service.name!r}: {', '.join(map(repr, twice[:3]))} {'is' if len(twice) == 1 else 'are'} in "
                "more than one view; ask with full_feature_names (--full-feature-names)."
            )
    return notes


def places_of(repo: Repo) -> dict[str, str]:
    """File and line of the functions of on-demand feature views and of transforms, by view."""
    places = {}
    for view in [*repo.of(OnDemandFeatureView), *views_of(repo)]:
        code = getattr(getattr(getattr(view, "feature_transformation", None), "udf", None), "__code__", None)
        if code is not None:
            file = Path(code.co_filename)
            shown = file.relative_to(repo.root) if file.is_relative_to(repo.root) else file
            places[view.name] = f"{shown}, line {code.co_firstlineno}"
    return places


def _file_notes(repo: Repo, view: FeatureView) -> list[str]:
    batch = view.batch_source
    if not isinstance(batch, FileSource):
        return []
    exists = file_path(batch, repo.root).exists()
    if exists and (getattr(view, "aggregations", None) or getattr(view, "udf", None)):
        what = "windows" if getattr(view, "aggregations", None) else "a view with a transform"
        return [f"View {view.name!r}: file {batch.path!r} is not read for {what}; push its rows as events."]
    if not exists and view.stream_source is None:
        return [f"View {view.name!r}: file {batch.path!r} does not exist yet; write it before materializing."]
    return []
