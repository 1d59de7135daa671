"""What both sides of the materialization benchmark materialize: a view of one integer key and ten float features."""

from __future__ import annotations

__all__ = ["FEATURES", "TTL_S"]

FEATURES = 10
TTL_S = 30 * 86_400
"""How long a row counts in the view of which keys expire."""
