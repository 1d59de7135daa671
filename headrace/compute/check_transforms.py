"""Tries the transforms of views before they serve: each in a clean process, on sample events.

What becomes of an event must not depend on the events beside it: sample events go through as a whole, again, in
halves, one by one and in another order. Some of them hold the texts and numbers of the function's own code, so that
what it does behind a filter is tried too. A function may fail on events, which then are dead letters; it is refused if
it cannot work at all: it lacks a name, gives no frame, or fails on every event for a reason that is not in its values.
"""

from __future__ import annotations

import ast
import json
import math
import os
import random
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from headrace.catalog.definitions import Catalog, Column, FeatureView, Source, catalog_from_json, catalog_to_json
from headrace.compute.check import SAMPLES, TOLERANCE, N, ask_clean, sample_rows, with_holes
from headrace.compute.frames import Columns, take
from headrace.compute.transforms import BadShapeError, BadTypeError, apply_transform
from headrace.dtypes import DType
from headrace.errors import DataError, DefinitionError

__all__ = ["check_transforms", "try_transform"]

BLOCKS = 3
LITERAL_BLOCKS = 8
MOST_INT, MOST_FLOAT = 10_000, 1e15
"""Larger literals are no sample values: one may be how often a row is repeated."""
NEVER_WORKS = (NameError, ImportError, BadShapeError)
NOT_IN_THE_VALUES = (AttributeError, TypeError, BadTypeError, SyntaxError, OSError)
NOT_IN_THE_VALUES_OF_POLARS = ("ColumnNotFoundError", "SchemaError", "SchemaFieldNotFoundError", "DuplicateError")
LONGEST_SHOWN = 200

Outcome = list[dict[str, Any]] | Exception
"""What becomes of one event: rows, or why none."""


def check_transforms(catalog: Catalog, places: Mapping[str, str] | None = None) -> list[str]:
    """Try every view's transform in its own clean process; `places` says where its function is written, by view.

    Returns notes for the user. Raises DefinitionError for one that cannot work, or whose rows depend on others.
    """
    views = [view for view in catalog.views if view.transform is not None]
    with ThreadPoolExecutor(max_workers=max(1, min(4, (os.cpu_count() or 1)))) as pool:
        answers = list(pool.map(lambda view: _ask(catalog, view), views))
    for view, answer in zip(views, answers, strict=True):
        if answer.get("refused"):
            place = (places or {}).get(view.name)
            raise DefinitionError(f"{place}: {answer['refused']}" if place else answer["refused"])
    return [note for answer in answers for note in answer.get("notes", [])]


def _ask(catalog: Catalog, view: FeatureView) -> dict[str, Any]:
    """What the clean process says about one view."""
    alone = replace(catalog, views=(view,), on_demand_views=(), services=())
    question = {"catalog": catalog_to_json(alone).decode()}
    return ask_clean(__name__, question, f"The transform of view {view.name!r}")


def main() -> None:
    """The clean process: a question on stdin, the answer as the last line on stdout."""
    catalog = catalog_from_json(orjson.loads(sys.stdin.buffer.read())["catalog"].encode())
    (view,) = catalog.views
    try:
        answer: dict[str, Any] = {"notes": try_transform(view, catalog.source(view.source or ""))}
    except DataError as error:
        answer = {"refused": str(error)}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


def try_transform(view: FeatureView, source: Source) -> list[str]:
    """Run the view's transform in this process on sample events; returns notes.

    Raises DataError if it cannot work, or if what becomes of an event depends on the events beside it.
    """
    assert view.transform is not None
    rows = _sample_events(source, _literals(view.transform.code, {column.name for column in source.columns}))
    whole = _outcomes(view, rows)
    _refuse_useless(view, whole)
    _refuse_moved(view, source, rows, whole)
    holed = {name: with_holes(values, shift) for shift, (name, values) in enumerate(rows.items())}
    holed[source.timestamp] = rows[source.timestamp]
    _check_row_wise(view, rows)
    _check_row_wise(view, holed)
    complete = _failure_note(view, whole, "sample events")
    return complete or _failure_note(view, _outcomes(view, holed), "events with null columns")


def _sample_events(source: Source, literals: Sequence[str | float]) -> Columns:
    """Events without nulls in blocks: each block has the values of the first in another combination, so that keys
    come again with other values beside them. Further blocks, if there are literals, have them in half of the places."""
    first = sample_rows(source.columns)
    rng, numbers = random.Random(0), np.arange(N)
    fitting = {column.name: _fitting(column, literals) for column in source.columns}
    blocks = BLOCKS + (LITERAL_BLOCKS if any(fitting.values()) else 0)
    events = {}
    for place, (name, values) in enumerate(first.items()):
        order = np.concatenate([(numbers + block * (place + 1)) % N for block in range(blocks)])
        plain = values.take(pa.array(order)).to_pylist()
        for row in range(N * BLOCKS, len(plain) if fitting[name] else 0):
            plain[row] = rng.choice([plain[row], rng.choice(fitting[name])])
        events[name] = pa.array(plain, values.type)
    return events


