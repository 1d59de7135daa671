"""How many random scenarios the oracle judges: a few each time, thousands by night."""

from __future__ import annotations

import os

__all__ = ["oracle_seeds"]


def oracle_seeds(usual: int) -> range:
    """The seeds to play: `usual` of them, or HEADRACE_ORACLE_SEEDS."""
    return range(int(os.environ.get("HEADRACE_ORACLE_SEEDS", usual)))
