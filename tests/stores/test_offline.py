from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import headrace.stores.offline as offline_module
from headrace.catalog.definitions import Column, DType, Source
from headrace.errors import DataError, SettingsError, UnavailableError
from headrace.settings import Settings
from headrace.stores.connection import open_store
from headrace.stores.embedded import detach
from headrace.stores.offline import (
    DEAD_LETTERS,
    INDEX,
    OFFSET,
    PARTITION,
    OfflineStore,
    archiver_ownership,
    event_rows,
)
from headrace.stores.orders import acknowledge, order_compaction, waiting_orders

DAY_US = 86_400_000_000
TRIPS = Source(
    "trips",
    (Column("id", DType.STRING), Column("km", DType.FLOAT32), Column("ts", DType.TIMESTAMP)),
    timestamp="ts",
    partitions=2,
)


def rows(offset: int, times_us: list[int], partition: int = 0, repeat: bool = False, **more: Any) -> pa.Table:
    """One entry's events: ids `offset.index`."""
    n, times = len(times_us), np.array(times_us, np.int64)
    own = {
        "id": pa.array([f"{offset}.{i}" for i in range(n)], pa.string()),
        "km": pa.array([float(i) for i in range(n)], pa.float32()),
        "ts": pa.array(times).cast(pa.timestamp("us", "UTC")),
        **more,
    }
    return event_rows(
        pa.table(own),
        event_time_us=times,
        arrival_us=times + 5,
        partition=partition,
        offset=np.full(n, offset, np.int64),
        index=np.arange(n),
        is_repeat=np.full(n, repeat),
    )


def ids(store: OfflineStore, source: Source = TRIPS, **limits: Any) -> list[str]:
    found: list[str] = store.read_events(source, ["id"], **limits)["id"].to_pylist()
    return found


@pytest.fixture
def store(tmp_path: Path) -> OfflineStore:
    return OfflineStore(tmp_path / "a folder, with #ü&?")


def test_events_come_back_in_position_order_with_their_own_types(store: OfflineStore) -> None:
    store.append_events(TRIPS, rows(1 << 60, [3 * DAY_US, 1 * DAY_US]), partition=0, last_offset=1 << 60)
    store.append_events(TRIPS, rows((1 << 60) + 1, [2 * DAY_US, -1]), partition=0, last_offset=(1 << 60) + 1)
    found = store.read_events(TRIPS, ["km", "event_time", "arrival_time", "ts"])
    assert found["event_time"].cast(pa.int64()).to_pylist() == [3 * DAY_US, DAY_US, 2 * DAY_US, -1]
    assert found["arrival_time"].cast(pa.int64()).to_pylist() == [3 * DAY_US + 5, DAY_US + 5, 2 * DAY_US + 5, 4]
    assert found[OFFSET].to_pylist() == [1 << 60] * 2 + [(1 << 60) + 1] * 2
    assert found[INDEX].to_pylist() == [0, 1, 0, 1] and found[PARTITION].to_pylist() == [0] * 4
    assert found.schema.field("km").type == pa.float32()
    assert found.schema.field("ts").type == pa.timestamp("us", "UTC")


def test_nothing_archived_reads_as_no_rows_of_the_right_types(store: OfflineStore) -> None:
    found = store.read_events(TRIPS, ["km", "event_time"])
    assert found.num_rows == 0 and found.schema.field("km").type == pa.float32()
    assert found.column_names == ["km", "event_time", PARTITION, OFFSET, INDEX]
    assert store.archived_offset("trips", 0) == -1 and store.positions(TRIPS) == {}
    assert store.watermark_us(TRIPS, 0) is None


def test_an_append_that_comes_again_is_dropped(store: OfflineStore) -> None:
    both = pa.concat_tables([rows(10, [1, 2]), rows(11, [3])])
    assert store.append_events(TRIPS, rows(10, [1, 2]), partition=0, last_offset=10) == 2
    again = OfflineStore(store.root.parent)
    assert again.append_events(TRIPS, rows(10, [1, 2]), partition=0, last_offset=10) == 0
    assert again.append_events(TRIPS, both, partition=0, last_offset=11) == 1
    assert store.append_events(TRIPS, rows(9, [1]), partition=0, last_offset=9) == 0
    assert ids(store) == ["10.0", "10.1", "11.0"]


