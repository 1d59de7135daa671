"""A topic that has lost what was read of it, or was made again: where it goes on once that is accepted.

What it holds and what was archived of it agree up to some place, then they do not. From there on its messages are new,
also those that came before anybody accepted the loss.
"""

from __future__ import annotations

from headrace.stores.kafka_epochs import Epoch
from headrace.stores.logs import Logs
from materialize.log import SourceLog

__all__ = ["epoch_after"]


def epoch_after(logs: Logs, past: SourceLog, upto: int) -> Epoch | None:
    """The epoch that the partition of `past` is to begin, of which positions up to `upto` were given; None where the
    archive holds nothing that the topic has lost: it goes on as it is.

    Raises UnavailableError when the broker does not answer.
    """
    topic = logs.topics[past.source.name]
    epochs, (oldest, behind) = topic.epochs_of(past.partition), topic.bounds(past.partition)
    if past.is_same and past.archived <= epochs.end(behind):
        return None
    begun = epochs.all[-1].kafka
    first = max(oldest, begun) if begun <= behind else oldest
    places = [(offset, epochs.kafka_at(offset)) for offset in past.archived_offsets.tolist()]
    held = [(offset, kafka) for offset, kafka in places if kafka is not None and kafka >= oldest]
    return Epoch(upto + 1, max([first, *_agreed(past, held)]))


def _agreed(past: SourceLog, held: list[tuple[int, int]]) -> list[int]:
    """Kafka's offset behind the last message that was archived as it is, if there is one: messages agree up to some
    place and nowhere after it."""
    low, high = 0, len(held)
    while low < high:
        middle = (low + high) // 2
        if past.agrees_at(held[middle][0]):
            low = middle + 1
        else:
            high = middle
    return [held[low - 1][1] + 1] if low else []
