"""The lookup's reply in Feast's columnar form, written as bytes: what repeats is encoded once.

    {"metadata": {"feature_names": [...]}, "results": [{"values": [...], "statuses": [...], "event_timestamps": [...]}]}

The features of one view that follow one another differ in their values alone, unless some of them are null.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from headrace.dtypes import DType
from headrace.moments import EARLIEST_US, LATEST_US, rfc3339
from headrace.read.lookup import LookupPlan, LookupResult
from headrace.read.online.full_metadata import full_metadata
from headrace.read.online.vector_batches import STATUSES
from headrace.read.online.vectors import NULL_VALUE, PRESENT, Line, ManyRows, Vector
from headrace.read.plans import Output
from serving.replies import Timestamps, plain_values, write_moment

__all__ = ["ReplyWriter"]

Ints = NDArray[np.int64]

_OPEN = b'{"values":['
_NEXT = b"," + _OPEN
_ARRAYS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z
_NAMES = [name.encode() for name in STATUSES]
_LAST_US = LATEST_US - 366 * 86_400_000_000
"""orjson writes no time in the last hours of the year 9999."""
_MOST_HEADS = 100


@dataclass(frozen=True, slots=True)
class _Run:
    """Outputs of one step that follow one another: the step's number (None for an on-demand view), the numbers of its
    features, their types, what picks them from a row, and how those are written whose text may hold a comma."""

    step: str
    number: int | None
    places: tuple[int, ...]
    dtypes: tuple[DType, ...]
    pick: Callable[[Sequence[Any]], Sequence[Any]]
    texts: tuple[tuple[int, Callable[[Any], Any]], ...]


class ReplyWriter:
    """Writes the replies of one plan; `times` says how features that are timestamps are written."""

    def __init__(self, plan: LookupPlan, times: Timestamps = "seconds") -> None:
        self._plan, self._times = plan, times
        write = write_moment(times)
        numbers = {step.name: number for number, step in enumerate(plan.steps)}
        runs = groupby(plan.outputs, lambda output: output.step)
        self._runs = [_run(step, numbers.get(step), list(outputs), write) for step, outputs in runs]
        self._heads: dict[tuple[str, ...], bytes] = {}

    def write(self, result: LookupResult, full: bool = False) -> bytes:
        """The reply as JSON; `full` adds what `?metadata=full` asks for."""
        parts = [self._full_head(result) if full else self._head(result)]
        n = result.request.rows
        for name in result.request.names:
            parts += (_key_result(result.request.values(name), n), b",")
        for run in self._runs:
            if run.number is None or not result.lines:
                rows = result.rows[run.step]
                assert isinstance(rows, ManyRows)
                _add_many(parts, run, rows, self._times)
            elif n == 1:
                parts += (_line(run, result.lines[0][run.number]), b",")
            else:
                parts += (_few(run, [line[run.number] for line in result.lines]), b",")
        parts[-1] = b"]}"
        return b"".join(parts)

    def _head(self, result: LookupResult) -> bytes:
        names = result.request.names
        head = self._heads.get(names)
        if head is None:
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            head = self._heads[names] = _head_of({"feature_names": result.names})
        return head

    def _full_head(self, result: LookupResult) -> bytes:
        return _head_of({"feature_names": result.names, **full_metadata(result)})


def _head_of(metadata: dict[str, Any]) -> bytes:
    return b'{"metadata":' + orjson.dumps(metadata) + b',"results":['


def _run(step: str, number: int | None, outputs: Sequence[Output], write: Callable[[int], Any]) -> _Run:
    places = tuple(output.place for output in outputs)
    dtypes = tuple(output.feature.dtype for output in outputs)
    texts: list[tuple[int, Callable[[Any], Any]]] = []
    for i, dtype in enumerate(dtypes):
        if dtype is DType.TIMESTAMP:
            texts.append((i, write))
        elif dtype is DType.TIMESTAMP_LIST:
            texts.append((i, _each(write)))
        elif dtype is DType.STRING or dtype.is_list:
            texts.append((i, _same))
    pick = itemgetter(*places) if len(places) > 1 else itemgetter(slice(places[0], places[0] + 1))
    return _Run(step, number, places, dtypes, pick, tuple(texts))


def _each(write: Callable[[int], Any]) -> Callable[[Any], Any]:
    return lambda items: [write(us) for us in items]


def _same(value: Any) -> Any:
    return value


def _key_result(values: Sequence[Any], n: int) -> bytes:
    return _OPEN + orjson.dumps(values)[1:-1] + _key_tail(n)


@lru_cache(maxsize=4_096)
def _key_tail(n: int) -> bytes:
    return _tail(_repeated(_NAMES[PRESENT], n), _repeated(_moment(0), n))


def _tail(statuses: bytes, moments: bytes) -> bytes:
    """What follows the values of one result."""
    return b'],"statuses":[%b],"event_timestamps":[%b]}' % (statuses, moments)


@lru_cache(maxsize=4_096)
def _repeated(text: bytes, n: int) -> bytes:
    return b",".join([b'"%b"' % text] * n)


def _quoted(texts: Sequence[bytes]) -> bytes:
    return b'"' + b'","'.join(texts) + b'"'


@lru_cache(maxsize=65_536)
def _moment(us: int) -> bytes:
    return rfc3339(us).encode()


@lru_cache(maxsize=65_536)
def _line_tail(status: int, time_us: int) -> bytes:
    """`_tail` for one row."""
    return _tail(b'"%b"' % _NAMES[status], b'"%b"' % _moment(time_us))


def _line(run: _Run, line: Line) -> bytes:
    """The results of one row."""
    status, time_us, values, whole = line
    picked = run.pick(values)
    cells, tail = _cells(run, picked), _line_tail(status, time_us)
    if whole or status != PRESENT:
        return _OPEN + (tail + _NEXT).join(cells) + tail
    null_tail = _line_tail(NULL_VALUE, time_us)
    pairs = zip(cells, picked, strict=True)
    return _OPEN + _NEXT.join([cell + (null_tail if value is None else tail) for cell, value in pairs])


def _few(run: _Run, lines: Sequence[Line]) -> bytes:
    """The results of some rows."""
    picked = [run.pick(values) for _, _, values, _ in lines]
    cells = zip(*[_cells(run, values) for values in picked], strict=True)
    statuses = [status for status, _, _, _ in lines]
    moments = _quoted([_moment(time_us) for _, time_us, _, _ in lines])
    tail = _tail(_quoted([_NAMES[status] for status in statuses]), moments)
    if all(whole or status != PRESENT for status, _, _, whole in lines):
        return _OPEN + (tail + _NEXT).join([b",".join(column) for column in cells]) + tail
    found = []
    for column, values in zip(cells, zip(*picked, strict=True), strict=True):
        nulls = None in values
        found.append(b",".join(column) + (_tail(_quoted(_names(values, statuses)), moments) if nulls else tail))
    return _OPEN + _NEXT.join(found)


def _names(values: Sequence[Any], statuses: Sequence[int]) -> list[bytes]:
    return [
        _NAMES[NULL_VALUE if value is None and status == PRESENT else status]
        for value, status in zip(values, statuses, strict=True)
    ]


def _cells(run: _Run, line: Sequence[Any]) -> list[bytes]:
    """The text of every value. Numbers hold no comma, so they are written at once and cut apart."""
    if not run.texts:
        return orjson.dumps(line)[1:-1].split(b",")
    plain = list(line)
    for i, _ in run.texts:
        plain[i] = None
    cells = orjson.dumps(plain)[1:-1].split(b",")
    for i, write in run.texts:
        if line[i] is not None:
            cells[i] = orjson.dumps(write(line[i]))
    return cells


def _add_many(parts: list[bytes], run: _Run, rows: ManyRows, times: Timestamps) -> None:
    """Adds the results of many rows, and a comma."""
    moments = _moments(rows.times_us)
    tail = _tail(_codes_text(rows.statuses), moments)
    present = rows.statuses == PRESENT
    for place, dtype in zip(run.places, run.dtypes, strict=True):
        missing = rows.missing(place)
        same = missing is None or not (missing & present).any()
        parts += (_OPEN, _vector_text(rows.vectors[place], dtype, times))
        parts += (tail if same else _tail(_codes_text(rows.statuses_of(place)), moments), b",")


def _codes_text(statuses: NDArray[np.uint8]) -> bytes:
    first = int(statuses[0])
    if (statuses == first).all():
        return _repeated(_NAMES[first], len(statuses))
    return _quoted([_NAMES[code] for code in statuses.tolist()])


def _vector_text(vector: Vector, dtype: DType, times: Timestamps) -> bytes:
    values, missing = vector.values, vector.missing
    if isinstance(values, pa.Array):
        return orjson.dumps(plain_values(values, times))[1:-1]
    if isinstance(values, list):
        plain = values if missing is None else _without(values, missing)
        return orjson.dumps(plain)[1:-1]
    if dtype is DType.TIMESTAMP:
        return _times_text(values, missing, times)
    if dtype is DType.BOOL:
        values = values.astype(np.bool_)
    elif dtype is DType.FLOAT32:
        values = values.astype(np.float64)
    if missing is not None:
        return orjson.dumps(_without(values.tolist(), missing))[1:-1]
    return orjson.dumps(np.ascontiguousarray(values), option=_ARRAYS)[1:-1]


def _without(values: list[Any], missing: NDArray[np.bool_]) -> list[Any]:
    """`values` with None where they are missing."""
    plain = list(values)
    for row in np.flatnonzero(missing).tolist():
        plain[row] = None
    return plain


def _times_text(values: Ints, missing: NDArray[np.bool_] | None, times: Timestamps) -> bytes:
    if missing is None and times == "seconds":
        return orjson.dumps(values // 1_000_000, option=_ARRAYS)[1:-1]
    if missing is None:
        return _moments(values)
    write = write_moment(times)
    plain = [write(us) for us in values.tolist()]
    return orjson.dumps(_without(plain, missing))[1:-1]


def _moments(times_us: Ints) -> bytes:
    """RFC 3339 text of every moment, quoted."""
    least, most = int(times_us.min()), int(times_us.max())
    if least == most:
        return _repeated(_moment(least), len(times_us))
    if least < EARLIEST_US or most > _LAST_US:
        return _quoted([_moment(us) for us in times_us.tolist()])
    return orjson.dumps(np.ascontiguousarray(times_us).view("<M8[us]"), option=_ARRAYS)[1:-1]
