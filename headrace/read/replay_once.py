"""A replay on a cluster, where no transaction spans the events and the marks of their letters: each letter once still.

    intent   which letters an entry will hold, beside the stream (headrace.replay:PROJECT:SOURCE)
    entry    one script appends it and leaves a flag on the stream's key
    marks    on their way to the archive; then flag and intent go

Whoever replays next finishes what was begun: an intent whose flag is there was appended, and only lacks its marks. One
that slept is too late: the script does nothing from some seconds before its lease is over, by its own node's clock.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any, cast

import orjson
import pyarrow as pa
import redis

from headrace.catalog.definitions import Catalog, Source
from headrace.errors import UnavailableError
from headrace.stores.keys import replay_key, stream_key
from headrace.stores.letters import send_letters
from headrace.stores.orders import waiting_orders
from headrace.stores.payloads import Batch, ndjson_batches
from headrace.stores.stream import Append, append_flagged, flags_on, take_flag

__all__ = ["LEASE_S", "PLACE", "ReplayOnce"]

PLACE = ("source", "partition", "offset", "index")
LEASE_S = 60
MARGIN_S = 10
_RENEW = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('EXPIRE', KEYS[1], ARGV[2]) or 0"

Letters = Sequence[dict[str, Any]]


class ReplayOnce:
    """The replay of one source by the holder of a lease, which is `token` at the key `lease`."""

    def __init__(self, store: redis.Redis, catalog: Catalog, source: Source, lease: str, token: bytes) -> None:
        self._store, self._catalog, self._source = store, catalog, source
        self._lease, self._token = lease, token
        self._intents = replay_key(catalog.project, source.name)
        self._until_us: dict[int, int] = {}

    def begin(self) -> int:
        """Marks the letters that a replay which died had appended; returns how many.

        Raises UnavailableError while keys are being forgotten. The worker, for its part, begins no forgetting while a
        replay has its lease: of two that begin at once one sees the other.
        """
        if any(order.order == "forget" for order in waiting_orders(self._store, self._catalog.project, "worker")):
            raise UnavailableError("Keys are being forgotten, and a letter may hold one; replay when that is done.")
        done = 0
        for token, raw in cast(dict[bytes, bytes], self._store.hgetall(self._intents)).items():
            intent = orjson.loads(raw)
            if token.decode() in flags_on(self._store, *self._place(intent["partition"])):
                self._mark(intent["letters"])
                done += len(intent["letters"])
            self._let_go(token.decode(), intent["partition"])
        return done

    def renew(self) -> None:
        """Holds on for another while. Raises UnavailableError when the lease is over."""
        now_us = {partition: self._time_us(partition) for partition in range(self._source.partitions)}
        if not self._store.eval(_RENEW, 1, self._lease, cast(Any, self._token), str(LEASE_S)):
            raise self._late()
        self._until_us = {partition: us + (LEASE_S - MARGIN_S) * 1_000_000 for partition, us in now_us.items()}

    def append(self, letters: Letters) -> None:
        """Pushes letters and marks them. Raises UnavailableError when that took too long since `renew`."""
        for batch, rows in self._batches(letters):
            token, marks = uuid.uuid4().hex, [_plain(row) for row in rows]
            intent = orjson.dumps({"partition": batch.partition, "letters": marks})
            self._store.hset(self._intents, token, intent.decode())
            held = (batch.format, batch.payload, batch.count, batch.partition)
            entry = Append(self._source.name, *held, self._catalog.version)
            if not append_flagged(self._store, self._catalog.project, entry, token, self._until_us[batch.partition]):
                raise self._late()
            self._mark(marks)
            self._let_go(token, batch.partition)

    def _batches(self, letters: Letters) -> Iterator[tuple[Batch, list[dict[str, Any]]]]:
        """The entries for letters, each with its own."""
        waiting: dict[int, list[dict[str, Any]]] = {}
        for row in letters:
            waiting.setdefault(ndjson_batches(self._source, row["payload"])[0].partition, []).append(row)
        for batch in ndjson_batches(self._source, b"\n".join(row["payload"] for row in letters)):
            mine = waiting[batch.partition]
            yield batch, mine[: batch.count]
            del mine[: batch.count]

    def _place(self, partition: int) -> tuple[str, str, int]:
        return self._catalog.project, self._source.name, partition

    def _mark(self, letters: Letters) -> None:
        marks: dict[str, Any] = {name: [row[name] for row in letters] for name in PLACE}
        arrival = pa.array([row["arrival_us"] for row in letters], pa.int64()).cast(pa.timestamp("us", "UTC"))
        rows = pa.table({**marks, "arrival_time": arrival, "replayed": [True] * len(letters)})
        send_letters(self._store, self._catalog.project, rows)

    def _let_go(self, token: str, partition: int) -> None:
        take_flag(self._store, *self._place(partition), token)
        self._store.hdel(self._intents, token)

    def _time_us(self, partition: int) -> int:
        """The present by the clock of the partition's node."""
        store: Any = self._store
        seconds, micros = store.client_of(stream_key(*self._place(partition)).encode()).time()
        return int(seconds) * 1_000_000 + int(micros)

    def _late(self) -> UnavailableError:
        return UnavailableError(f"The replay of {self._source.name!r} took too long and stopped; start it again.")


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    arrival = pa.scalar(row["arrival_time"], pa.timestamp("us", "UTC")).cast(pa.int64()).as_py()
    return {name: row[name] for name in PLACE} | {"arrival_us": arrival}
