"""Plans: what a service or a list of references needs, resolved once against the catalog."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from headrace.catalog.definitions import Catalog, Column, FeatureView, OnDemandView, ViewReference
from headrace.compute.on_demand import OnDemandFunction
from headrace.errors import RequestError
from headrace.read.online.few import FewReader
from headrace.read.online.many import ManyReader
from headrace.read.online.reads import StoreReads

__all__ = ["LookupPlan", "OnDemandStep", "Output", "ViewStep", "plan_features", "plan_references", "plan_service"]


@dataclass(frozen=True, slots=True)
class ViewStep:
    """One stored view under the names its values go by in this plan.

    `request_keys` are the request's names of the join keys, in the order of the values in an entity key.
    """

    name: str
    view: FeatureView
    request_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OnDemandStep:
    """One on-demand view, its loaded function and, per input, where its values come from: (step name, feature)."""

    view: OnDemandView
    inputs: tuple[tuple[str, str], ...]
    function: OnDemandFunction


@dataclass(frozen=True, slots=True)
class Output:
    """One feature of the answer: `step` is a view step's or an on-demand view's name, `place` the feature's number
    among the view's."""

    name: str
    step: str
    feature: Column
    on_demand: bool
    place: int


@dataclass(frozen=True, eq=False)
class LookupPlan:
    """What to ask for and what to answer. `join_keys` and `request` are the columns that a request must bring."""

    catalog: Catalog
    label: str
    join_keys: tuple[Column, ...]
    request: tuple[Column, ...]
    steps: tuple[ViewStep, ...]
    on_demand: tuple[OnDemandStep, ...]
    outputs: tuple[Output, ...]

    @cached_property
    def needed(self) -> dict[str, Column]:
        """The columns that a request must bring, by name."""
        return {column.name: column for column in (*self.join_keys, *self.request)}

    @cached_property
    def reads(self) -> StoreReads:
        """What the store is asked for."""
        return StoreReads(self.catalog, self.steps)

    @cached_property
    def few(self) -> FewReader:
        """What reads the steps' values for few rows."""
        return FewReader([step.view for step in self.steps])

    @cached_property
    def many(self) -> ManyReader:
        """What reads the steps' values for many rows."""
        return ManyReader([step.view for step in self.steps])

    @cached_property
    def lates(self) -> list[int]:
        """Per step, how much later than t its newest event must be for t to move: an event at t does not count in a
        window, and counts in a plain view."""
        return [0 if step.view.kind == "windowed" else 1 for step in self.steps]

    def prepare(self) -> None:
        """Compile now what the first request would."""
        _ = self.needed, self.reads, self.few, self.many, self.lates

    def features_of(self, step: str) -> list[str]:
        """The features of a step that are answered or that an on-demand view takes in."""
        answered = [output.feature.name for output in self.outputs if output.step == step]
        taken = [feature for on_demand in self.on_demand for name, feature in on_demand.inputs if name == step]
        return list(dict.fromkeys(answered + taken))


def plan_service(catalog: Catalog, service: str, full_feature_names: bool = False) -> LookupPlan:
    """The plan of a feature service. Raises UnknownNameError, RequestError when short names collide."""
    return _plan(catalog, f"feature service {service!r}", catalog.service(service).references, full_feature_names)


def plan_features(catalog: Catalog, features: Sequence[str], full_feature_names: bool = False) -> LookupPlan:
    """The plan of references written `view:feature`. Raises UnknownNameError, RequestError."""
    if not features:
        raise RequestError("A request needs at least one feature, got none; name them as view:feature.")
    return _plan(catalog, "the features", [_reference(catalog, text) for text in features], full_feature_names)


def plan_references(catalog: Catalog, references: Sequence[ViewReference]) -> LookupPlan:
    """The plan of any references, with full feature names. Raises UnknownNameError, RequestError."""
    return _plan(catalog, "the features", references, True)


def _reference(catalog: Catalog, text: str) -> ViewReference:
    view_name, colon, feature = text.partition(":")
    if not colon:
        raise RequestError(f"A feature is named as view:feature, got {text!r}; write it with a colon.")
    on_demand = catalog.is_on_demand(view_name)
    columns = (catalog.on_demand_view(view_name) if on_demand else catalog.view(view_name)).features
    if feature not in {column.name for column in columns}:
        known = ", ".join(column.name for column in columns)
        raise RequestError(f"View {view_name!r} has no feature {feature!r}; it has: {known}.")
    return ViewReference(view_name, view_name, (feature,))


def _plan(catalog: Catalog, label: str, references: Sequence[ViewReference], full: bool) -> LookupPlan:
    steps: dict[str, ViewStep] = {}
    on_demand: dict[str, OnDemandStep] = {}
    outputs: list[Output] = []
    for reference in references:
        if catalog.is_on_demand(reference.view):
            columns = _add_on_demand(catalog, reference.view, steps, on_demand)
        else:
            columns = _add_view(catalog, reference, steps).features
        is_on_demand = catalog.is_on_demand(reference.view)
        step = reference.view if is_on_demand else reference.name
        for feature in reference.features:
            place = next(number for number, column in enumerate(columns) if column.name == feature)
            name = f"{reference.name}__{feature}" if full else feature
            outputs.append(Output(name, step, columns[place], is_on_demand, place))
    _refuse_collisions(label, outputs, steps)
    request = {column.name: column for step in on_demand.values() for column in step.view.request}
    keys = {c.name: c for step in steps.values() for c in _request_columns(catalog, step)}
    rest = tuple(column for name, column in request.items() if name not in keys)
    return LookupPlan(
        catalog, label, tuple(keys.values()), rest, tuple(steps.values()), tuple(on_demand.values()), tuple(outputs)
    )


def _add_view(catalog: Catalog, reference: ViewReference, steps: dict[str, ViewStep]) -> FeatureView:
    view = catalog.view(reference.view)
    renamed = dict(reference.join_key_map)
    keys = tuple(renamed.get(column.name, column.name) for column in catalog.sorted_join_keys(view))
    held = steps.setdefault(reference.name, ViewStep(reference.name, view, keys))
    if held.view.name != view.name or held.request_keys != keys:
        raise RequestError(
            f"One name stands for one view, got {reference.name!r} twice with different join keys; use with_name."
        )
    return view


def _add_on_demand(
    catalog: Catalog, name: str, steps: dict[str, ViewStep], on_demand: dict[str, OnDemandStep]
) -> tuple[Column, ...]:
    view = catalog.on_demand_view(name)
    if name in on_demand:
        return view.features
    inputs = []
    for reference in view.inputs:
        _add_view(catalog, reference, steps)
        inputs += [(reference.name, feature) for feature in reference.features]
    on_demand[name] = OnDemandStep(view, tuple(inputs), OnDemandFunction(view))
    return view.features


def _request_columns(catalog: Catalog, step: ViewStep) -> list[Column]:
    typed = catalog.sorted_join_keys(step.view)
    return [Column(name, column.dtype) for name, column in zip(step.request_keys, typed, strict=True)]


def _refuse_collisions(label: str, outputs: Sequence[Output], steps: dict[str, ViewStep]) -> None:
    keys = {key for step in steps.values() for key in step.request_keys}
    seen: set[str] = set()
    for output in outputs:
        if output.name in seen | keys:
            raise RequestError(
                f"Names of an answer must differ, but {output.name!r} occurs twice in {label}; "
                "ask with full_feature_names (--full-feature-names)."
            )
        seen.add(output.name)
