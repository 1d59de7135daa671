"""Leases: one process at a time has a role; another stands by and takes over when the holder is gone.

A lease keeps work from being done twice. It keeps nothing correct: whoever holds it may have lost it a moment ago (a
stopped process, a slow network), and the positions in the values make that harmless.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import orjson
import redis

from headrace.stores.keys import lease_key
from headrace.telemetry import get_logger

__all__ = ["Holder", "Lease", "holder"]

RENEWALS_PER_LEASE = 5
POLL_S = 0.2

_TAKE = """#!lua flags=allow-oom
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

log = get_logger()


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a role, and for how long if it is not renewed."""

    host: str
    process: int
    left_s: float

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


def holder(store: redis.Redis, project: str, role: str) -> Holder | None:
    """Who holds a role now, None for nobody."""
    key = lease_key(project, role)
    raw, left_ms = cast(bytes | None, store.get(key)), cast(int, store.pttl(key))
    if raw is None:
        return None
    held = orjson.loads(raw)
    return Holder(held["host"], held["process"], max(left_ms, 0) / 1_000)


class Lease:
    """One role of one project, for one process: a thread renews it while it is held."""

    def __init__(self, store: redis.Redis, project: str, role: str, seconds: float) -> None:
        self._store, self._project, self._role, self._seconds = store, project, role, seconds
        self._key = lease_key(project, role)
        self._value = orjson.dumps({"host": socket.gethostname(), "process": os.getpid(), "token": uuid.uuid4().hex})
        self._take = store.register_script(_TAKE)
        self._give_back = store.register_script(_RELEASE)
        self._until_s = 0.0
        self._stop = threading.Event()

    @property
    def held(self) -> bool:
        """Whether it was taken or renewed less than its length ago; a process that was stopped meanwhile sees no."""
        return time.monotonic() < self._until_s

    def take(self) -> bool:
        """Takes or renews it; whether it is this one's now. Raises redis.RedisError when nobody can tell."""
        asked_s = time.monotonic()
        taken = bool(self._take(keys=[self._key], args=[self._value, int(self._seconds * 1_000)]))
        self._until_s = asked_s + self._seconds if taken else 0.0
        return taken

    def wait(self, stop: threading.Event) -> bool:
        """Waits until it is held (True) or `stop` is set (False); says once whom it waits for."""
        said = False
        while not stop.is_set():
            with contextlib.suppress(redis.RedisError):
                if self.take():
                    return True
                if not said:
                    found = holder(self._store, self._project, self._role)
                    log.info(f"standing by: another {self._role} is at work", holder=str(found), lease_s=self._seconds)
                    said = True
            stop.wait(POLL_S)
        return False

    @contextlib.contextmanager
    def renewed(self) -> Iterator[None]:
        """Renews it from a thread for the length of the block, then gives it back."""
        thread = threading.Thread(target=self._renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            self._stop.clear()
            self.release()

    def release(self) -> None:
        """Gives it back, so that a standby takes over at once."""
        self._until_s = 0.0
        with contextlib.suppress(redis.RedisError):
            self._give_back(keys=[self._key], args=[self._value])

    def _renew(self) -> None:
        while not self._stop.wait(self._seconds / RENEWALS_PER_LEASE):
            try:
                if self.held and not self.take():
                    log.warning(f"the lease of the {self._role} was lost")
            except redis.RedisError as error:
                log.warning(f"the lease of the {self._role} could not be renewed", error=str(error))
