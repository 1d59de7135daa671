"""Small records beside the tables of the offline store: JSON files that are there whole or not at all.

retained.json     {source: microseconds}: where the kept events of a source begin, once retention removed some
forgotten.json    what was forgotten (see tombstones.py)
appending.json    {"SOURCE|PARTITION": [after, upto]}: an append that may be under way (see materialize/in_doubt.py)
topics.json       {"SOURCE|PARTITION": [[position, offset]]}: where topics began anew (see kafka_epochs.py)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson

__all__ = ["APPENDING", "FORGOTTEN", "RETAINED", "TOPICS", "read_record", "remove_record", "write_record"]

APPENDING = "appending.json"
FORGOTTEN = "forgotten.json"
RETAINED = "retained.json"
TOPICS = "topics.json"


def read_record(root: Path, name: str) -> dict[str, Any]:
    """The record called `name` below `root`, empty where there is none."""
    try:
        found: dict[str, Any] = orjson.loads((root / name).read_bytes())
    except FileNotFoundError:
        return {}
    return found


def remove_record(root: Path, name: str) -> None:
    """As if it had never been."""
    (root / name).unlink(missing_ok=True)


def write_record(root: Path, name: str, record: dict[str, Any], outlives_machine: bool = True) -> None:
    """Replace the record; after a crash (of this process, or of the machine too) it is the old one or this one."""
    root.mkdir(parents=True, exist_ok=True)
    draft = root / f"{name}.{os.getpid()}"
    with draft.open("wb") as file:
        file.write(orjson.dumps(record))
        file.flush()
        if outlives_machine:
            os.fsync(file.fileno())
    draft.replace(root / name)
    if not outlives_machine:
        return
    folder = os.open(root, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
