"""Types in DDL and in files."""

from __future__ import annotations

import pyarrow as pa
import pytest

from headrace.catalog.definitions import Column, DType
from headrace.catalog.schema import (
    RESERVED_COLUMNS,
    can_cast,
    dtype_of_arrow,
    parse_ddl,
    refuse_reserved,
    refuse_same_but_case,
    render_ddl,
)
from headrace.errors import DefinitionError


def test_ddl_is_read_in_order_and_in_any_case() -> None:
    found = parse_ddl("id STRING, n Int, big bigint,  f float, amount Double, ok boolean, ts timestamp", "x")
    assert [(column.name, str(column.dtype)) for column in found] == [
        ("id", "string"),
        ("n", "int32"),
        ("big", "int64"),
        ("f", "float32"),
        ("amount", "float64"),
        ("ok", "bool"),
        ("ts", "timestamp"),
    ]


@pytest.mark.parametrize("name", ["amount", "two words", "a,b", "a:b", "größe"])
def test_rendered_ddl_reads_back(name: str) -> None:
    columns = (Column(name, DType.FLOAT64), Column("ts", DType.TIMESTAMP))
    assert parse_ddl(render_ddl(columns), "x") == columns


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("id", "name type"),
        ("id string amount double", "name type"),
        ("id array", "'array'"),
        ("id string, id int", "twice"),
    ],
)
def test_ddl_that_cannot_be_read_is_refused(text: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        parse_ddl(text, "source 'x'")


@pytest.mark.parametrize(
    ("arrow", "dtype"),
    [
        (pa.int8(), DType.INT32),
        (pa.uint16(), DType.INT32),
        (pa.uint32(), DType.INT64),
        (pa.uint64(), None),
        (pa.float16(), DType.FLOAT32),
        (pa.large_string(), DType.STRING),
        (pa.dictionary(pa.int8(), pa.string()), DType.STRING),
        (pa.timestamp("ns", "Europe/Zurich"), DType.TIMESTAMP),
        (pa.list_(pa.int64()), None),
        (pa.date32(), None),
    ],
)
def test_a_file_column_has_the_type_that_holds_it(arrow: pa.DataType, dtype: DType | None) -> None:
    assert dtype_of_arrow(arrow) is dtype


def test_a_file_may_be_read_as_a_wider_or_narrower_number_but_not_as_another_kind() -> None:
    assert can_cast(DType.INT64, DType.INT32)
    assert can_cast(DType.INT32, DType.FLOAT64)
    assert can_cast(DType.FLOAT64, DType.FLOAT32)
    assert not can_cast(DType.FLOAT64, DType.INT64)
    assert not can_cast(DType.STRING, DType.INT64)
    assert not can_cast(DType.BOOL, DType.INT64)


@pytest.mark.parametrize("name", [*RESERVED_COLUMNS, "Position", "EVENT_TIME", "Is_Repeat"])
def test_of_the_archive_s_own_names_only_event_time_is_free_and_only_to_the_timestamp(name: str) -> None:
    columns = (Column("id", DType.STRING), Column(name, DType.TIMESTAMP))
    with pytest.raises(DefinitionError, match=f"Column '{name}' of source 'x'.*rename it"):
        refuse_reserved(columns, "id", "source 'x'")
    if name == "event_time":
        refuse_reserved(columns, name, "source 'x'")
    else:
        with pytest.raises(DefinitionError, match=f"Column '{name}'"):
            refuse_reserved(columns, name, "source 'x'")


def test_names_that_differ_only_in_case_are_refused() -> None:
    refuse_same_but_case(["amount", "Amounts", "größe", "GROSSE"], "source 'x'")
    with pytest.raises(DefinitionError, match="source 'x' must differ in more than case, 'Größe' and 'GRÖßE' do not"):
        refuse_same_but_case(["Größe", "amount", "GRÖßE"], "source 'x'")
