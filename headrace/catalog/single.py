"""One Feast view, outside any repo, to a catalog that holds it and its source: what a preview in a test runs on."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from feast import Entity as FeastEntity
from feast import FeatureView as FeastView

from headrace.catalog.compile_sources import compile_source
from headrace.catalog.compile_views import Compiler
from headrace.catalog.definitions import Catalog
from headrace.catalog.feast_types import StreamSource, dtype_of_feast, value_type
from headrace.catalog.refuse import refuse_view
from headrace.errors import DefinitionError

__all__ = ["compile_single"]


def compile_single(view: FeastView, entities: Sequence[FeastEntity] | None = None) -> Catalog:
    """The catalog of `view` and its source, under the event clock.

    `entities` are the view's; without them their join keys come from the view's schema, in its order. Raises
    DefinitionError for what apply would refuse of the definition, and for a view of a file.
    """
    refuse_view(view)
    if not isinstance(view.stream_source, StreamSource):
        raise DefinitionError(
            f"A preview runs on events, view {view.name!r} reads a file; give a view of a PushSource or KafkaSource."
        )
    function = getattr(view, "udf", None)
    root = Path(inspect.getfile(function)).resolve().parent if function is not None else Path.cwd()
    given = {entity.name: entity for entity in entities or _entities(view)}
    source = compile_source(view.stream_source, root)
    compiler = Compiler(root, given, {source.name: source}, _modules_below(root))
    compiled = compiler.entities_of([view])
    return Catalog("preview", 1, "event", tuple(compiled.values()), (source,), (compiler.view(view, compiled),))


def _entities(view: FeastView) -> list[FeastEntity]:
    if len(view.entity_columns) != len(view.entities):
        raise DefinitionError(
            f"The schema of view {view.name!r} does not name the join keys of {', '.join(view.entities)}; "
            "give preview entities=[...]."
        )
    return [
        FeastEntity(name=name, join_keys=[field.name], value_type=value_type(dtype_of_feast(field.dtype, field.name)))
        for name, field in zip(view.entities, view.entity_columns, strict=True)
    ]


def _modules_below(root: Path) -> dict[str, ModuleType]:
    """The imported modules whose files lie in or below the folder of the function."""
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).resolve().is_relative_to(root) and "site-packages" not in file:
            found[name] = module
    return found
