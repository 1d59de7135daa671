"""Who may ask for what: API keys, their scopes and their rates."""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path

from headrace.errors import SettingsError
from headrace.settings import Settings
from headrace.stores.api_keys import ApiKey, find_key, load_keys
from headrace.telemetry import get_logger
from serving.errors import WireError
from serving.guards.admission import TokenBucket

__all__ = ["OPEN_PATHS", "Access", "AccessError", "refuse_open_address", "scope_of"]

OPEN_PATHS = frozenset(("/health", "/ready"))
"""Whoever can reach the server may ask whether it is alive."""
_SCOPES = {"/push": "write", "/write-to-online-store": "write", "/predict": "predict"}
LOG_EVERY_S = 1.0

log = get_logger()


class AccessError(WireError):
    """A request that its caller may not make; `reason` is what is counted, `retry_s` after how long it may."""

    def __init__(self, status: int, reason: str, message: str, retry_s: float = 0.0) -> None:
        super().__init__(status, message)
        self.reason, self.retry_s = reason, retry_s


def scope_of(path: str) -> str:
    """What a key must allow for a path."""
    return _SCOPES.get(path, "read")


class Access:
    """The keys of one server process. Rates are divided among its `workers` processes: each lets its part through."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for a file that cannot be read."""
        self._path: Path | None = settings.api_keys
        self._workers = settings.workers
        self._keys: dict[str, ApiKey] = {}
        self._known: dict[bytes, ApiKey] = {}
        self._buckets: dict[str, TokenBucket] = {}
        self._read_at: tuple[int, int] | None = None
        self._logged_s = 0.0
        if self._path is not None:
            self._keys, self._read_at = load_keys(self._path), _stamp(self._path)

    @property
    def is_open(self) -> bool:
        """Whether nobody needs a key."""
        return self._path is None

    def reload(self) -> None:
        """Takes a file up that has changed; one that cannot be read leaves the keys as they were."""
        if self._path is None or _stamp(self._path) == self._read_at:
            return
        stamp = _stamp(self._path)
        try:
            keys = load_keys(self._path)
        except SettingsError as error:
            if stamp is not None:
                log.error("the file of API keys cannot be read; the keys stay as they were", error=str(error))
        else:
            self._keys, self._known = keys, {}
            self._buckets = {name: bucket for name, bucket in self._buckets.items() if name in keys}
            log.info("API keys reloaded", keys=len(keys))
        self._read_at = stamp

    def check(self, given: bytes | None, scope: str) -> None:
        """Raises AccessError unless the key allows `scope` now."""
        if self._path is None:
            return
        key = self._known.get(given) if given is not None else None
        if key is None:
            key = self._find(given)
        if key.expires_us and key.expires_us <= time.time_ns() // 1_000:
            raise self._refused(401, "expired", "The API key has ended; ask for another.")
        if scope not in key.scopes and "admin" not in key.scopes:
            raise self._refused(403, "scope", f"This needs a key with the scope {scope}, {key.name!r} has not.")
        if key.rate is not None:
            self._take(key)

    def _find(self, given: bytes | None) -> ApiKey:
        if given is None:
            raise self._refused(
                401, "no_key", "A request needs an API key; send it as X-API-Key or Authorization: Bearer."
            )
        key = find_key(self._keys, given)
        if key is None:
            raise self._refused(401, "wrong_key", "The API key is none of this server's; ask for one.")
        self._known[given] = key
        return key

    def _take(self, key: ApiKey) -> None:
        assert key.rate is not None
        bucket = self._buckets.get(key.id)
        if bucket is None or bucket.per_s != key.rate / self._workers:
            bucket = self._buckets[key.id] = TokenBucket(key.rate / self._workers)
        wait_s = bucket.take(time.monotonic())
        if wait_s:
            raise AccessError(429, "rate", f"{key.name!r} may make {key.rate:g} requests a second; wait.", wait_s)

    def _refused(self, status: int, reason: str, message: str) -> AccessError:
        now_s = time.monotonic()
        if now_s - self._logged_s >= LOG_EVERY_S:  # whoever knocks without end does not fill the disk
            self._logged_s = now_s
            log.warning("refused", reason=reason, status=status)
        return AccessError(status, reason, message)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def refuse_open_address(settings: Settings) -> None:
    """Without keys a server listens on loopback only, unless it is told otherwise. Raises SettingsError."""
    if settings.api_keys is not None or settings.open or _is_loopback(settings.host):
        return
    raise SettingsError(
        f"Without API keys a server listens on loopback only, got {settings.host!r}; set HEADRACE_API_KEYS to a file "
        "of keys (headrace keys new NAME), or HEADRACE_OPEN=1 if everybody who can reach it may read and write."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
