"""API keys at rest: a file with a hash of each, and who may do what by it.

A key is `hr_ID_SECRET`, both random: ID, 8 hex digits, names the record, SECRET has 256 bits. The file holds SHA-256 of
the secret; guessing it is hopeless, so nothing slower is needed. It is one JSON object, version and keys,
readable by its owner alone.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson

from headrace.errors import SettingsError

__all__ = ["SCOPES", "ApiKey", "add_key", "find_key", "load_keys", "revoke_keys"]

SCOPES = ("read", "write", "predict", "admin")
"""What a key may allow: lookups and reports; pushes and writes; predictions; everything."""
_VERSION = 1
_PREFIX = "hr_"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One record. `rate` is the most requests a second by it (None: any), `expires_us` when it ends, 0 for never."""

    id: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    rate: float | None = None
    created_us: int = 0
    expires_us: int = 0


def load_keys(path: Path) -> dict[str, ApiKey]:
    """The records by id. Raises SettingsError for a file that cannot be read as one of keys."""
    try:
        held = orjson.loads(path.read_bytes())
        if held["version"] != _VERSION:
            raise ValueError(f"version {held['version']!r}")
        keys = [ApiKey(**{**record, "scopes": tuple(record["scopes"])}) for record in held["keys"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SettingsError(
            f"HEADRACE_API_KEYS names a file of keys, {path} is none ({error}); make it by headrace keys new NAME."
        ) from None
    return {key.id: key for key in keys}


def find_key(keys: Mapping[str, ApiKey], given: bytes) -> ApiKey | None:
    """The record of a key as it was sent, None for a wrong one; takes the same time for each with a known id."""
    name, _, secret = given.decode("latin-1").removeprefix(_PREFIX).partition("_")
    key = keys.get(name)
    if key is None or not hmac.compare_digest(_hash(secret), key.hash):
        return None
    return key


def add_key(
    path: Path, name: str, scopes: Sequence[str], rate: float | None = None, expires_us: int = 0
) -> tuple[str, ApiKey]:
    """Adds a key to the file, which is made if it is not there; returns the key itself, which is nowhere else, and its
    record."""
    keys = load_keys(path) if path.exists() else {}
    secret = secrets.token_urlsafe(32)
    made = ApiKey(secrets.token_hex(4), name, _hash(secret), tuple(scopes), rate, time.time_ns() // 1_000, expires_us)
    _save(path, [*keys.values(), made])
    return f"{_PREFIX}{made.id}_{secret}", made


def revoke_keys(path: Path, names: Sequence[str]) -> list[ApiKey]:
    """Takes out the keys with these names or ids; returns them."""
    keys = load_keys(path).values()
    gone = [key for key in keys if key.name in names or key.id in names]
    _save(path, [key for key in keys if key not in gone])
    return [replace(key, hash="") for key in gone]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("latin-1")).hexdigest()


def _save(path: Path, keys: Sequence[ApiKey]) -> None:
    """Replaces the file: it is the old one or this one, and never anybody else's to read."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(orjson.dumps({"version": _VERSION, "keys": [asdict(key) for key in keys]}))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
