from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from headrace.catalog.definitions import BatchSource, Catalog, Column, DType, Entity, FeatureView
from headrace.errors import DataError, RequestError, UnknownNameError
from headrace.read.online.values import step_values
from headrace.settings import Settings
from headrace.stores.batch_files import read_batch_rows
from headrace.stores.catalogs import save_catalog
from headrace.stores.codec.rows import DIRECT
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.keys import entity_key, entity_prefix, layout_field
from headrace.stores.markers import Markers
from headrace.stores.online import OnlineStore
from headrace.stores.view_writes import Arrived, write_rows
from materialize.batch import materialize_view

DAY_US = 86_400_000_000
COLUMNS = (
    Column("plane", DType.STRING),
    Column("leg", DType.INT64),
    Column("seats", DType.INT32),
    Column("maker", DType.STRING),
    Column("seen", DType.TIMESTAMP),
)
KEYS = COLUMNS[:2]


def view_of(path: str, file_format: Any = "parquet", **more: Any) -> FeatureView:
    batch = BatchSource("planes", path, "seen", COLUMNS, file_format, **more)
    return FeatureView("profile", "batch", ("plane", "leg"), COLUMNS[2:4], "f", batch=batch)


def catalog_of(view: FeatureView) -> Catalog:
    entities = (Entity("plane", "plane", DType.STRING), Entity("leg", "leg", DType.INT64))
    return Catalog("test", 1, "event", entities, views=(view,))


def planes(*rows: tuple[Any, ...]) -> pa.Table:
    """(plane, leg, seats, maker, day) as a file has them: other integer widths, naive nanoseconds."""
    plane, leg, seats, maker, day = (list(column) for column in zip(*rows, strict=True))
    times = pa.array([None if d is None else d * DAY_US * 1000 for d in day], pa.int64()).cast(pa.timestamp("ns"))
    return pa.table({"plane": plane, "leg": pa.array(leg, pa.int32()), "seats": seats, "maker": maker, "seen": times})


PLANES = planes(
    ("N1", 1, 100, "A", 1),
    ("N1", 1, 120, "B", 3),
    ("N1", 1, 110, "C", 2),
    ("N1", 2, 7, None, 1),
    ("é:,{}", 1, None, "", 5),
    (None, 1, 1, "x", 9),
    ("N2", None, 1, "x", 9),
    ("N3", 1, 1, "x", None),
)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    made = Settings(repo=tmp_path / "repo", data_dir=tmp_path / "data")
    made.repo.mkdir()
    yield made
    detach(made.data_dir)


def shown(settings: Settings, view: FeatureView, plane: str, leg: int, day: int = 100) -> tuple[Any, Any]:
    """(seats, maker) that the store holds."""
    key = entity_key(entity_prefix("test", view.entities), [leg, plane])
    with open_store(settings) as store:
        held = OnlineStore(store).read([key], layout_field(view))
    columns = step_values(view, held, np.array([day * DAY_US])).columns
    return columns["seats"][0].as_py(), columns["maker"][0].as_py()


def prepare(settings: Settings, view: FeatureView, table: pa.Table = PLANES) -> None:
    pq.write_table(table, settings.repo / "planes.parquet")
    with open_store(settings) as store:
        save_catalog(store, settings, catalog_of(view))


def test_the_newest_row_per_key_is_served_whole(settings: Settings) -> None:
    view = view_of("planes.parquet")
    prepare(settings, view)
    assert materialize_view(settings, "profile", progress=False) == 3
    assert shown(settings, view, "N1", 1) == (120, "B")
    assert shown(settings, view, "N1", 2) == (7, None)
    assert shown(settings, view, "é:,{}", 1) == (None, "")
    assert shown(settings, view, "N2", 1) == (None, None)


def test_start_and_end_are_both_included(settings: Settings) -> None:
    view = view_of("planes.parquet")
    prepare(settings, view)
    assert materialize_view(settings, "profile", 2 * DAY_US, 2 * DAY_US, progress=False) == 1
    assert shown(settings, view, "N1", 1) == (110, "C")
    assert shown(settings, view, "N1", 2) == (None, None)


def test_a_repeat_changes_nothing_and_a_corrected_file_wins_at_equal_times(settings: Settings) -> None:
    view = view_of("planes.parquet")
    prepare(settings, view, planes(("N1", 1, 5, "old", 3), ("N1", 1, 6, "older", 2)))
    for _ in range(2):
        assert materialize_view(settings, "profile", progress=False) == 1
        assert shown(settings, view, "N1", 1) == (5, "old")
    prepare(settings, view, planes(("N1", 1, 8, "corrected", 3)))
    materialize_view(settings, "profile", progress=False)
    assert shown(settings, view, "N1", 1) == (8, "corrected")
    prepare(settings, view, planes(("N1", 1, 9, "before", 2)))
    materialize_view(settings, "profile", progress=False)
    assert shown(settings, view, "N1", 1) == (8, "corrected")


