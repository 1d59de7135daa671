"""Newer-wins writes by one script: equal to reading, merging and comparing-and-setting, whatever is held."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from scenario import PARTS

from headrace.catalog.definitions import Catalog, Column, DType, Entity, FeatureView
from headrace.errors import DataError, StoreLostError
from headrace.settings import Settings
from headrace.stores.codec.header import ROWS, TILES, Header, pack_header, unpack_header
from headrace.stores.codec.rows import (
    BATCH,
    DIRECT,
    ORDER,
    STREAM,
    decode_order,
    encode_first_rows,
    encode_rows,
    row_layout,
)
from headrace.stores.connection import open_store
from headrace.stores.keys import entity_key, entity_keys, entity_prefix, layout_field
from headrace.stores.online import OnlineStore
from headrace.stores.row_writes import RowWriter
from headrace.stores.view_writes import Arrived, expiry_ms, write_rows

BUILD = 2**33 + 7
TRICKY = st.text(st.sampled_from("%:,{}\r\n\x00 a2Cé"), max_size=6)
FEATURES = (Column("n", DType.INT64), Column("word", DType.STRING), Column("x", DType.FLOAT64))
NUMBERS = FEATURES[::2]


def view_of(features: tuple[Column, ...] = FEATURES, ttl_us: int = 0) -> FeatureView:
    return FeatureView("rows", "plain", ("who",), features, "f", source=PARTS.name, ttl_us=ttl_us)


def catalog_of(project: str, view: FeatureView) -> Catalog:
    return Catalog(project, 1, "wall", (Entity("who", "who", DType.STRING),), (PARTS,), (view,))


@pytest.fixture
def store(settings: Settings) -> Iterator[redis.Redis]:
    with open_store(settings) as client:
        yield client


def rows_of(names: list[str]) -> pa.Table:
    n = len(names)
    words = [None if k % 5 == 0 else "é" * (k % 4) for k in range(n)]
    numbers = pa.array([None if k % 3 == 0 else k for k in range(n)], pa.int64())
    return pa.table({"who": names, "n": numbers, "word": pa.array(words, pa.string()), "x": np.arange(n) / 3})


def write(writer: RowWriter, catalog: Catalog, table: pa.Table, times_us: list[int], run: int, build: int) -> int:
    """As a batch run writes them."""
    view = catalog.views[0]
    order = np.zeros(len(times_us), ORDER)
    order["time_us"], order["offset"] = times_us, run
    values = encode_first_rows(row_layout(view), order, table, build)
    keys = entity_keys(entity_prefix(catalog.project, view.entities), [table["who"].combine_chunks()])
    return writer.write(writer.commands(keys, values))


def writer_of(store: redis.Redis, catalog: Catalog, build: int = BUILD) -> RowWriter:
    view = catalog.views[0]
    return RowWriter(store, layout_field(view), build, expiry_ms(catalog, view))


MOMENTS = st.sampled_from(
    [0, -1, 5, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 5, -(2**32), -(2**56), 2**57, 2**57 + 1]
)
RUNS = st.sampled_from([1, 2**32 - 1, 2**32, 2**51, 2**51 + 1])
MANY_PLACES = {(0, partition): (9, 1) for partition in range(300)}
HEADERS = st.builds(
    Header,
    st.just(ROWS),
    st.sampled_from([1, 2**32 - 1, 2**33 - 1, 2**63]),
    MOMENTS,
    st.dictionaries(st.tuples(st.integers(0, 1), st.integers(-1, 2)), st.tuples(st.just(9), st.just(1)), max_size=3)
    | st.just(MANY_PLACES),
    st.sampled_from([BUILD, BUILD, BUILD, BUILD - 1, 7]),
)
HELD = st.tuples(HEADERS, MOMENTS, st.sampled_from([BATCH, BATCH, STREAM, DIRECT]), st.integers(0, 2), RUNS)


@limits(max_examples=60)
@given(st.lists(st.tuples(st.none() | HELD, MOMENTS), min_size=1, max_size=40), RUNS, st.booleans())
def test_it_is_equal_to_read_merge_and_compare_and_set(
    settings: Settings, cases: list[tuple[Any, int]], run: int, of_one_size: bool
) -> None:
    view = view_of(NUMBERS if of_one_size else FEATURES)
    layout, names = row_layout(view), [f"k{i}" for i in range(len(cases))]
    table, held = rows_of(names), rows_of(names).slice(0, 1)
    ours, theirs = catalog_of("script", view), catalog_of("merge", view)
    with open_store(settings) as store:
        for catalog in (ours, theirs):
            keys = [entity_key(entity_prefix(catalog.project, ["who"]), [name]) for name in names]
            store.delete(*keys)
            for key, (old, _) in zip(keys, cases, strict=True):
                if old is not None:
                    header, time_us, rank, partition, offset = old
                    order = np.array([(time_us, offset, 0, 0 if rank == BATCH else partition, rank)], ORDER)
                    (blob,) = encode_rows(layout, [pack_header(header)], order, held)
                    store.hset(key, layout_field(view), blob)  # type: ignore[arg-type]
        before = OnlineStore(store).read(_keys(theirs, names), layout_field(view))
        times = [time_us for _, time_us in cases]
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        n = len(cases)
        arrived = Arrived(columns, np.array(times), np.full(n, run), np.zeros(n, np.int64))
        write_rows(OnlineStore(store), theirs, view, arrived, BATCH, BUILD)
        written = write(writer_of(store, ours), ours, table, times, run, BUILD)
        expected = OnlineStore(store).read(_keys(theirs, names), layout_field(view))
        assert OnlineStore(store).read(_keys(ours, names), layout_field(view)) == expected
        again = decode_order(layout, before)
        same = [
            old is not None
            and old[0].build == BUILD
            and (int(again[k]["time_us"]), int(again[k]["rank"]), int(again[k]["offset"])) == (times[k], BATCH, run)
            for k, (old, _) in enumerate(cases)
        ]
        changed = [a != b for a, b in zip(before, expected, strict=True)]
        assert written == sum(changed) + sum(same)


def _keys(catalog: Catalog, names: list[str]) -> list[bytes]:
    return [entity_key(entity_prefix(catalog.project, ["who"]), [name]) for name in names]


@given(st.lists(st.tuples(TRICKY, st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=5))
def test_many_keys_are_made_like_each_alone(rows: list[tuple[str, int]]) -> None:
    prefix = entity_prefix("p", ["site", "who"])
    columns = [pa.array([number for _, number in rows]), pa.array([name for name, _ in rows])]
    assert entity_keys(prefix, columns).to_pylist() == [entity_key(prefix, [number, name]) for name, number in rows]
    alone = entity_key("x:", [rows[0][0]])
    assert entity_keys("x:", [pa.array([name for name, _ in rows])]).to_pylist()[0] == alone


def test_a_layout_begun_anew_and_a_foreign_value_stop_the_writer(store: redis.Redis) -> None:
    catalog = catalog_of("stopped", view_of())
    table, field = rows_of(["a", "b"]), layout_field(catalog.views[0])
    assert write(writer_of(store, catalog), catalog, table, [1, 1], 5, BUILD) == 2
    with pytest.raises(StoreLostError, match=f"build {BUILD - 1}"):
        write(writer_of(store, catalog, BUILD - 1), catalog, table, [9, 9], 6, BUILD - 1)
    assert write(writer_of(store, catalog, BUILD + 1), catalog, table, [0, 0], 5, BUILD + 1) == 2
    store.hset(_keys(catalog, ["a"])[0], field, pack_header(Header(TILES, build=BUILD)) + bytes(40))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="headrace rebuild"):
        write(writer_of(store, catalog), catalog, table, [9, 9], 6, BUILD)


def test_a_server_that_forgot_the_script_learns_it_again(store: redis.Redis) -> None:
    catalog = catalog_of("forgetful", view_of())
    writer, table = writer_of(store, catalog), rows_of([f"k{i}" for i in range(100)])
    assert write(writer, catalog, table, [1] * 100, 5, BUILD) == 100
    store.script_flush()
    assert write(writer, catalog, table, [1] * 100, 5, BUILD) == 100, "what this run wrote is written"
    assert write(writer, catalog, table, [1] * 100, 4, BUILD) == 0
    assert write(writer, catalog, table, [1] * 100, 6, BUILD) == 100


def test_a_key_lives_as_its_longest_lived_value_needs(store: redis.Redis) -> None:
    mortal, eternal = catalog_of("lives", view_of(ttl_us=10**9)), catalog_of("lives", view_of(NUMBERS))
    ttl_ms = expiry_ms(mortal, mortal.views[0])
    assert ttl_ms and not expiry_ms(eternal, eternal.views[0])
    writer, table, keys = writer_of(store, mortal), rows_of(["a", "b"]), _keys(mortal, ["a", "b", "other"])

    def lives(name: int) -> str:
        left = store.pttl(keys[name])
        return "for ever" if left < 0 else "renewed" if left > ttl_ms - 60_000 else "old"

    write(writer, mortal, table, [1, 1], 5, BUILD)
    assert lives(0) == lives(1) == "renewed"
    store.pexpire(keys[0], 5_000)
    write(writer, mortal, table.slice(0, 1), [0], 6, BUILD)
    assert lives(0) == "old", "a row that lost changes nothing"
    write(writer, mortal, table.slice(0, 1), [2], 6, BUILD)
    assert lives(0) == "renewed"
    store.pexpire(keys[0], 2 * ttl_ms)
    write(writer, mortal, table.slice(0, 1), [3], 6, BUILD)
    assert store.pttl(keys[0]) > ttl_ms, "never shortened"
    store.hset(keys[1], "another view's", "value")
    store.hdel(keys[1], layout_field(mortal.views[0]))
    store.persist(keys[1])
    write(writer, mortal, table.slice(1), [1], 7, BUILD)
    assert lives(1) == "for ever", "another view needs it so"
    lasting = RowWriter(store, "lasting@f.1", BUILD, 0)
    write(lasting, eternal, table, [1, 1], 5, BUILD)
    assert lives(0) == "for ever"
    store.delete(keys[1])
    store.hset(keys[0], mapping={"x": "1"})
    write(writer, mortal, table, [9, 9], 9, BUILD)
    assert (lives(0), lives(1)) == ("for ever", "renewed"), "in one command"


@pytest.mark.parametrize("seed", range(3))
def test_beside_other_writers_the_last_in_the_order_stands(settings: Settings, seed: int) -> None:
    view, rng = view_of(), random.Random(seed)
    catalog = catalog_of(f"beside {seed}", view)
    names = [f"k{i}" for i in range(60)]
    given: list[tuple[str, tuple[int, int, int, int, int]]] = []
    lock, failed = threading.Lock(), []

    def stream(partition: int, rank: int, picks: random.Random) -> None:
        with open_store(settings) as client:
            online = OnlineStore(client)
            for offset in range(1, 25):
                chosen = picks.sample(names, 20)
                times = [picks.randrange(40) for _ in chosen]
                table = rows_of(chosen)
                columns = {name: table[name].combine_chunks() for name in table.column_names}
                index = np.arange(len(chosen))
                arrived = Arrived(columns, np.array(times), np.full(20, offset), index, partition, rank - STREAM)
                write_rows(online, catalog, view, arrived, rank, BUILD)
                with lock:
                    rows = zip(chosen, times, index.tolist(), strict=True)
                    given.extend((who, (t, rank, partition, offset, i)) for who, t, i in rows)

    def batch(picks: random.Random) -> None:
        with open_store(settings) as client:
            writer = writer_of(client, catalog)
            for _ in range(25):
                chosen, run = picks.sample(names, 40), time.time_ns() // 1_000
                times = [picks.randrange(40) for _ in chosen]
                write(writer, catalog, rows_of(chosen), times, run, BUILD)
                with lock:
                    given.extend((who, (t, BATCH, 0, run, 0)) for who, t in zip(chosen, times, strict=True))

    def safely(target: Any, *args: Any) -> None:
        try:
            target(*args)
        except BaseException as error:
            failed.append(error)

    jobs = [(stream, 0, STREAM), (stream, 1, STREAM), (stream, 0, DIRECT), (batch,), (batch,)]
    threads = [threading.Thread(target=safely, args=(*job, random.Random(rng.random()))) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    with open_store(settings) as client:
        held = OnlineStore(client).read(_keys(catalog, names), layout_field(view))
    for name, blob, order in zip(names, held, decode_order(row_layout(view), held), strict=True):
        fields = ("time_us", "rank", "partition", "offset", "index")
        assert tuple(int(order[field]) for field in fields) == max(rows for who, rows in given if who == name)
        header = unpack_header(blob or b"", ROWS)
        assert header.newest_us == int(order["time_us"]) and header.build == BUILD
        if order["rank"] != BATCH:
            place = (int(order["rank"]) - STREAM, int(order["partition"]))
            assert header.positions[place] == (int(order["offset"]), int(order["index"]))
