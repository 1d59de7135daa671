"""Orders to the archiver, which alone may change the offline store, and its receipts; both are small streams.

An order stays in its stream until it is carried out, so one given while no archiver runs is done by the next one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal, cast

import orjson
import redis

from headrace.errors import UnavailableError
from headrace.stores.keys import stream_key

__all__ = ["Order", "acknowledge", "order_compaction", "waiting_orders"]

State = Literal["started", "done", "failed"]

# A source's name holds no slash of its own, so these meet none.
_ORDERS, _RECEIPTS = "archive/orders", "archive/receipts"
_RECEIPTS_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Order:
    """What the archiver is asked to do; `id` is the order's place in its stream."""

    id: str
    order: Literal["compact"]
    source: str


def order_compaction(store: redis.Redis, project: str, source: str, timeout_s: float = 60.0) -> str:
    """Have the archiver compact the table of `source` and wait for it; returns what it did.

    Raises UnavailableError when it failed, or is not done within `timeout_s`, saying whether any archiver took it.
    """
    receipts = stream_key(project, _RECEIPTS, 0)
    newest = cast(list[Any], store.xrevrange(receipts, count=1))
    after = newest[0][0] if newest else b"0-0"
    body = orjson.dumps({"order": "compact", "source": source})
    order_id = cast(bytes, store.xadd(stream_key(project, _ORDERS, 0), {"order": body})).decode()
    deadline, started = time.monotonic() + timeout_s, False
    while (left_s := deadline - time.monotonic()) > 0:
        fresh = _receipts_after(store, receipts, after, left_s)
        after = fresh[-1][0] if fresh else after
        for receipt in (receipt for _, receipt in fresh if receipt["id"] == order_id):
            if receipt["state"] == "done":
                return str(receipt["detail"])
            if receipt["state"] == "failed":
                raise UnavailableError(f"The archiver could not compact {source!r}: {receipt['detail']}.")
            started = True
    raise UnavailableError(_unanswered(source, timeout_s, started))


def _receipts_after(store: redis.Redis, key: str, after: bytes, wait_s: float) -> list[tuple[bytes, Any]]:
    block_ms = max(1, min(1_000, int(wait_s * 1_000)))
    found = cast(list[Any], store.xread({key: after}, block=block_ms))
    return [(entry_id, orjson.loads(fields[b"receipt"])) for _, entries in found for entry_id, fields in entries]


def _unanswered(source: str, timeout_s: float, started: bool) -> str:
    if started:
        return f"The archiver is still compacting {source!r} after {timeout_s:g} s; it goes on, look again later."
    return (
        f"Compacting {source!r} needs the archiver, and none answered within {timeout_s:g} s; "
        "start one with headrace archive (or headrace up): it will carry the order out."
    )


def waiting_orders(store: redis.Redis, project: str) -> list[Order]:
    """Orders not carried out yet, oldest first."""
    found = cast(list[Any], store.xrange(stream_key(project, _ORDERS, 0)))
    return [Order(entry_id.decode(), **orjson.loads(fields[b"order"])) for entry_id, fields in found]


def acknowledge(store: redis.Redis, project: str, order: Order, state: State, detail: str = "") -> None:
    """Tell who waits how the order stands; one that is done or failed leaves the stream."""
    receipt = orjson.dumps({"id": order.id, "state": state, "detail": detail})
    store.xadd(stream_key(project, _RECEIPTS, 0), {"receipt": receipt}, maxlen=_RECEIPTS_KEPT, approximate=True)
    if state != "started":
        store.xdel(stream_key(project, _ORDERS, 0), order.id)
