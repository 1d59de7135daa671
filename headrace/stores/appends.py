"""A push, entry by entry: what the server and the client that writes straight to the store do alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import redis.asyncio

from headrace.catalog.definitions import Catalog, Source
from headrace.errors import StreamFullError
from headrace.stores.payloads import Batch
from headrace.stores.stream import Append, Position, append_async

__all__ = ["append_batches"]


async def append_batches(
    store: redis.asyncio.Redis,
    catalog: Catalog,
    source: Source,
    batches: Sequence[Batch],
    budget_bytes: int,
    on_append: Callable[[Batch], None] | None = None,
) -> dict[str, str]:
    """Appends to a source's stream; by partition, the position of the last event.

    When one entry fails, those before it stay, and a retry's repeats are known by their ids. Raises StreamFullError,
    which says what was accepted.
    """
    ends: dict[str, Position] = {}
    for number, batch in enumerate(batches):
        held = (batch.format, batch.payload, batch.count, batch.partition)
        entry = Append(source.name, *held, catalog.version)
        try:
            end = await append_async(store, catalog.project, entry, budget_bytes)
        except StreamFullError as error:
            raise _partly(error, source, batches[:number]) from None
        ends[str(batch.partition)] = end
        if on_append is not None:
            on_append(batch)
    return {partition: str(end) for partition, end in ends.items()}


def _partly(error: StreamFullError, source: Source, before: Sequence[Batch]) -> StreamFullError:
    """The refusal of one batch, which says what of the same push was accepted before it."""
    if not before:
        return error
    accepted = sum(batch.count for batch in before)
    again = "their ids mark them as repeats" if source.event_id else "without an event id they will count twice"
    return StreamFullError(f"{error} {accepted} events of this push were accepted: {again}.", error.retry_after_s)
