"""A lookup's answer as one Arrow record batch: the keys and the features, and beside them what is known of each view.

Columns, in order: the join keys and the features under the names of the request, in their declared types; per view
`VIEW:status` (uint8, a number of STATUSES) and `VIEW:event_timestamp` (the newest event's time, null for none); `:t`,
the moment of each row. A feature's view stands in its field's metadata as `view`. A feature's status is its view's,
but NULL_VALUE where the view's is PRESENT and the feature is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from headrace.dtypes import DType, arrow_type
from headrace.read.lookup import LookupPlan, LookupResult
from headrace.read.online.record_batches import Packed, RecordBatchTemplate, pack_array, pack_moments, pack_numbers
from headrace.read.online.vectors import ManyRows, Vector

__all__ = [
    "CATALOG_VERSION",
    "EVENT_TIMESTAMP",
    "METADATA",
    "STATUS",
    "STATUSES",
    "T",
    "VIEW",
    "vector_batch",
    "vector_bytes",
]

STATUSES = ("PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE")
STATUS, EVENT_TIMESTAMP, T = ":status", ":event_timestamp", ":t"
VIEW, CATALOG_VERSION, METADATA = b"view", b"catalog_version", b"metadata"

_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_NUMBERS: dict[DType, type[np.generic]] = {
    DType.INT32: np.int32,
    DType.INT64: np.int64,
    DType.FLOAT32: np.float32,
    DType.FLOAT64: np.float64,
    DType.TIMESTAMP: np.int64,
}
_MOMENT = arrow_type(DType.TIMESTAMP)


@dataclass(frozen=True, slots=True)
class _Form:
    """What the batches of one plan have in common, but for the order of its keys."""

    schema: pa.Schema
    packed: bytes
    template: RecordBatchTemplate | None
    """None where a column holds lists."""
    views: tuple[str, ...]
    features: tuple[tuple[str, int, pa.DataType, type[np.generic] | None], ...]
    """View, number of the feature in it, type, and NumPy's type of its bytes if they are those of numbers."""


_forms: WeakKeyDictionary[LookupPlan, dict[tuple[str, ...], _Form]] = WeakKeyDictionary()


def vector_batch(result: LookupResult) -> pa.RecordBatch:
    """`result` as the batch described above."""
    form = _form_of(result)
    return pa.RecordBatch.from_arrays(_arrays(form, result), schema=form.schema)


def vector_bytes(result: LookupResult, metadata: Mapping[str, object] | None = None) -> bytes:
    """The same as an Arrow IPC stream of one batch; `metadata` becomes JSON text in the schema's metadata."""
    form = _form_of(result)
    packed = form.packed
    if metadata is not None:
        described = {**form.schema.metadata, METADATA: orjson.dumps(metadata)}
        packed = form.schema.with_metadata(described).serialize().to_pybytes()
    if form.template is None:
        return b"".join((packed, vector_batch(result).serialize(), _END_OF_STREAM))
    return b"".join((packed, *form.template.write(result.request.rows, _columns(form, result)), _END_OF_STREAM))


def _form_of(result: LookupResult) -> _Form:
    forms = _forms.setdefault(result.plan, {})
    form = forms.get(result.request.names)
    if form is None:
        form = forms[result.request.names] = _make_form(result)
    return form


def _make_form(result: LookupResult) -> _Form:
    plan = result.plan
    types = {column.name: arrow_type(column.dtype) for column in plan.join_keys}
    fields = [pa.field(name, types[name]) for name in result.request.names]
    for output in plan.outputs:
        fields.append(pa.field(output.name, arrow_type(output.feature.dtype), metadata={VIEW: output.step.encode()}))
    views = tuple(dict.fromkeys(output.step for output in plan.outputs))
    features = tuple(
        (output.step, output.place, arrow_type(output.feature.dtype), _NUMBERS.get(output.feature.dtype))
        for output in plan.outputs
    )
    for view in views:
        fields += [pa.field(view + STATUS, pa.uint8(), False), pa.field(view + EVENT_TIMESTAMP, _MOMENT)]
    described = {CATALOG_VERSION: str(plan.catalog.version).encode(), b"statuses": ",".join(STATUSES).encode()}
    schema = pa.schema([*fields, pa.field(T, _MOMENT, False)], described)
    template = None if any(pa.types.is_nested(field.type) for field in schema) else RecordBatchTemplate(schema)
    return _Form(schema, schema.serialize().to_pybytes(), template, views, features)


def _arrays(form: _Form, result: LookupResult) -> list[pa.Array]:
    arrays = [result.request.columns[name] for name in result.request.names]
    for view, place, kind, _ in form.features:
        rows = result.rows[view]
        if isinstance(rows, ManyRows):
            arrays.append(_vector(rows.vectors[place], kind))
        else:
            arrays.append(pa.array([row[place] for row in rows.rows], kind))
    for view in form.views:
        rows = result.rows[view]
        arrays += [pa.array(rows.statuses, pa.uint8()), _moments(np.asarray(rows.times_us, np.int64))]
    arrays.append(pa.array(result.t_us).view(_MOMENT))
    return arrays


def _columns(form: _Form, result: LookupResult) -> list[Packed]:
    """The same columns, packed."""
    columns = [_packed(result.request.columns[name]) for name in result.request.names]
    rows_of = result.rows
    for view, place, kind, number in form.features:
        rows = rows_of[view]
        if isinstance(rows, ManyRows):
            vector = rows.vectors[place]
            is_plain = number is not None and isinstance(vector.values, np.ndarray)
            columns.append(pack_numbers(vector.values, vector.missing) if is_plain else _packed(_vector(vector, kind)))
            continue
        values = [row[place] for row in rows.rows]
        is_plain = number is not None and None not in values
        columns.append(pack_numbers(np.array(values, number)) if is_plain else _packed(pa.array(values, kind)))
    for view in form.views:
        rows = rows_of[view]
        columns.append(pack_numbers(np.asarray(rows.statuses, np.uint8)))
        columns.append(pack_moments(np.asarray(rows.times_us, np.int64)))
    columns.append(pack_numbers(result.t_us))
    return columns


def _packed(array: pa.Array) -> Packed:
    packed = pack_array(array)
    assert packed is not None
    return packed


def _vector(vector: Vector, kind: pa.DataType) -> pa.Array:
    """One feature of many rows; numbers keep their bytes."""
    values, missing = vector.values, vector.missing
    if isinstance(values, pa.Array):
        return values if values.type == kind else values.cast(kind)
    if isinstance(values, list):
        return pa.array(values, kind, mask=missing)
    if pa.types.is_boolean(kind):
        return pa.array(values.astype(np.bool_), mask=missing)
    valid = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(np.ascontiguousarray(values))])


def _moments(times_us: NDArray[np.int64]) -> pa.Array:
    """Event times, null where there is none."""
    none = times_us == 0
    return pa.array(times_us, mask=none if none.any() else None).view(_MOMENT)
