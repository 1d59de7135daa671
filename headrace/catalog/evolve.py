"""What changes from one catalog to the next, and which changes would make stored events or values lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from headrace.catalog.definitions import Catalog, FeatureView, Source, write_source
from headrace.errors import DefinitionError
from headrace.windows.window import format_duration

__all__ = ["Change", "changes", "refuse_unsafe", "shown_item"]

KINDS = {
    "entities": "entity",
    "sources": "source",
    "views": "feature view",
    "on_demand_views": "on-demand feature view",
    "services": "feature service",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One definition that an apply adds, changes or removes; `details` say how and what follows."""

    action: Literal["added", "changed", "removed"]
    kind: str
    name: str
    details: tuple[str, ...] = ()


def changes(previous: Catalog | None, catalog: Catalog) -> list[Change]:
    """Every difference, by kind in the order of the catalog; none if only the version differs."""
    found: list[Change] = []
    if previous is not None and previous.clock != catalog.clock:
        found.append(Change("changed", "clock", catalog.clock, (f"clock: {previous.clock} -> {catalog.clock}",)))
    for attribute, kind in KINDS.items():
        old = {item.name: item for item in getattr(previous, attribute)} if previous else {}
        new = {item.name: item for item in getattr(catalog, attribute)}
        found += [Change("added", kind, name) for name in new if name not in old]
        for name in new:
            if name in old and (old[name] != new[name]):
                found.append(Change("changed", kind, name, tuple(_details(old[name], new[name]))))
        found += [Change("removed", kind, name, _removed(kind)) for name in old if name not in new]
    return found or _reordered(previous, catalog)


def _reordered(previous: Catalog | None, catalog: Catalog) -> list[Change]:
    if previous is None:
        return []
    moved = [attribute for attribute in KINDS if getattr(previous, attribute) != getattr(catalog, attribute)]
    return [Change("changed", "catalog", catalog.project, (f"order of {', '.join(moved)}",))] if moved else []


def _removed(kind: str) -> tuple[str, ...]:
    if kind == "source":
        return ("its archived events stay",)
    return ("its online values are no longer served",) if kind == "feature view" else ()


def _details(old: Any, new: Any) -> Iterator[str]:
    """One line for each field that differs, and what follows for the stored values."""
    before, after = asdict(old), asdict(new)
    for name in after:
        if before[name] != after[name] and name not in ("fingerprint", "generation", "added"):
            yield f"{name}: {_difference(before[name], after[name])}"
    if isinstance(new, FeatureView):
        if old.fingerprint != new.fingerprint:
            yield f"fingerprint: {old.fingerprint} -> {new.fingerprint}: the view is rebuilt"
        elif old.generation != new.generation:
            yield f"generation: {old.generation} -> {new.generation}: the view is rebuilt"
    elif "fingerprint" in after and before["fingerprint"] != after["fingerprint"]:
        yield f"fingerprint: {before['fingerprint']} -> {after['fingerprint']}"


def _difference(before: Any, after: Any) -> str:
    """What left a list (-) and what came (+); a scalar's two values."""
    if not (isinstance(before, tuple | list) and isinstance(after, tuple | list)):
        return f"{_shown(before)} -> {_shown(after)}"
    old, new = list(_parts(before)), list(_parts(after))
    signed = [f"- {text}" for text in old if text not in new] + [f"+ {text}" for text in new if text not in old]
    if signed:
        return ", ".join(signed)
    same = sorted(map(str, before)) == sorted(map(str, after))
    return f"in another order: {', '.join(new)}" if same else f"{before} -> {after}"


def _parts(items: Iterable[Any]) -> Iterator[str]:
    """Each item in a line, what is taken of a view feature by feature."""
    for item in items:
        if isinstance(item, dict) and "view" in item:
            keys = "".join(f" by {theirs} for {ours}" for ours, theirs in item["join_key_map"])
            yield from (f"{item['name']}:{feature}{keys}" for feature in item["features"])
        else:
            yield shown_item(item)


def _shown(value: Any) -> str:
    """A field's value in one line: columns as names and types, other records by what names them."""
    if isinstance(value, dict):
        code = value.get("code")
        return str(value.get("path", value)) if code is None else f"{value['mode']}, {_shown(code)}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(shown_item(item) for item in value) + ")"
    text = str(value)
    return text if "\n" not in text else f"{len(text.splitlines())} lines"


