from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DTYPES, VALUES

from headrace.catalog.definitions import Column, FeatureView
from headrace.dtypes import arrow_type
from headrace.errors import DataError
from headrace.stores.codec.header import ROWS, TILES, Header, header_size, pack_header, unpack_header
from headrace.stores.codec.rows import ORDER, decode_order, decode_rows, encode_rows, row_layout

OFFSETS = st.integers(0, 2**63 - 1)
PLACES = st.dictionaries(
    st.tuples(st.integers(0, 1), st.integers(-1, 2**15 - 1)), st.tuples(OFFSETS, st.integers(0, 2**32 - 1)), max_size=4
)
VIEW = FeatureView(
    "rows", "plain", ("who",), tuple(Column(name, dtype) for name, dtype in DTYPES.items()), "f", source="s"
)


@given(st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1), PLACES)
def test_a_header_comes_back_whole(revision: int, newest_us: int, positions: dict) -> None:  # type: ignore[type-arg]
    header = Header(TILES, revision, newest_us, positions)
    packed = pack_header(header)
    assert unpack_header(packed + b"rest", TILES) == header
    assert header_size(packed + b"rest") == len(packed)


def test_a_value_of_another_kind_or_format_is_refused() -> None:
    packed = pack_header(Header(ROWS))
    with pytest.raises(DataError, match="kind 1"):
        unpack_header(packed, TILES)
    with pytest.raises(DataError, match="format 9"):
        unpack_header(b"\x09" + packed[1:], ROWS)


@given(st.integers(0, 8), st.data())
@settings(deadline=None)
def test_rows_come_back_whole(n: int, data: st.DataObject) -> None:
    columns = {
        name: pa.array(
            data.draw(st.lists(st.none() | of, min_size=n, max_size=n)),
            pa.int64() if name == "moment" else arrow_type(DTYPES[name]),
        ).cast(arrow_type(DTYPES[name]))
        for name, of in VALUES.items()
    }
    order = np.zeros(n, ORDER)
    order["time_us"] = data.draw(st.lists(st.integers(-(2**60), 2**60), min_size=n, max_size=n))
    order["rank"], order["index"] = 2, 5
    headers = [pack_header(Header(ROWS, k)) for k in range(n)]
    blobs: list[bytes | None] = [None, *encode_rows(row_layout(VIEW), headers, order, pa.table(columns))]
    times, decoded = decode_rows(row_layout(VIEW), blobs)
    assert times.tolist() == [0, *order["time_us"].tolist()]
    assert (decode_order(row_layout(VIEW), blobs)[1:] == order).all()
    for feature, column in zip(VIEW.features, decoded, strict=True):
        assert column.type == arrow_type(feature.dtype)
        assert column.to_pylist() == [None, *columns[feature.name].to_pylist()]
