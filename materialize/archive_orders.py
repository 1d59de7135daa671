"""Orders of other processes that the archiver carries out, as the owner of the tables."""

from __future__ import annotations

from collections.abc import Collection

import redis

from headrace.catalog.definitions import Catalog
from headrace.errors import UnknownNameError
from headrace.stores.offline import OfflineStore
from headrace.stores.orders import Order, State, acknowledge, waiting_orders
from headrace.telemetry import get_logger
from materialize.forget_archive import ForgottenRows
from materialize.ingest import Imports

__all__ = ["obey_orders"]

log = get_logger()


def obey_orders(
    store: redis.Redis,
    catalog: Catalog,
    offline: OfflineStore,
    sources: Collection[str],
    imports: Imports,
    forgotten: ForgottenRows,
) -> None:
    """Carry out what waits, oldest first, and tell whoever gave the order; `sources` are those of the archive. An
    import is only begun; what cannot be forgotten now is tried again."""
    for order in waiting_orders(store, catalog.project):
        if order.order == "import":
            imports.begin(order)
            continue
        acknowledge(store, catalog.project, order, "started")
        try:
            done = _obey(catalog, offline, sources, forgotten, order)
        except Exception as error:  # whoever gave the order hears why; the archiver goes on
            log.error("order failed", order=order.order, source=order.source, error=str(error))
            state: State = "progress" if order.order == "forget" else "failed"
            acknowledge(store, catalog.project, order, state, str(error))
        else:
            log.info("order done", order=order.order, source=order.source, done=done)
            acknowledge(store, catalog.project, order, "done", done)


def _obey(
    catalog: Catalog, offline: OfflineStore, sources: Collection[str], forgotten: ForgottenRows, order: Order
) -> str:
    if order.order == "forget":
        return forgotten.carry_out(catalog, order)
    if order.source not in sources:
        raise UnknownNameError(f"There is no source {order.source!r}; the archive has: {', '.join(sorted(sources))}.")
    return offline.compact(order.source)