def shown_item(item: Any) -> str:
    """One item of a list in one line: an aggregation as `s = sum(amount) over 1h by 5m`, a column with its type."""
    if not isinstance(item, dict):
        return _shown(item)
    if "feature" in item:
        window = "lifetime" if item["window_us"] is None else format_duration(item["window_us"])
        hop = f" by {format_duration(item['hop_us'])}" if item["hop_us"] else ""
        return f"{item['feature']} = {item['function']}({item['column']}) over {window}{hop}"
    if "view" in item:
        return f"{item['name']}[{', '.join(item['features'])}]"
    if "rule" in item:
        return f"{item['column']} {item['text']}: {item['action']}"
    return f"{item['name']} {item['dtype']}" if "dtype" in item else ", ".join(f"{k}={v}" for k, v in item.items())


def refuse_unsafe(previous: Catalog | None, catalog: Catalog) -> None:
    """Raises DefinitionError for a change after which archived events or stored values would mean something else.

    Such are: another project or clock; a source that loses a column, gives one another type, takes another event
    time or fewer partitions; a view of another kind; a plain or batch view that gives a column another type.
    """
    if previous is None:
        return
    if previous.project != catalog.project:
        raise DefinitionError(
            f"A data directory holds one project, it holds {previous.project!r}, the repo is {catalog.project!r}; "
            "use another data directory (HEADRACE_DATA_DIR)."
        )
    if previous.clock != catalog.clock:
        raise DefinitionError(
            f"The clock is fixed by the first apply, it is {previous.clock!r} and HEADRACE_CLOCK says "
            f"{catalog.clock!r}; unset it, or use another project and data directory."
        )
    old_sources = {source.name: source for source in previous.sources}
    for source in catalog.sources:
        if source.name in old_sources:
            _check_source(old_sources[source.name], source)
    old_views = {view.name: view for view in previous.views}
    for view in catalog.views:
        if view.name in old_views and old_views[view.name].kind != view.kind:
            raise DefinitionError(
                f"A view keeps its kind, {view.name!r} was {old_views[view.name].kind} and would be {view.kind}; "
                "give the new view another name."
            )
        if view.name in old_views and view.kind != "windowed":
            _check_written(write_source(previous, old_views[view.name]), write_source(catalog, view), view.name)


def _check_written(old: Source, new: Source, view: str) -> None:
    """Rows written into a view are archived like events: their columns keep their types."""
    before = {column.name: column.dtype for column in old.columns}
    for column in new.columns:
        found = before.get(column.name, column.dtype)
        if found is not column.dtype:
            raise DefinitionError(
                f"A plain or batch view keeps its columns' types, view {view!r} had {column.name!r} as {found} and "
                f"would have it as {column.dtype}; give the new view another name."
            )


def _check_source(old: Source, new: Source) -> None:
    remedy = "give the new source another name"
    types = {column.name: column.dtype for column in new.columns}
    for column in old.columns:
        found = types.get(column.name)
        if found is not column.dtype:
            raise DefinitionError(
                f"A source only gains columns, source {new.name!r} had {column.name!r} as {column.dtype} and would "
                f"{'lose it' if found is None else f'have it as {found}'}; {remedy}."
            )
    if old.timestamp != new.timestamp:
        raise DefinitionError(
            f"A source keeps its event time, source {new.name!r} had {old.timestamp!r} and would have "
            f"{new.timestamp!r}; {remedy}."
        )
    if _log(old) != _log(new):
        raise DefinitionError(
            f"A source keeps its log, source {new.name!r} was {_log(old)} and would be {_log(new)}; {remedy}."
        )
    if new.partitions < old.partitions:
        raise DefinitionError(
            f"A source only gains partitions, source {new.name!r} had {old.partitions} and would have "
            f"{new.partitions}; keep {old.partitions}."
        )


def _log(source: Source) -> str:
    """Where positions of the source's events point into; a cluster may answer at other servers."""
    return "pushed" if source.kafka is None else f"the topic {source.kafka.topic!r} of {source.kafka.payload} messages"
