from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DataError, StoreLostError
from headrace.settings import Settings
from headrace.stores.blob_cache import BlobCache
from headrace.stores.codec.header import OLDEST_US, ROWS, TILES, Header, Headers, pack_header, unpack_header
from headrace.stores.connection import open_store
from headrace.stores.online import RENEW_MS, OnlineStore, Update
from headrace.stores.wire import Wire, command_template

PLACES = st.dictionaries(
    st.tuples(st.integers(0, 1), st.integers(0, 3)),
    st.tuples(st.integers(0, 2**40), st.integers(0, 2**32 - 1)),
    max_size=4,
)
HEADERS = st.builds(Header, st.just(TILES), st.integers(0, 2**60), st.integers(-(2**60), 2**60), PLACES, st.just(7))


@pytest.fixture
def store(settings: Settings) -> Iterator[redis.Redis]:
    with open_store(settings) as client:
        yield client


@given(st.lists(st.none() | HEADERS, max_size=12), st.tuples(st.integers(0, 1), st.integers(0, 3)))
def test_many_headers_are_read_and_raised_like_each_alone(headers: list[Header | None], place: tuple[int, int]) -> None:
    blobs = [None if header is None else pack_header(header) + b"rest" for header in headers]
    many = Headers(blobs, TILES, place, 7)
    alone = [header or Header(TILES, build=7) for header in headers]
    assert list(zip(many.offset.tolist(), many.index.tolist(), strict=True)) == [one.after(place) for one in alone]
    assert many.newest_us.tolist() == [one.newest_us for one in alone]
    n = len(headers)
    newest, offset, index = np.arange(n) + 2**61, np.arange(n) + 2**41, np.arange(n)
    raised = [pack_header(one.raised(k + 2**61, place, (k + 2**41, k))) for k, one in enumerate(alone)]
    assert many.raised(newest, offset, index) == raised


def test_headers_of_another_kind_are_refused() -> None:
    with pytest.raises(DataError, match="kind 1"):
        Headers([pack_header(Header(TILES)), pack_header(Header(ROWS))], TILES, (0, 0))


def _count_up(numbers: Sequence[int], held: list[bytes | None]) -> list[bytes | None]:
    """Values that are a header whose revision counts the merges."""
    old = [Header(TILES) if blob is None else unpack_header(blob, TILES) for blob in held]
    return [pack_header(header.raised(OLDEST_US, None, (0, 0))) for header in old]


def test_every_key_of_every_update_is_written_once(store: redis.Redis) -> None:
    online = OnlineStore(store)
    keys = [b"headrace:once:%d" % i for i in range(12_000)]
    for _ in range(2):
        online.update(*[Update(keys, field, _count_up, 60_000) for field in ("one", "two%d")])
    for field in ("one", "two%d"):
        assert {unpack_header(blob or b"", TILES).revision for blob in online.read(keys, field)} == {2}
    assert store.pttl(keys[0]) > 0 and online.refused == 0


def test_a_refused_key_is_read_and_merged_again(store: redis.Redis) -> None:
    online, meddler, meddled = OnlineStore(store), OnlineStore(store), []
    keys = [b"headrace:refused:%d" % i for i in range(10)]

    def merge(numbers: Sequence[int], held: list[bytes | None]) -> list[bytes | None]:
        if not meddled:
            meddled.append(1)
            meddler.update(Update(keys[3:5], "f", _count_up, 0))
        return _count_up(numbers, held)

    online.update(Update(keys, "f", merge, 0))
    assert [unpack_header(blob or b"", TILES).revision for blob in online.read(keys, "f")] == [1, 1, 1, 2, 2, *[1] * 5]
    assert online.refused == 2


def test_a_guess_that_no_longer_holds_is_read_again(store: redis.Redis) -> None:
    first, second = OnlineStore(store), OnlineStore(store)
    keys = [b"headrace:guess:%d" % i for i in range(6)]
    first.update(Update(keys, "f", _count_up, 0))
    second.update(Update(keys[:2], "f", _count_up, 0))
    store.delete(keys[5])
    first.update(Update(keys, "f", _count_up, 0))
    first.update(Update(keys, "f", _count_up, 0))
    assert [unpack_header(blob or b"", TILES).revision for blob in first.read(keys, "f")] == [4, 4, 3, 3, 3, 2]
    assert (first.refused, second.refused) == (3, 0)


