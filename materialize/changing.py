"""One command at a time changes a project's definitions: apply or rebuild."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from headrace.errors import UnavailableError
from materialize.lease import Lease, holder

__all__ = ["changed_by", "changing_definitions"]

ROLE = "definitions"
POLL_S = 0.1


@contextmanager
def changing_definitions(store: redis.Redis, project: str, lease_s: float) -> Iterator[None]:
    """Hold the project's definitions for the length of the block; one that died holding them is waited for,
    `lease_s` seconds.

    Raises UnavailableError while another command holds them. It spares two commands work; that neither overwrites the
    other's catalog is for `replace_catalog` to see to.
    """
    lease = Lease(store, project, ROLE, lease_s)
    until_s = time.monotonic() + lease_s + 1
    while not lease.take():
        found = holder(store, project, ROLE)
        if time.monotonic() > until_s:
            raise UnavailableError(
                f"The definitions are changed by one command at a time, {found or 'another one'} is changing those of "
                f"project {project!r}; let it end, or stop it: what it has built is taken up by the next."
            )
        threading.Event().wait(POLL_S)
    with lease.renewed():
        yield


def changed_by(store: redis.Redis, project: str) -> str | None:
    """Who is changing the project's definitions now."""
    found = holder(store, project, ROLE)
    return None if found is None else str(found)
