"""What a view falls back to when the store cannot answer: declared defaults, and how old a kept value may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson

from headrace.catalog.definitions import Column
from headrace.dtypes import DType
from headrace.errors import DefinitionError
from headrace.windows.window import parse_duration_us

__all__ = ["DEFAULTS", "MAX_STALENESS", "defaults_of_tag", "max_staleness_of_tag", "render_defaults"]

DEFAULTS, MAX_STALENESS = "defaults", "max_staleness"
_WHOLE = {DType.INT32: 1 << 31, DType.INT64: 1 << 63}


def max_staleness_of_tag(tags: Mapping[str, str], who: str) -> int | None:
    """Microseconds, None where the view does not say. Raises DefinitionError."""
    text = tags.get(MAX_STALENESS)
    if text is None:
        return None
    try:
        return parse_duration_us(text)
    except DefinitionError as error:
        raise DefinitionError(f"The tag {MAX_STALENESS} of {who}: {error}") from None


def defaults_of_tag(tags: Mapping[str, str], features: Sequence[Column], who: str) -> tuple[tuple[str, str], ...]:
    """The defaults as JSON text by feature, in the features' order. Raises DefinitionError for a feature that is not
    there, and for a value of another type than the feature's."""
    if DEFAULTS not in tags:
        return ()
    try:
        given = orjson.loads(tags[DEFAULTS])
    except orjson.JSONDecodeError:
        given = None
    if not isinstance(given, dict):
        raise DefinitionError(
            f"The tag {DEFAULTS} of {who} is a JSON object of values by feature, got {tags[DEFAULTS]!r}; "
            'write it like {"count_1h": 0}.'
        )
    types = {feature.name: feature.dtype for feature in features}
    for name, value in given.items():
        if name not in types:
            raise DefinitionError(f"Defaults are for features of {who}, got {name!r}; it has: {', '.join(types)}.")
        if not _fits(value, types[name]):
            raise DefinitionError(
                f"The default of {name!r} of {who} is a {types[name]}, got {value!r}; correct it, or leave it out."
            )
    return tuple((name, orjson.dumps(given[name]).decode()) for name in types if name in given)


def render_defaults(defaults: Mapping[str, Any]) -> str:
    """The tag's text. Raises DefinitionError for what JSON cannot hold."""
    try:
        return orjson.dumps(dict(defaults), option=orjson.OPT_UTC_Z).decode()
    except TypeError as error:
        message = f"Defaults are plain values by feature, got {defaults!r} ({error}); correct them."
        raise DefinitionError(message) from None


def _fits(value: Any, dtype: DType) -> bool:
    if dtype in _WHOLE:
        return type(value) is int and -_WHOLE[dtype] <= value < _WHOLE[dtype]
    if dtype in (DType.FLOAT32, DType.FLOAT64):
        return type(value) in (int, float)
    if dtype is DType.BOOL:
        return type(value) is bool
    if dtype is DType.STRING:
        return type(value) is str
    return dtype is DType.TIMESTAMP and type(value) is str and _is_moment(value)


def _is_moment(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