def test_a_writer_renews_the_expiry_now_and_then_in_event_time(store: redis.Redis) -> None:
    key, step_us = b"headrace:renew:1", 2**32

    def write(online: OnlineStore, newest_us: int) -> bool:
        store.pexpire(key, 5_000)
        header = Header(TILES, newest_us, newest_us)
        online.update(Update([key], "f", lambda numbers, held: [pack_header(header)], 60_000))
        return store.pttl(key) > 5_000

    online = OnlineStore(store)
    assert [write(online, us) for us in (step_us - 1, step_us, 2 * step_us - 1, 2 * step_us)] == [1, 1, 0, 1]
    assert write(OnlineStore(store), 2 * step_us + 1), "the first write of a process renews it"
    assert step_us <= RENEW_MS * 1_000


def test_a_writer_who_knows_of_shorter_windows_does_not_shorten_the_life_of_a_key(store: redis.Redis) -> None:
    key, other = b"headrace:lives", b"headrace:lives for ever"
    for field, ttl_ms in [("short", 60_000), ("long", 600_000), ("short", 60_000), ("last", 60_000)]:
        OnlineStore(store).update(Update([key], field, _count_up, ttl_ms))
        assert (store.pttl(key) > 60_000) == (field != "short" or store.hlen(key) > 1)
    for ttl_ms in (0, 60_000):
        OnlineStore(store).update(Update([other], "f", _count_up, ttl_ms))
        assert store.pttl(other) == -1


def test_the_cache_forgets_the_oldest_when_it_is_full() -> None:
    cache, keys = BlobCache(10_000), [b"%d" % i for i in range(100)]
    for key in keys:
        cache.keep("f", [key], [b"x" * 350])
    known = [blob is not None for blob in cache.find("f", keys)]
    assert known == sorted(known) and 10 <= sum(known) <= 20
    cache.drop("f", keys)
    assert cache.find("f", keys) == [None] * 100


def test_a_server_that_forgot_the_script_learns_it_again(store: redis.Redis) -> None:
    online, keys = OnlineStore(store), [b"headrace:forgot:1", b"headrace:forgot:2"]
    online.update(Update(keys, "f", _count_up, 0))
    store.script_flush()
    online.update(Update(keys, "f", _count_up, 0))
    assert [unpack_header(blob or b"", TILES).revision for blob in online.read(keys, "f")] == [2, 2]


def test_values_of_an_older_build_are_none_and_of_a_later_one_an_error(store: redis.Redis) -> None:
    online, seen = OnlineStore(store), []
    key = b"headrace:builds:1"

    def merge(numbers: Sequence[int], held: list[bytes | None]) -> list[bytes | None]:
        seen.extend(held)
        return [pack_header(Header(TILES, build=5)) for _ in numbers]

    store.hset(key, "f", pack_header(Header(TILES, build=4)))  # type: ignore[arg-type]
    online.update(Update([key], "f", merge, 0, build=5))
    assert seen == [None]
    with pytest.raises(StoreLostError, match="build 5"):
        online.update(Update([key], "f", merge, 0, build=4))
    assert online.read([key], "f") == [pack_header(Header(TILES, build=5))]


def test_a_failed_merge_leaves_no_reply_for_the_next(store: redis.Redis) -> None:
    online, keys = OnlineStore(store), [b"headrace:failed:%d" % i for i in range(3)]

    def fail(numbers: Sequence[int], held: list[bytes | None]) -> list[bytes | None]:
        raise DataError("no")

    with pytest.raises(DataError):
        online.update(Update(keys, "f", fail, 0), Update(keys, "g", fail, 0))
    assert online.read(keys, "f") == [None, None, None]


def test_a_lost_connection_is_an_error_and_the_next_use_connects_again(store: redis.Redis) -> None:
    wire = Wire(store)
    identify = command_template(b"CLIENT", b"ID")
    wire.send([identify])
    (client,) = wire.receive(1)
    store.client_kill_filter(_id=str(client))
    with pytest.raises(redis.ConnectionError):
        wire.send([identify])
        wire.receive(1)
    wire.send([identify])
    assert wire.receive(1)[0] > client


def test_an_error_reply_is_raised_after_the_others_were_read(store: redis.Redis) -> None:
    wire = Wire(store)
    get = command_template(b"GET", None)
    store.hset("headrace:wire", "f", "v")
    wire.send([get % (13, b"headrace:wire"), get % (4, b"none")])
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        wire.receive(2)
    wire.send([get % (4, b"none")])
    assert wire.receive(1) == [None]
