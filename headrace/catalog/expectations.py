"""What is expected of events, from the words of a definition to what readers check.

A rule is written like a call, with an action behind a colon if it is not `quarantine`: `not_null`, `between(0, 1e6)`,
`is_in(["NL", "BE"])`, `matches("[A-Z]{3}"): drop`, `max_lateness("10m"): warn`.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace.catalog.definitions import Column, DType, Expectation
from headrace.errors import DefinitionError
from headrace.windows.window import parse_duration_us

__all__ = ["RULES", "expectations_of_tag", "full_match", "parse_expectations", "render_expectations"]

ACTIONS = ("quarantine", "drop", "warn")

_WRITTEN = re.compile(r"\s*(?P<rule>\w+)\s*(?:\((?P<arguments>.*)\))?\s*(?::\s*(?P<action>\w+)\s*)?", re.DOTALL)
_VALUES: dict[DType, tuple[type, ...]] = {
    DType.INT32: (int,),
    DType.INT64: (int,),
    DType.FLOAT32: (int, float),
    DType.FLOAT64: (int, float),
    DType.BOOL: (bool,),
    DType.STRING: (str,),
}


def parse_expectations(
    stated: Mapping[str, Sequence[str]], columns: Iterable[Column], timestamp: str, who: str
) -> tuple[Expectation, ...]:
    """The expectations by column, in the order in which they are checked: as written, lateness last.

    Raises DefinitionError for an unknown column, rule or action, and for arguments that do not fit the column.
    """
    known = {column.name: column for column in columns}
    found = []
    for name, rules in stated.items():
        if name not in known:
            raise DefinitionError(f"expect of {who} names column {name!r}, which has: {', '.join(known)}; correct it.")
        if isinstance(rules, str) or not isinstance(rules, Sequence):
            raise DefinitionError(
                f"expect of {who} holds a list per column, {name!r} has {rules!r}; write [{rules!r}]."
            )
        found += [_parse(rule, known[name], timestamp, f"Column {name!r} of {who}") for rule in rules]
    return tuple(sorted(found, key=lambda item: item.rule == "max_lateness"))


def expectations_of_tag(
    tags: Mapping[str, str], columns: Iterable[Column], timestamp: str, who: str
) -> tuple[Expectation, ...]:
    """The expectations in the tag `expect`: JSON, an object of lists by column."""
    text = tags.get("expect")
    if text is None:
        return ()
    try:
        stated = json.loads(text)
    except ValueError:
        stated = None
    if not isinstance(stated, dict):
        raise DefinitionError(
            f"The tag expect of {who} is a JSON object of lists by column, got {text!r}; "
            'write it like {"amount": ["not_null", "between(0, 1e6)"]}.'
        )
    return parse_expectations(stated, columns, timestamp, who)


def render_expectations(stated: Mapping[str, Sequence[str]]) -> str:
    """The tag `expect` for what `parse_expectations` takes."""
    return json.dumps({column: list(rules) for column, rules in stated.items()})


def full_match(pattern: str) -> str:
    """The expression that finds exactly the texts that `pattern` matches from end to end."""
    return rf"\A(?:{pattern})\z"


def _parse(text: Any, column: Column, timestamp: str, where: str) -> Expectation:
    written = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
    if written is None:
        raise DefinitionError(f"{where} expects {text!r}, which is no rule; write it like 'between(0, 1e6): drop'.")
    rule, action = written["rule"], written["action"] or "quarantine"
    if rule not in RULES:
        raise DefinitionError(f"{where} expects {rule!r}, which is no rule; use one of {', '.join(RULES)}.")
    if action not in ACTIONS:
        raise DefinitionError(f"{where} expects {text!r}, {action!r} is no action; use one of {', '.join(ACTIONS)}.")
    shown = rule if written["arguments"] is None else f"{rule}({written['arguments'].strip()})"
    where = f"{where} expects {shown!r}"
    arguments = RULES[rule](_arguments(written["arguments"], where), column, where)
    if rule == "max_lateness" and column.name != timestamp:
        raise DefinitionError(f"{where}, which is a rule of the event time; write it for column {timestamp!r}.")
    return Expectation(column.name, rule, arguments, shown, action)  # type: ignore[arg-type]


def _arguments(text: str | None, where: str) -> tuple[Any, ...]:
    if text is None or not text.strip():
        return ()
    try:
        values: tuple[Any, ...] = ast.literal_eval(f"({text},)")
    except (ValueError, SyntaxError):
        raise DefinitionError(f"{where}, its arguments are literals; write numbers, quoted text or a list.") from None
    return values


def _refuse_kind(column: Column, fits: bool, wanted: str, where: str) -> None:
    if not fits:
        raise DefinitionError(f"{where}, which needs a {wanted}, the column is {column.dtype}; take the rule out.")


def _nothing(given: tuple[Any, ...], column: Column, where: str) -> tuple[Any, ...]:
    if given:
        raise DefinitionError(f"{where}, which takes no arguments; leave them out.")
    return ()


def _bounds(given: tuple[Any, ...], column: Column, where: str) -> tuple[Any, ...]:
    _refuse_kind(column, column.dtype.is_numeric, "number", where)
    numbers = all(type(value) in (int, float) and not math.isnan(value) for value in given)
    if len(given) != 2 or not numbers or given[0] > given[1]:
        raise DefinitionError(f"{where}, which takes two numbers, the smaller one first; write it like between(0, 1).")
    if column.dtype.is_float:
        return tuple(map(float, given))
    return _whole(given[0], math.ceil), _whole(given[1], math.floor)


def _whole(bound: float, inwards: Callable[[float], int]) -> int:
    """The bound of an integer column as an int64: Arrow compares one with a float only where that holds it exactly."""
    return -(2**63) if bound < -(2**63) else 2**63 - 1 if bound >= 2**63 else inwards(bound)


def _members(given: tuple[Any, ...], column: Column, where: str) -> tuple[Any, ...]:
    fitting = _VALUES.get(column.dtype)
    _refuse_kind(column, fitting is not None, "number, text or truth value", where)
    values = tuple(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else given
    if not values or not all(type(value) in (fitting or ()) for value in values):
        raise DefinitionError(f"{where}, which takes a list of values of type {column.dtype}; correct it.")
    bound = 2**31 if column.dtype is DType.INT32 else 2**63
    if column.dtype.is_integer and not all(-bound <= value < bound for value in values):
        raise DefinitionError(f"{where}, with a value that no {column.dtype} can have; take it out.")
    return tuple(map(float, values)) if column.dtype.is_float else values


def _pattern(given: tuple[Any, ...], column: Column, where: str) -> tuple[Any, ...]:
    _refuse_kind(column, column.dtype is DType.STRING, "text", where)
    if len(given) != 1 or not isinstance(given[0], str):
        raise DefinitionError(f'{where}, which takes one regular expression; write it like matches("[a-z]+").')
    try:
        pc.match_substring_regex(pa.array([""]), full_match(given[0]))
    except pa.ArrowInvalid as error:
        raise DefinitionError(f"{where}, which is no regular expression of RE2: {error}; correct it.") from None
    return given


def _length(given: tuple[Any, ...], column: Column, where: str) -> tuple[Any, ...]:
    _refuse_kind(column, column.dtype is DType.STRING, "text", where)
    if len(given) != 1 or type(given[0]) is not int or given[0] < 0:
        raise DefinitionError(f"{where}, which takes one whole number of characters; correct it.")
    return given


def _lateness(given: tuple[Any, ...], column: Column, where: str) -> tuple[Any, ...]:
    if len(given) != 1 or not isinstance(given[0], str):
        raise DefinitionError(f'{where}, which takes a duration; write it like max_lateness("10m").')
    try:
        return (parse_duration_us(given[0]),)
    except DefinitionError as error:
        raise DefinitionError(f"{where}: {error}") from None


RULES: Mapping[str, Callable[[tuple[Any, ...], Column, str], tuple[Any, ...]]] = {
    "not_null": _nothing,
    "between": _bounds,
    "is_in": _members,
    "matches": _pattern,
    "min_length": _length,
    "max_length": _length,
    "max_lateness": _lateness,
}
"""By rule: what its arguments come to for a column. All but not_null let null pass."""
