"""Producers that push until they are acknowledged."""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
from crash.ledger import Ledger, Place
from crash.world import CALLS, LAST_CALL, ORDERS, SOURCES, VISITS, WRITES, direct_rows, present_us, rows_of

from headrace.catalog.definitions import Source

POISON = "poison"
TARGETS = (ORDERS, ORDERS, VISITS, CALLS, None)
SIZES = (1, 5, 20, 60)
MOST = 60
ACKNOWLEDGED_WITHIN_S = 100
PAUSE_S = (0.0, 0.0, 0.02, 0.05, 0.1)


def partition_of(event_id: Any, partitions: int) -> int:
    """Where the row of an id lands, or a line without one."""
    text = event_id.encode() if isinstance(event_id, str) else b"%d" % event_id
    return zlib.crc32(text) % partitions


class Pusher(threading.Thread):
    """One producer: batches of random rows to random sources (and `writes` into the plain view), each sent again until
    it is acknowledged; large ones without a pause while it is `hurrying`."""

    def __init__(
        self, number: int, seed: int, url: str, ledger: Ledger, hurrying: threading.Event, writes: bool
    ) -> None:
        super().__init__(daemon=True)
        self._targets = TARGETS if writes else TARGETS[:-1]
        self._rng = random.Random(f"pusher {number} {seed}")
        self._number = number
        self._http = httpx.Client(base_url=url, timeout=3)
        self._ledger = ledger
        self._serial = 0
        self.stopping = threading.Event()
        self.hurrying = hurrying
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                burst = self._rng.random() < 0.1
                for _ in range(10 if burst else 1):
                    target, size = self._rng.choice(self._targets), self._rng.choice(SIZES)
                    self.push_some(target, MOST if self.hurrying.is_set() else size)
                if not self.hurrying.is_set():
                    time.sleep(self._rng.choice(PAUSE_S))
        except BaseException as error:
            self.failure = error
        finally:
            self._http.close()

    def close(self) -> None:
        """One more batch to every partition, so that each has a head that came after every fault."""
        client, self._http = self._http, httpx.Client(base_url=str(self._http.base_url), timeout=3)
        client.close()
        for source in (*SOURCES, None):
            self.push_some(source, 40)
        self._http.close()

    def push_some(self, source: Source | None, n: int) -> None:
        """`n` rows to a source, None being the plain view's direct writes."""
        if source is None:
            rows = direct_rows(self._rng, n, present_us())
            self._deliver(WRITES, {row["word"]: row for row in rows}, self._write_request(rows))
            return
        rows = rows_of(self._rng, n, present_us())
        for row in rows:
            row["id"] = self._id_for(source)
        unique = {row["id"]: row for row in rows}
        poison = [orjson.dumps([POISON, self._number, self._serial]).decode()] if self._rng.random() < 0.1 else []
        request = self._push_request(source, list(unique.values()), poison)
        self._deliver(source.name, {**unique, **dict.fromkeys(poison)}, request, source.partitions)

    def _id_for(self, source: Source) -> Any:
        """A new id, or now and then one that was sent before."""
        self._serial += 1
        serial = self._serial if self._rng.random() < 0.95 else self._rng.randrange(1, self._serial + 1)
        return serial * 10 + self._number if source is VISITS else f"{self._number}-{serial}"

    def _push_request(self, source: Source, rows: list[dict[str, Any]], poison: list[str]) -> dict[str, Any]:
        if not poison and self._rng.random() < 0.5:
            df = {name: [row[name] for row in rows] for name in rows[0]}
            return {"url": "/push", "json": {"push_source_name": source.name, "df": df, "to": "online"}}
        lines = [orjson.dumps(row) for row in rows] + [line.encode() for line in poison]
        headers = {"content-type": "application/x-ndjson"}
        return {"url": "/push", "params": {"source": source.name}, "content": b"\n".join(lines), "headers": headers}

    def _write_request(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        df = {name: [row[name] for row in rows] for name in rows[0]}
        return {"url": "/write-to-online-store", "json": {"feature_view_name": LAST_CALL.name, "df": df}}

    def _deliver(self, name: str, rows: dict[Any, Any], request: dict[str, Any], partitions: int = 1) -> None:
        """Sends rows (None: a poisonous line) by their ids until they are acknowledged."""
        with self._ledger.lock:
            self._ledger.poison.update(event_id for event_id, row in rows.items() if row is None)
            for event_id, row in rows.items():
                self._ledger.sent.setdefault((name, event_id), []).append(row)
        parts = [(name, partition_of(event_id, partitions)) for event_id in rows]
        ends = {int(part): int(end.partition("-")[0]) for part, end in self._post(request, parts)["position"].items()}
        with self._ledger.lock:
            for event_id in rows:
                partition = partition_of(event_id, partitions)
                place = ((name, partition), ends[partition])
                self._ledger.acknowledged.setdefault((name, event_id), []).append(place)

    def _post(self, request: dict[str, Any], parts: list[Place]) -> Any:
        """The answer of the server, asked again until it is 200; `parts` has the place of every row."""
        deadline, last = time.monotonic() + ACKNOWLEDGED_WITHIN_S, ""
        for _ in self._until(deadline):
            try:
                reply = self._http.post(**request)
            except httpx.HTTPError as error:
                last = repr(error)
                self._note_unanswered(parts)
                continue
            last = f"{reply.status_code} {reply.text[:300]}"
            if reply.status_code == 200:
                return reply.json()
            self._ledger.full += "budget" in reply.text
            self._note_unanswered(parts)  # it may have been split, and accepted in part
            if reply.status_code != 503:
                self._ledger.refusals.append(f"{request['url']} {reply.status_code} {reply.text[:300]}")
        raise AssertionError(f"a push was not acknowledged within {ACKNOWLEDGED_WITHIN_S} s, at last: {last}")

    def _note_unanswered(self, parts: list[Place]) -> None:
        with self._ledger.lock:
            for place in parts:
                self._ledger.unanswered[place] = self._ledger.unanswered.get(place, 0) + 1

    def _until(self, deadline: float) -> Iterator[None]:
        while time.monotonic() < deadline:
            yield
            self._ledger.retries += 1
            time.sleep(self._rng.uniform(0.02, 0.3))
