"""Orders to the archiver, which alone may change the offline store, and to the worker, and their receipts; all are
small streams.

An order stays in its stream until it is carried out, so one given while no archiver runs is done by the next one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import orjson
import redis

from headrace.errors import UnavailableError
from headrace.stores.keys import stream_key

__all__ = [
    "Order",
    "State",
    "acknowledge",
    "give_order",
    "last_receipt",
    "order_compaction",
    "receipts_after",
    "waiting_orders",
]

Role = Literal["archive", "worker"]
State = Literal["started", "progress", "done", "failed"]

_RECEIPTS_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Order:
    """What the archiver or the worker is asked to do; `id` is the order's place in its stream, `body` what else it must
    know."""

    id: str
    order: Literal["compact", "import", "forget"]
    source: str
    body: Mapping[str, Any] = field(default_factory=dict)


def order_compaction(store: redis.Redis, project: str, source: str, timeout_s: float = 60.0) -> str:
    """Have the archiver compact the table of `source` and wait for it; returns what it did.

    Raises UnavailableError when it failed, or is not done within `timeout_s`, saying whether any archiver took it.
    """
    after = last_receipt(store, project)
    order_id = give_order(store, project, "compact", source)
    deadline, started = time.monotonic() + timeout_s, False
    while (left_s := deadline - time.monotonic()) > 0:
        fresh = receipts_after(store, project, after, left_s)
        after = fresh[-1][0] if fresh else after
        for receipt in (receipt for _, receipt in fresh if receipt["id"] == order_id):
            if receipt["state"] == "done":
                return str(receipt["detail"])
            if receipt["state"] == "failed":
                raise UnavailableError(f"The archiver could not compact {source!r}: {receipt['detail']}.")
            started = True
    raise UnavailableError(_unanswered(source, timeout_s, started))


def _orders(project: str, role: Role) -> str:
    return stream_key(project, f"{role}/orders", 0)  # a source's name holds no slash of its own, so this meets none


def _receipts(project: str, role: Role) -> str:
    return stream_key(project, f"{role}/receipts", 0)


def give_order(
    store: redis.Redis,
    project: str,
    order: str,
    source: str,
    body: Mapping[str, Any] | None = None,
    to: Role = "archive",
) -> str:
    """Ask the archiver (or the worker) for something; returns the order's id, which its receipts bear."""
    given = orjson.dumps({"order": order, "source": source, "body": body or {}})
    return cast(bytes, store.xadd(_orders(project, to), {"order": given})).decode()


def last_receipt(store: redis.Redis, project: str, of: Role = "archive") -> bytes:
    """The place of the newest receipt, to wait for later ones."""
    newest = cast(list[Any], store.xrevrange(_receipts(project, of), count=1))
    return cast(bytes, newest[0][0]) if newest else b"0-0"


def receipts_after(
    store: redis.Redis, project: str, after: bytes, wait_s: float, of: Role = "archive"
) -> list[tuple[bytes, Any]]:
    """Receipts (id, state, detail) later than the place `after`, each with its own; waits for the first for at most
    a second."""
    block_ms = max(1, min(1_000, int(wait_s * 1_000)))
    found = cast(list[Any], store.xread({_receipts(project, of): after}, block=block_ms))
    return [(entry_id, orjson.loads(fields[b"receipt"])) for _, entries in found for entry_id, fields in entries]


def _unanswered(source: str, timeout_s: float, started: bool) -> str:
    if started:
        return f"The archiver is still compacting {source!r} after {timeout_s:g} s; it goes on, look again later."
    return (
        f"Compacting {source!r} needs the archiver, and none answered within {timeout_s:g} s; "
        "start one with headrace archive (or headrace up): it will carry the order out."
    )


def waiting_orders(store: redis.Redis, project: str, to: Role = "archive") -> list[Order]:
    """Orders not carried out yet, oldest first."""
    found = cast(list[Any], store.xrange(_orders(project, to)))
    return [Order(entry_id.decode(), **orjson.loads(fields[b"order"])) for entry_id, fields in found]


def acknowledge(
    store: redis.Redis, project: str, order: Order, state: State, detail: str = "", by: Role = "archive"
) -> None:
    """Tell who waits how the order stands; one that is done or failed leaves the stream."""
    receipt = orjson.dumps({"id": order.id, "state": state, "detail": detail})
    store.xadd(_receipts(project, by), {"receipt": receipt}, maxlen=_RECEIPTS_KEPT, approximate=True)
    if state in ("done", "failed"):
        store.xdel(_orders(project, by), order.id)