def test_a_writer_that_fell_behind_fails_and_then_drops_what_is_there(store: OfflineStore) -> None:
    store.append_events(TRIPS, rows(1, [1]), partition=0, last_offset=1)
    OfflineStore(store.root.parent).append_events(TRIPS, rows(2, [2]), partition=0, last_offset=2)
    with pytest.raises(Exception, match="oncurrent"):
        store.append_events(TRIPS, rows(2, [2]), partition=0, last_offset=2)
    assert store.append_events(TRIPS, rows(2, [2]), partition=0, last_offset=2) == 0
    assert ids(store) == ["1.0", "2.0"]


def test_a_failed_append_leaves_nothing_and_can_be_repeated(
    store: OfflineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    store.append_events(TRIPS, rows(1, [1]), partition=0, last_offset=1)
    with monkeypatch.context() as patch:
        patch.setattr(offline_module, "write_deltalake", full)
        with pytest.raises(OSError, match="space"):
            store.append_events(TRIPS, rows(2, [2]), partition=0, last_offset=2)
    assert store.archived_offset("trips", 0) == 1
    store.append_events(TRIPS, rows(2, [2]), partition=0, last_offset=2)
    assert ids(store) == ["1.0", "2.0"]


def test_entries_without_a_good_event_raise_the_archived_offset(store: OfflineStore) -> None:
    assert store.append_events(TRIPS, rows(5, []), partition=0, last_offset=5) == 0
    assert store.archived_offset("trips", 0) == 5
    store.append_events(TRIPS, rows(6, [1]), partition=0, last_offset=6)
    store.append_events(TRIPS, rows(7, []), partition=0, last_offset=7)
    assert store.archived_offset("trips", 0) == 7 and ids(store) == ["6.0"]


def test_partitions_have_their_own_offsets(store: OfflineStore) -> None:
    store.append_events(TRIPS, rows(8, [4], partition=1), partition=1, last_offset=8)
    store.append_events(TRIPS, rows(2, [9]), partition=0, last_offset=3)
    assert store.positions(TRIPS) == {0: 3, 1: 8}
    assert ids(store) == ["2.0", "8.0"]
    assert store.watermark_us(TRIPS, 0) == 9 and store.watermark_us(TRIPS, 1) == 4


def test_reads_stop_at_positions_times_and_repeats(store: OfflineStore) -> None:
    store.append_events(TRIPS, rows(1, [1, DAY_US]), partition=0, last_offset=1)
    store.append_events(TRIPS, rows(2, [2 * DAY_US]), partition=0, last_offset=2)
    store.append_events(TRIPS, rows(3, [3], repeat=True), partition=0, last_offset=3)
    store.append_events(TRIPS, rows(9, [7], partition=1), partition=1, last_offset=9)
    assert ids(store) == ["1.0", "1.1", "2.0", "9.0"]
    assert ids(store, repeats=True) == ["1.0", "1.1", "2.0", "3.0", "9.0"]
    assert ids(store, up_to={0: 1}) == ["1.0", "1.1"]
    assert ids(store, up_to={0: 1, 1: 100}) == ["1.0", "1.1", "9.0"]
    assert ids(store, up_to={}) == []
    assert ids(store, since_us=2, until_us=DAY_US) == ["1.1", "9.0"]
    assert ids(store, arrived_since_us=DAY_US + 5) == ["1.1", "2.0"]
    assert ids(store, since_us=-(2**62), until_us=2**62) == ["1.0", "1.1", "2.0", "9.0"]


def test_a_source_may_gain_a_column(store: OfflineStore) -> None:
    store.append_events(TRIPS, rows(1, [1]), partition=0, last_offset=1)
    wider = dataclasses.replace(TRIPS, columns=(*TRIPS.columns, Column("fare", DType.INT32)))
    store.append_events(wider, rows(2, [2], fare=pa.array([7], pa.int32())), partition=0, last_offset=2)
    assert store.read_events(wider, ["fare"])["fare"].to_pylist() == [None, 7]
    store.append_events(wider, rows(3, [], fare=pa.array([], pa.int32())), partition=0, last_offset=3)
    assert ids(store, wider) == ["1.0", "2.0"]


def test_compaction_keeps_rows_order_and_offsets(store: OfflineStore) -> None:
    assert store.compact("trips") == "nothing archived yet"
    for offset in range(1, 8):
        store.append_events(TRIPS, rows(offset, [offset, DAY_US]), partition=0, last_offset=offset)
    before = ids(store)
    assert store.compact("trips") == "14 files into 2"
    assert ids(store) == before and store.archived_offset("trips", 0) == 7
    assert store.append_events(TRIPS, rows(7, [1]), partition=0, last_offset=7) == 0
    store.append_events(TRIPS, rows(8, [1]), partition=0, last_offset=8)
    assert ids(store) == [*before, "8.0"]


def test_offsets_outlive_checkpoints_of_the_log(store: OfflineStore) -> None:
    store.append_events(TRIPS, rows(1 << 60, [1], partition=1), partition=1, last_offset=1 << 60)
    for offset in range(1, 105):
        store.append_events(TRIPS, rows(offset, [offset]), partition=0, last_offset=offset)
    assert (store.events_path("trips") / "_delta_log" / "_last_checkpoint").exists()
    assert OfflineStore(store.root.parent).positions(TRIPS) == {0: 104, 1: 1 << 60}


def test_direct_writes_and_event_time_columns_have_their_place(store: OfflineStore) -> None:
    writes = Source("writes/profile", (Column("event_time", DType.TIMESTAMP),), timestamp="event_time")
    times = np.array([5], np.int64)
    table = event_rows(
        pa.table({"event_time": pa.array(times).cast(pa.timestamp("us", "UTC"))}),
        event_time_us=times,
        arrival_us=times,
        partition=0,
        offset=np.array([1], np.int64),
        index=np.array([0], np.int64),
        is_repeat=np.array([False]),
    )
    store.append_events(writes, table, partition=0, last_offset=1)
    assert store.read_events(writes, ["event_time"])["event_time"].cast(pa.int64()).to_pylist() == [5]


def test_dead_letters_are_appended_once(store: OfflineStore) -> None:
    letter = {
        "source": ["trips"],
        "partition": [0],
        "offset": [4],
        "index": [1],
        "reason": ["no event time"],
        "payload": [b"\xff{"],
        "arrival_time": [3],
    }
    dead = pa.table({name: pa.array(value, DEAD_LETTERS.field(name).type) for name, value in letter.items()})
    assert store.append_dead_letters(TRIPS, dead, partition=0, last_offset=4) == 1
    assert store.append_dead_letters(TRIPS, dead, partition=0, last_offset=5) == 0


def test_a_data_directory_has_one_archiver(tmp_path: Path) -> None:
    with (
        archiver_ownership(tmp_path),
        pytest.raises(SettingsError, match="already archives"),
        archiver_ownership(tmp_path),
    ):
        pass
    with archiver_ownership(tmp_path):
        pass


def test_a_percent_sign_in_the_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'%'"):
        OfflineStore(tmp_path / "50%")


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    made = Settings(repo=tmp_path, data_dir=tmp_path / "data")
    yield made
    detach(made.data_dir)


def test_an_order_nobody_takes_says_so_and_waits_for_the_next_archiver(settings: Settings) -> None:
    redis = open_store(settings)
    with pytest.raises(UnavailableError, match=r"none answered within .*; start one with headrace archive"):
        order_compaction(redis, "p", "trips", timeout_s=0.1)
    (order,) = waiting_orders(redis, "p")
    assert (order.order, order.source) == ("compact", "trips")
    acknowledge(redis, "p", order, "done", "fine")
    assert waiting_orders(redis, "p") == []
    redis.close()


def retyped(name: str, dtype: DType) -> Source:
    """TRIPS with `km` under another name or type."""
    columns = tuple(Column(name, dtype) if column.name == "km" else column for column in TRIPS.columns)
    return dataclasses.replace(TRIPS, columns=columns)


OTHERS = {
    "wider": (retyped("km", DType.FLOAT64), pa.float64(), "'km' as float and would get 'km' as double"),
    "integer": (retyped("km", DType.INT32), pa.int32(), "'km' as float and would get 'km' as int32"),
    "string": (retyped("km", DType.STRING), pa.string(), "'km' as float and would get 'km' as string"),
    "case": (retyped("KM", DType.FLOAT32), pa.float32(), "'km' as float and would get 'KM' as float"),
}


@pytest.mark.parametrize(("source", "kind", "words"), OTHERS.values(), ids=OTHERS)
def test_a_column_of_another_type_is_refused_and_never_cast(
    store: OfflineStore, source: Source, kind: pa.DataType, words: str
) -> None:
    name = source.columns[1].name
    other = rows(2, [2]).drop_columns(["km"]).append_column(name, pa.array([1]).cast(kind))
    store.refuse_other_types(source)
    store.append_events(TRIPS, rows(1, [1]), partition=0, last_offset=1)
    for _ in range(2):
        with pytest.raises(DataError, match=f"table 'events/trips' holds {words}; use a new name"):
            store.append_events(source, other, partition=0, last_offset=2)
    with pytest.raises(DataError, match="events/trips"):
        store.refuse_other_types(source)
    store.refuse_other_types(TRIPS)
    store.append_events(TRIPS, rows(2, [2]), partition=0, last_offset=2)
    assert ids(store) == ["1.0", "2.0"]
