"""The stream: running totals, its byte budget, trimming, and what a look at it reads."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from headrace.errors import RequestError, StreamFullError
from headrace.settings import Settings
from headrace.stores.connection import open_store, open_store_async
from headrace.stores.embedded import detach
from headrace.stores.keys import stream_key
from headrace.stores.markers import Applied, Markers
from headrace.stores.stream import Append, EventStream, append_async, queue_append

NAME = ("payments", 0)


@pytest.fixture
def store(settings: Settings) -> Iterator[redis.Redis]:
    with open_store(settings) as client:
        client.delete(stream_key("budget", *NAME))
        yield client


def push(stream: EventStream, payload: bytes, count: int = 1) -> int:
    return stream.append(NAME[0], "ndjson", payload, count).offset


def test_an_entry_counts_the_events_and_bytes_up_to_it(store: redis.Redis) -> None:
    stream = EventStream(store, "budget", 100)
    offsets = [push(stream, b"x" * size, size + 1) for size in (3, 0, 7)]
    heads = [stream.first_after(*NAME, offset - 1) for offset in offsets]
    assert [(head.total, head.before, head.bytes) for head in heads if head] == [(4, 0, 3), (5, 4, 3), (13, 5, 10)]
    assert stream.head(*NAME) == heads[2] == stream.last_upto(*NAME, offsets[2])
    assert stream.oldest(*NAME) == heads[0] and stream.last_upto(*NAME, offsets[0] - 1) is None
    assert stream.first_after(*NAME, offsets[2]) is None
    assert stream.heads([NAME, ("nothing", 0)]) == {NAME: heads[2], ("nothing", 0): None}


def test_a_batch_that_would_pass_the_budget_is_refused_whole_and_fits_after_a_trim(store: redis.Redis) -> None:
    stream = EventStream(store, "budget", 100)
    first = push(stream, b"x" * 50)
    for _ in range(2):
        push(stream, b"x" * 50)
    head = stream.head(*NAME)
    with pytest.raises(StreamFullError, match=r"'payments', partition 0, .* budget of 100 bytes.*BUDGET") as full:
        push(stream, b"x")
    assert full.value.retry_after_s == 5
    assert stream.head(*NAME) == head and store.xlen(stream_key("budget", *NAME)) == 3
    assert stream.trim(*NAME, first) == 1
    push(stream, b"x" * 50)
    with pytest.raises(StreamFullError):
        push(stream, b"x")


def test_a_batch_larger_than_the_budget_is_refused_for_good(store: redis.Redis) -> None:
    with pytest.raises(RequestError, match=r"budget of 100 bytes, got 101 bytes; push smaller"):
        push(EventStream(store, "budget", 100), b"x" * 101)
    assert push(EventStream(store, "budget", 100), b"x" * 100)


def test_a_stream_of_one_entry_takes_another_of_the_budget_s_size(store: redis.Redis) -> None:
    stream = EventStream(store, "budget", 100)
    push(stream, b"x" * 60)
    push(stream, b"x" * 100)


@pytest.mark.parametrize("seed", range(5))
def test_the_budget_is_exact_whatever_is_pushed_and_trimmed(store: redis.Redis, seed: int) -> None:
    store.delete(stream_key("budget", *NAME))
    rng, stream, held = random.Random(seed), EventStream(store, "budget", 1_000), list[tuple[int, int]]()
    refused = 0
    for _ in range(300):
        if held and rng.random() < 0.2:
            at = rng.randrange(len(held))
            stream.trim(*NAME, held[at][0] - 1)  # the newest stays
            held = held[at:]
        size = rng.choice([0, 1, 10, 300])
        fits = sum(size for _, size in held[1:]) + size <= 1_000
        try:
            held.append((push(stream, b"x" * size), size))
            assert fits
        except StreamFullError:
            refused += 1
            assert not fits
    assert 10 < refused < 290


def test_producers_at_once_never_pass_the_budget(settings: Settings, store: redis.Redis) -> None:
    accepted = []

    def produce() -> None:
        with open_store(settings) as client:
            stream = EventStream(client, "budget", 10_000)
            for _ in range(100):
                try:
                    accepted.append(push(stream, b"x" * 100))
                except StreamFullError:
                    return

    threads = [threading.Thread(target=produce) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(accepted) == 101  # the oldest entry's own bytes are outside the budget


def test_the_three_forms_of_an_append_are_one(settings: Settings, store: redis.Redis) -> None:
    batch = Append(NAME[0], "ndjson", b"x" * 60, 2, 0, 5)
    EventStream(store, "budget").append(*(getattr(batch, name) for name in Append.__slots__))
    with store.pipeline() as pipe:
        queue_append(pipe, "budget", batch)
        pipe.execute()

    async def append(budget_bytes: int) -> int:
        client = open_store_async(settings)
        try:
            return (await append_async(client, "budget", batch, budget_bytes)).index
        finally:
            await client.aclose()

    assert asyncio.run(append(200)) == 1
    with pytest.raises(StreamFullError):
        asyncio.run(append(150))
    entries = EventStream(store, "budget").between(*NAME, 0, 1 << 62)
    assert [replace(entry, offset=0, total=0) for entry in entries] == [replace(entries[0], offset=0, total=0)] * 3
    assert [entry.total for entry in entries] == [2, 4, 6]


def test_an_end_once_raised_stands_before_every_later_entry(store: redis.Redis) -> None:
    stream, ahead = EventStream(store, "budget"), 1 << 62
    stream.raise_end(*NAME, ahead)
    assert stream.head(*NAME) is None
    assert push(stream, b"x") == ahead + 1
    stream.raise_end(*NAME, 5)
    assert push(stream, b"x") == ahead + 2


def test_a_store_out_of_memory_refuses_with_a_pause(tmp_path: Path) -> None:
    settings = Settings(repo=tmp_path, data_dir=tmp_path / "data")
    with open_store(settings) as store:
        store.config_set("maxmemory", 1)
        with pytest.raises(StreamFullError, match=r"out of memory.*maxmemory") as full:
            push(EventStream(store, "budget"), b"x")
        assert full.value.retry_after_s == 5
        markers, done = Markers(store, "budget"), Applied(7, 0, 1)
        markers.raise_applied("archived", *NAME, done)  # trimming depends on it, and makes room
        assert markers.applied("archived", [NAME]) == {NAME: done}
    detach(settings.data_dir)
