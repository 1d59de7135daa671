"""Small records beside the tables of the offline store: JSON files that are there whole or not at all.

retained.json     {source: microseconds}: where the kept events of a source begin, once retention removed some
forgotten.json    what was forgotten (see tombstones.py)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson

__all__ = ["FORGOTTEN", "RETAINED", "read_record", "write_record"]

FORGOTTEN = "forgotten.json"
RETAINED = "retained.json"


def read_record(root: Path, name: str) -> dict[str, Any]:
    """The record called `name` below `root`, empty where there is none."""
    try:
        found: dict[str, Any] = orjson.loads((root / name).read_bytes())
    except FileNotFoundError:
        return {}
    return found


def write_record(root: Path, name: str, record: dict[str, Any]) -> None:
    """Replace the record; after a crash it is the old one or this one."""
    root.mkdir(parents=True, exist_ok=True)
    draft = root / f"{name}.{os.getpid()}"
    with draft.open("wb") as file:
        file.write(orjson.dumps(record))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(root / name)
    folder = os.open(root, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