def _literals(code: str, names: set[str]) -> list[str | float]:
    """The texts and numbers that stand in a function's code, without the columns' names."""
    found = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    plain = (v for v in found if isinstance(v, str | int | float) and not isinstance(v, bool))
    return list(dict.fromkeys(v for v in plain if v not in names))


def _fitting(column: Column, literals: Sequence[str | float]) -> list[Any]:
    """The literals that a column can hold, of numbers their neighbours too."""
    if column.dtype is DType.STRING:
        return [value for value in literals if isinstance(value, str)]
    numbers = [value for value in literals if not isinstance(value, str)]
    if column.dtype.is_float:
        return [float(value + step) for value in numbers if abs(value) < MOST_FLOAT for step in (-1, 0, 1)]
    if column.dtype in (DType.INT32, DType.INT64):
        return [int(value) + step for value in numbers if abs(value) < MOST_INT for step in (-1, 0, 1)]
    return []


def _outcomes(view: FeatureView, columns: Columns) -> list[Outcome]:
    """What becomes of every event."""
    assert view.transform is not None
    done = apply_transform(view.transform, columns, f"the transform of view {view.name!r}")
    outcomes: list[Outcome] = [[] for _ in range(len(next(iter(columns.values()))))]
    for event, row in zip(done.row.tolist(), pa.table(done.columns).to_pylist(), strict=True):
        held = outcomes[event]
        assert isinstance(held, list)
        held.append(row)
    for event, error in done.failed.items():
        outcomes[event] = error
    return outcomes


def _refuse_useless(view: FeatureView, outcomes: list[Outcome]) -> None:
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    fatal: list[Exception] = [error for error in errors if isinstance(error, NEVER_WORKS)]
    if not fatal and len(errors) == len(outcomes) and _is_structural(errors[0]):
        fatal = errors
    if fatal:
        raise DataError(f"The transform of view {view.name!r} cannot work: {type(fatal[0]).__name__}: {fatal[0]}.")


def _is_structural(error: Exception) -> bool:
    """Whether an error would come with any values; a missing key may be a column or one of the sample values."""
    if isinstance(error, KeyError):
        values = [value for samples in SAMPLES.values() for value in samples]
        return not error.args or error.args[0] not in values
    return isinstance(error, NOT_IN_THE_VALUES) or type(error).__name__ in NOT_IN_THE_VALUES_OF_POLARS


def _refuse_moved(view: FeatureView, source: Source, rows: Columns, outcomes: list[Outcome]) -> None:
    assert view.transform is not None
    if view.transform.moves_time:
        return
    for given, outcome in zip(rows[source.timestamp].to_pylist(), outcomes, strict=True):
        if isinstance(outcome, list) and any(row[source.timestamp] != given for row in outcome):
            raise DataError(
                f"The transform of view {view.name!r} gives events another {source.timestamp!r} and does not name it "
                "in its code; keep it as it is, or name it where it is changed."
            )


def _check_row_wise(view: FeatureView, rows: Columns) -> None:
    """Whole, again, in halves, one by one and shuffled give the same of each event."""
    n = len(next(iter(rows.values())))
    whole, order = _outcomes(view, rows), np.random.default_rng(0).permutation(n)
    ways: dict[str, list[NDArray[np.int64]]] = {
        "run again": [np.arange(n)],
        "in halves": [np.arange(n // 2), np.arange(n // 2, n)],
        "event by event": [np.array([row]) for row in range(n)],
        "in another order": [order],
    }
    for how, parts in ways.items():
        other: list[Outcome] = [[] for _ in range(n)]
        for part in parts:
            for row, outcome in zip(part.tolist(), _outcomes(view, take(rows, part)), strict=True):
                other[row] = outcome
        differ = [row for row in range(n) if not _same(whole[row], other[row])]
        if differ:
            row = differ[0]
            event = {name: values[row].as_py() for name, values in rows.items()}
            raise DataError(
                f"A transform is row-wise and gives the same each time, that of view {view.name!r} gives other rows "
                f"{how}, for {len(differ)} of {n} sample events: of {_shown(event)} it makes {_shown(whole[row])} and "
                f"{_shown(other[row])}; compute every row from its own event alone."
            )


def _same(one: Outcome, other: Outcome) -> bool:
    if isinstance(one, Exception) or isinstance(other, Exception):
        return isinstance(one, Exception) and isinstance(other, Exception)
    return len(one) == len(other) and all(
        _same_value(row[name], twin[name]) for row, twin in zip(one, other, strict=True) for name in row
    )


def _same_value(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE)
    return bool(one == other)


def _shown(value: Any) -> str:
    if isinstance(value, Exception):
        return f"{type(value).__name__}: {value}"
    text = json.dumps(value, default=str)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _failure_note(view: FeatureView, outcomes: list[Outcome], which: str) -> list[str]:
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if not errors:
        return []
    return [
        f"The transform of view {view.name!r} fails on {len(errors)} of {len(outcomes)} {which} "
        f"({_shown(errors[0])}); events on which it fails are dead letters of the view."
    ]
