"""The lookup's reply from its columns, value by value: what the server's writer must equal."""

from __future__ import annotations

from typing import Any

from headrace.read.lookup import LookupResult
from headrace.read.online.full_metadata import full_metadata, moments
from headrace.read.online.vector_batches import STATUSES
from serving.replies import Timestamps, plain_values


def plain_reply(result: LookupResult, full: bool = False, times: Timestamps = "seconds") -> dict[str, Any]:
    metadata: dict[str, Any] = {"feature_names": result.names} | (full_metadata(result) if full else {})
    columns = zip(result.columns, result.statuses, result.timestamps_us, strict=True)
    results = [
        {
            "values": plain_values(values, times),
            "statuses": [STATUSES[code] for code in statuses.tolist()],
            "event_timestamps": moments(timestamps),
        }
        for values, statuses, timestamps in columns
    ]
    return {"metadata": metadata, "results": results}
