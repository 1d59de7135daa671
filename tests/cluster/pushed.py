"""Payments pushed to a live server, and what it must answer then."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from cluster.nodes import wait_until
from shop import Live, now

CARDS = [f"c{n}" for n in range(40)]


class Pushed:
    """What was pushed, by card."""

    def __init__(self, live: Live) -> None:
        self.live, self.counts, self.number = live, Counter[str](), 0

    def push(self, n: int) -> None:
        """Pushes, again and again while the store cannot take it; ids make a repeat harmless."""
        rows = []
        for _ in range(n):
            card = CARDS[self.number * 7 % len(CARDS)]
            rows.append({"id": f"p{self.number}", "card_id": card, "shop_id": 1, "amount": 0.5, "ts": now(-5)})
            self.number, self.counts[card] = self.number + 1, self.counts[card] + 1
        wait_until(lambda: self._try(rows))

    def _try(self, rows: list[dict[str, Any]]) -> bool:
        try:
            self.live.push(rows)
        except AssertionError:
            return False
        return True

    def assert_served(self) -> None:
        """Waits until a lookup gives every event once, and sees that it stays so."""
        expected = [self.counts[card] for card in CARDS]
        wait_until(lambda: self._counts() == expected, 40)
        for _ in range(5):
            time.sleep(0.1)
            assert self._counts() == expected

    def _counts(self) -> Any:
        body = {"feature_service": "card_v1", "entities": {"card_id": CARDS}}
        reply = self.live.http.post("/get-online-features", json=body)
        if reply.status_code != 200:
            return None
        results = dict(zip(reply.json()["metadata"]["feature_names"], reply.json()["results"], strict=True))
        assert results["sum_1h"]["values"] == [n / 2 or None for n in results["count_1h"]["values"]]
        return results["count_1h"]["values"]


class Watcher(threading.Thread):
    """Looks all cards up, over and over: what it is told must never shrink, and never be more than was pushed."""

    def __init__(self, pushed: Pushed) -> None:
        super().__init__()
        self.answers, self.refusals, self.wrong = 0, Counter[str](), list[str]()
        self._pushed, self._stop_asking = pushed, threading.Event()

    def run(self) -> None:
        seen = [0] * len(CARDS)
        while not self._stop_asking.wait(0.003):
            body = {"feature_service": "card_v1", "entities": {"card_id": CARDS}}
            reply = self._pushed.live.http.post("/get-online-features", json=body)
            if reply.status_code != 200:
                self.refusals[f"{reply.status_code} {reply.text}"] += 1
                continue
            found = reply.json()["results"][1]["values"]
            most = [self._pushed.counts[card] for card in CARDS]
            if any(was > is_ or is_ > pushed for was, is_, pushed in zip(seen, found, most, strict=True)):
                self.wrong.append(f"{seen} {found} {most}")
            seen, self.answers = found, self.answers + 1

    def stop(self) -> None:
        self._stop_asking.set()
        self.join()


class Pusher(threading.Thread):
    """Pushes a few payments, over and over; what is refused is pushed again."""

    def __init__(self, pushed: Pushed) -> None:
        super().__init__()
        self._pushed, self._stop_pushing = pushed, threading.Event()

    def run(self) -> None:
        while not self._stop_pushing.wait(0.01):
            self._pushed.push(8)

    def stop(self) -> None:
        self._stop_pushing.set()
        self.join()
