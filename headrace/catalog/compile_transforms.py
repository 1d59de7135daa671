"""The function of a stream feature view to the transform that its events pass.

Feast's `mode="pandas"` and `udf` say it; the tag `engine: polars` gives the function a Polars frame, and the tag
`transformed` (the DDL that `schema` uses) says what it gives, where that is not what it is given.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Literal

from feast import FeatureView as FeastView
from feast import StreamFeatureView

from headrace.catalog.definitions import Column, DType, Source, Transform
from headrace.catalog.functions import carry
from headrace.catalog.schema import parse_ddl, refuse_reserved
from headrace.errors import DefinitionError

__all__ = ["ROW", "compile_transform", "transformed_columns"]

ENGINES = ("pandas", "polars")
ROW = "_row"


def transformed_columns(view: FeastView, source: Source) -> tuple[Column, ...]:
    """The columns that the view sees: what its transform gives, else what its source has.

    Raises DefinitionError for a transform's columns without the event time, or with the name `_row`.
    """
    ddl = view.tags.get("transformed")
    if ddl is None:
        return source.columns
    who = f"the tag transformed of view {view.name!r}"
    columns = parse_ddl(ddl, who)
    types = {column.name: column.dtype for column in columns}
    if types.get(source.timestamp) is not DType.TIMESTAMP:
        raise DefinitionError(
            f"A transform gives the event time, {who} has no column {source.timestamp!r} of type timestamp; add it."
        )
    _refuse_row(columns, who)
    refuse_reserved(columns, source.timestamp, who)
    return columns


def compile_transform(
    view: FeastView, source: Source, root: Path, modules: Mapping[str, ModuleType]
) -> Transform | None:
    """The view's transform, None if it has no function. Raises DefinitionError for one that cannot be carried."""
    who = f"view {view.name!r}"
    function = view.udf if isinstance(view, StreamFeatureView) else None
    if function is None:
        for tag in ("engine", "transformed"):
            if tag in view.tags:
                raise DefinitionError(f"The tag {tag} belongs to a transform, {who} has none; give it udf=function.")
        return None
    _refuse_row(source.columns, f"source {source.name!r}, which {who} transforms,")
    code = carry(function, root, modules, f"the transform of {who}")
    columns = transformed_columns(view, source)
    return Transform(_engine(view, who), code, function.__name__, columns, _names(code, source.timestamp))


def _engine(view: FeastView, who: str) -> Literal["pandas", "polars"]:
    engine = view.tags.get("engine", "pandas")
    if engine not in ENGINES:
        raise DefinitionError(f"The tag engine of {who} is {engine!r}; use one of {', '.join(ENGINES)}.")
    return "polars" if engine == "polars" else "pandas"


def _refuse_row(columns: tuple[Column, ...], who: str) -> None:
    if any(column.name == ROW for column in columns):
        raise DefinitionError(f"The column {ROW!r} tells a transform its rows apart, {who} has one; rename it.")


def _names(code: str, name: str) -> bool:
    """Whether the code mentions `name`, as text, attribute, keyword or variable: it may then change what it names."""
    for node in ast.walk(ast.parse(code)):
        mentioned = (
            getattr(node, "attr", None),
            getattr(node, "arg", None),
            getattr(node, "id", None),
            getattr(node, "value", None) if isinstance(node, ast.Constant) else None,
        )
        if any(isinstance(part, str) and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", part) for part in mentioned):
            return True
    return False
