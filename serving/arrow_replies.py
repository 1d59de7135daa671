"""Feature vectors as one Arrow record batch, for callers who accept it."""

from __future__ import annotations

from fastapi import Response

from headrace.read.lookup import LookupResult
from headrace.read.online.full_metadata import full_metadata
from headrace.read.online.vector_batches import vector_bytes

__all__ = ["ARROW", "arrow_response", "wants_arrow"]

ARROW = "application/vnd.apache.arrow.stream"


def wants_arrow(accept: str) -> bool:
    """Whether a request's Accept header names Arrow, and not as less welcome than JSON."""
    if ARROW not in accept.lower():
        return False
    weights: dict[str, float] = {}
    for item in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        weights[kind] = _weight(parameters)
    return weights.get(ARROW, 0.0) >= max(weights.get("application/json", 0.0), 1e-9)


def _weight(parameters: list[str]) -> float:
    text = next((item[2:] for item in parameters if item.startswith("q=")), "1")
    try:
        return float(text)
    except ValueError:
        return 0.0


def arrow_response(result: LookupResult, full: bool) -> Response:
    """One record batch as an Arrow IPC stream (see headrace.read.online.vector_batches for its columns)."""
    return Response(vector_bytes(result, full_metadata(result) if full else None), media_type=ARROW)