def test_a_row_written_directly_wins_at_equal_and_later_times(settings: Settings) -> None:
    view = view_of("planes.parquet")
    prepare(settings, view)
    columns = {"plane": pa.array(["N1"]), "leg": pa.array([1]), "seats": pa.array([1], pa.int32())}
    row = Arrived({**columns, "maker": pa.array(["direct"])}, *(np.array([n]) for n in (3 * DAY_US, 1, 0)), stream=1)
    with open_store(settings) as store:
        build = Markers(store, catalog_of(view).project).begin_build(view)
        write_rows(OnlineStore(store), catalog_of(view), view, row, DIRECT, build)
    materialize_view(settings, "profile", progress=False)
    assert shown(settings, view, "N1", 1) == (1, "direct")


def test_created_timestamp_decides_between_rows_of_one_time(tmp_path: Path) -> None:
    table = planes(("N1", 1, 1, "second", 1), ("N1", 1, 1, "first", 1))
    pq.write_table(table.append_column("made", pa.array([20, 10])), tmp_path / "planes.parquet")
    view = view_of("planes.parquet", created_timestamp="made")
    with pytest.raises(DataError, match="Column 'made' of batch source 'planes' must be timestamp, got int64"):
        read_batch_rows(view, COLUMNS, tmp_path)
    made = pa.array([20, 10], pa.timestamp("us"))
    pq.write_table(table.append_column("made", made), tmp_path / "planes.parquet")
    assert read_batch_rows(view, COLUMNS, tmp_path).table["maker"].to_pylist() == ["first", "second"]


@pytest.mark.parametrize("file_format", ["parquet", "csv", "delta", "folder"])
def test_every_format_reads_alike(tmp_path: Path, file_format: str) -> None:
    good = PLANES.slice(0, 5)
    path = tmp_path / "planes here"
    if file_format == "csv":
        pacsv.write_csv(good, str(path))
    elif file_format == "delta":
        write_deltalake(path, good.set_column(4, "seen", good["seen"].cast(pa.timestamp("us", "UTC"))))
    else:
        (path if file_format == "folder" else tmp_path).mkdir(exist_ok=True)
        pq.write_table(good, path / "part-0.parquet" if file_format == "folder" else path)
    view = view_of("planes here", file_format if file_format != "folder" else "parquet")
    rows = read_batch_rows(view, COLUMNS[:4], tmp_path)
    assert rows.table.schema.types == [pa.string(), pa.int64(), pa.int32(), pa.string()]
    assert rows.event_time_us.tolist() == [n * DAY_US for n in (1, 1, 2, 3, 5)]
    assert rows.table["maker"].to_pylist() == ["A", None, "C", "B", ""]


def test_fields_are_mapped_and_unusable_rows_counted(tmp_path: Path) -> None:
    columns = (Column("speed", DType.FLOAT32), Column("plane", DType.STRING), Column("seen", DType.TIMESTAMP))
    mapping = (("v", "speed"), ("when", "seen"))
    batch = BatchSource("s", "s.parquet", "seen", columns, field_mapping=mapping)
    view = FeatureView("v", "batch", ("plane",), columns[:1], "f", batch=batch)
    times = pa.array([1, 2, None, 4], pa.timestamp("s", "America/New_York"))
    speeds = [float("nan"), float("inf"), 3.0, 4.5]
    pq.write_table(pa.table({"v": speeds, "plane": list("abcd"), "when": times}), tmp_path / "s.parquet")
    rows = read_batch_rows(view, columns[:2], tmp_path)
    assert rows.refused == 2
    assert rows.table.to_pylist() == [{"speed": None, "plane": "a"}, {"speed": 4.5, "plane": "d"}]
    assert rows.event_time_us.tolist() == [1_000_000, 4_000_000]


def test_what_cannot_be_read_is_named(settings: Settings) -> None:
    with pytest.raises(DataError, match=r"no parquet file at .*gone"):
        read_batch_rows(view_of("gone.parquet"), COLUMNS, settings.repo)
    pq.write_table(PLANES.drop_columns(["maker"]), settings.repo / "short.parquet")
    with pytest.raises(DataError, match="has no column 'maker'; it has: plane, leg, seats, seen"):
        read_batch_rows(view_of("short.parquet"), COLUMNS, settings.repo)
    (settings.repo / "bad.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_batch_rows(view_of("bad.parquet"), COLUMNS, settings.repo)
    with pytest.raises(DataError, match="must be a local file"):
        read_batch_rows(view_of("s3://bucket/x"), COLUMNS, settings.repo)
    pq.write_table(PLANES.set_column(2, "seats", pa.array(["x"] * 8)), settings.repo / "planes.parquet")
    with pytest.raises(DataError, match="Column 'seats' of batch source 'planes' must be int32, got string"):
        read_batch_rows(view_of("planes.parquet"), COLUMNS, settings.repo)


def test_a_view_without_a_file_is_refused(settings: Settings) -> None:
    bare = FeatureView("bare", "plain", ("plane",), COLUMNS[2:3], "f")
    with open_store(settings) as store:
        save_catalog(store, settings, catalog_of(bare))
    with pytest.raises(RequestError, match="'bare' has none; those that have one: none"):
        materialize_view(settings, "bare", progress=False)
    with pytest.raises(UnknownNameError, match="no feature view 'nope'"):
        materialize_view(settings, "nope", progress=False)
