"""What a caller may know of an answer besides its values, as JSON holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.moments import rfc3339
from headrace.read.online.results import LookupResult
from headrace.read.tiers import Tier

__all__ = ["full_metadata", "moments"]

Ints = NDArray[np.int64]


def full_metadata(result: LookupResult) -> dict[str, Any]:
    """`t` per row; the catalog's version; and by view the positions that its values hold at least, the watermark,
    whether a window is warming, the tier that answered, and per row its age: the seconds from the newest event behind
    it to t, null without one."""
    t_us = result.t_us
    views = {
        name: {
            **_of_view(view, t_us, np.asarray(result.rows[name].times_us, np.int64)),
            **_tiers([row[number] for row in result.tiers]),
        }
        for number, (name, view) in enumerate(result.details["views"].items())
    }
    return {"t": moments(t_us), "catalog_version": result.plan.catalog.version, "views": views}


def _of_view(view: Mapping[str, Any], t_us: Ints, newest_us: Ints) -> dict[str, Any]:
    ages = ((t_us - newest_us) / 1e6).tolist()
    watermark_us = view["watermark_us"]
    return {
        "positions": view["positions"],
        "watermark": None if watermark_us is None else rfc3339(watermark_us),
        "warming": view["warming"],
        "age_s": [age if held else None for age, held in zip(ages, (newest_us != 0).tolist(), strict=True)],
    }


def _tiers(rows: Sequence[Tier]) -> dict[str, Any]:
    """`tier`: that of all rows, or `mixed`; of a degraded answer also `tiers` and `t`, per row."""
    if not rows:
        return {"tier": "store"}
    names = [tier.name for tier in rows]
    tier = names[0] if len(set(names)) == 1 else "mixed"
    return {"tier": tier, "tiers": names, "t": [rfc3339(row.t_us) for row in rows]}


def moments(times_us: Ints) -> list[str]:
    """RFC 3339 text of every moment."""
    return [rfc3339(us) for us in times_us.tolist()]
