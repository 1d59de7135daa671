from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pyarrow as pa
import pytest
import redis.asyncio

from headrace.settings import Settings
from headrace.stores.connection import open_store, open_store_async
from headrace.stores.keys import stream_key
from headrace.stores.offline import OfflineStore
from headrace.stores.served import (
    MOST_WAITING,
    SERVED,
    STREAM,
    gone_served,
    pending_served,
    read_served,
    send_served,
    take_out_served,
)
from headrace.stores.tombstones import Tombstone, Tombstones

PROJECT = "served"
T0_US = 1_700_000_000_000_000


def rows(*requests: str, keys: list[str] | None = None, served_us: int = T0_US) -> pa.Table:
    values: dict[str, Any] = {"served_at": served_us, "t": served_us, "event_date": served_us // 86_400_000_000}
    values |= {"row": 0, "rate": 1.0, "catalog_version": 1, "entity_keys": keys or ["headrace:p:card:a"]}
    found = [{name: values.get(name, "{}") for name in SERVED.names} | {"request_id": name} for name in requests]
    columns = {name: pa.array([row[name] for row in found], SERVED.field(name).type) for name in SERVED.names}
    return pa.table(columns, schema=SERVED)


@pytest.fixture
def store(settings: Settings) -> Iterator[redis.Redis]:
    with open_store(settings) as held:
        held.delete(stream_key(PROJECT, STREAM, 0))
        yield held


async def send(settings: Settings, service: str, table: pa.Table) -> bool:
    held = open_store_async(settings)
    try:
        return await send_served(held, PROJECT, service, table)
    finally:
        await held.aclose()


def run(coroutine: Any) -> Any:
    import asyncio

    return asyncio.run(coroutine)


def test_an_append_that_was_committed_is_not_made_again(settings: Settings, store: redis.Redis, tmp_path: Any) -> None:
    """Killed between commit and taking out: the same entries come again, and more behind them."""
    offline = OfflineStore(tmp_path)
    assert run(send(settings, "one", rows("a", "b"))) and run(send(settings, "two", rows("c")))
    for service, table, offsets, last in pending_served(store, PROJECT, 100)[0]:
        offline.append_served(service, table, offsets, last)
    assert run(send(settings, "one", rows("d")))
    pending, last = pending_served(store, PROJECT, 100)
    added = {of.service: OfflineStore(tmp_path).append_served(*of) for of in pending}
    assert added == {"one": 1, "two": 0}
    take_out_served(store, PROJECT, last)
    assert pending_served(store, PROJECT, 100) == ([], 0)
    assert read_served(offline.root, "one")["request_id"].to_pylist() == ["a", "b", "d"]


def test_nothing_is_sent_where_too_much_waits_already(settings: Settings, store: redis.Redis) -> None:
    pipe = store.pipeline(transaction=False)
    for _ in range(MOST_WAITING):
        pipe.xadd(stream_key(PROJECT, STREAM, 0), {"x": ""})
    pipe.execute()
    assert run(send(settings, "one", rows("a"))) is False
    store.delete(stream_key(PROJECT, STREAM, 0))


@pytest.mark.parametrize(
    "entities, key, gone",
    [
        (("card",), "headrace:p:card:a", True),
        (("card",), "headrace:p:card:b", False),
        (("card",), "headrace:p:card,shop:a,7", True),
        (("card",), "headrace:p:shop:a", False),
        (("card", "shop"), "headrace:p:card:a", False),
        (("card", "shop"), "headrace:p:card,shop:a,7", True),
    ],
)
def test_rows_go_that_were_served_before_a_part_of_their_key_was_forgotten(
    entities: tuple[str, ...], key: str, gone: bool
) -> None:
    salt = b"salt"
    plain = {"card": "a", "shop": "7"}
    forgotten = f"headrace:p:{','.join(entities)}:{','.join(plain[name] for name in entities)}"
    item = Tombstone(Tombstones(salt).digest(forgotten.encode()), entities, T0_US, {}, T0_US)
    tombstones = Tombstones(salt, [item])
    held = pa.concat_tables([rows("x", keys=[key]), rows("y", keys=["headrace:p:other:1", key], served_us=T0_US + 1)])
    assert gone_served(held, tombstones).tolist() == [gone, False]
    assert cast(Any, gone_served(held, Tombstones(salt)).tolist()) == [False, False]
