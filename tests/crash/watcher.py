"""A reader that asks throughout: it may be refused, it may never be told less than before, nor an error of ours."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
from crash.machine import Losses
from crash.world import FORGETTABLE, ORDERS_BY_WHO, TOTAL, WHO

FEATURE = f"{ORDERS_BY_WHO.name}:{TOTAL}"


class Watcher(threading.Thread):
    """Asks for the lifetime count of every key, which can only rise, but where a fault may have cost events, or a key
    was forgotten."""

    def __init__(self, url: str, losses: Losses) -> None:
        super().__init__(daemon=True)
        self._http = httpx.Client(base_url=url, timeout=5)
        self._losses = losses
        self._least = dict.fromkeys(WHO, 0)
        self._epoch = -1
        self.stopping = threading.Event()
        self.problems: list[str] = []
        self.replies: dict[int, int] = {}

    def run(self) -> None:
        while not self.stopping.wait(0.05):
            epoch = self._losses.epoch
            try:
                reply = self._http.post("/get-online-features", json={"features": [FEATURE], "entities": {"who": WHO}})
            except httpx.HTTPError:
                continue
            self.replies[reply.status_code] = self.replies.get(reply.status_code, 0) + 1
            if reply.status_code == 200 and epoch == self._losses.epoch and epoch % 2 == 0:
                self._compare(epoch, reply.json())
            elif reply.status_code not in (200, 503):
                self.problems.append(f"a lookup was answered {reply.status_code}: {reply.text[:300]}")
        self._http.close()

    def _compare(self, epoch: int, reply: Any) -> None:
        counts = dict(zip(WHO, reply["results"][1]["values"], strict=True))
        if epoch == self._epoch:
            fallen = {who: (self._least[who], n) for who, n in counts.items() if n < self._least[who]}
            fallen = {who: change for who, change in fallen.items() if who not in FORGETTABLE}
            if fallen:
                self.problems.append(f"counts fell at {time.strftime('%X')} (from, to): {fallen}")
        self._epoch, self._least = epoch, counts
