"""What a feature service says of the log of its answers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from headrace.errors import DefinitionError

__all__ = ["LOG_RATE", "log_rate"]

LOG_RATE = "log_rate"
_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")


def log_rate(service: str, tags: Mapping[str, str]) -> float:
    """The share of a service's requests that are logged, 0 where it does not say. Raises DefinitionError for what is no
    share, and for a name that cannot be a folder's."""
    text = tags.get(LOG_RATE)
    if text is None:
        return 0.0
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise DefinitionError(
            f"The tag {LOG_RATE} is the share of requests to log, from 0 to 1, service {service!r} has {text!r}; "
            "write it like 0.01."
        )
    if rate and not _PLAIN.fullmatch(service):
        raise DefinitionError(
            f"A service that is logged has a name of letters, digits, '_', '-' and '.', got {service!r}; rename it, or "
            f"take the tag {LOG_RATE} out."
        )
    return rate
