"""Orders to forget and to import, and what the ledger is to know of them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from crash.ledger import Forgotten, Place
from crash.machine import Machine
from crash.operations import Operation
from crash.world import FORGETTABLE, ORDERS, present_us, rows_of
from scenario import SECOND_US, micros, ndjson

ROWS = 400
FILES = 3


def forget_operation(machine: Machine, rng: random.Random, kills: Sequence[float]) -> Operation:
    """Forgets a key, then has the views of other entities built anew, which go on counting its events until then."""
    who = rng.choice(FORGETTABLE)

    def learn(output: str) -> list[str] | None:
        if not output.startswith("{"):
            return None  # of the rebuild
        receipt: dict[str, Any] = json.loads(output)
        lines: dict[Place, int] = {}
        for name, offset in receipt["positions"].items():
            source, _, partition = name.rpartition("|")
            lines[source, int(partition)] = int(offset)
        with machine.ledger.lock:
            machine.ledger.forgotten.append(Forgotten(who, lines, micros(receipt["forgotten_up_to"])))
        others = receipt["still_in_until_rebuilt"]
        return ["rebuild", *others] if others else None

    words = ["forget", "who", who, "--json", "--timeout", "60"]
    return Operation(words, machine.env, kills, learn)


def import_operation(machine: Machine, rng: random.Random, kills: Sequence[float]) -> Operation:
    """Imports a folder of files with past orders, ids of their own."""
    number = len(machine.operations)
    folder = machine.folder / f"past{number}"
    folder.mkdir()
    for file in range(FILES):
        rows = rows_of(rng, ROWS, present_us() - rng.choice([400, 4_000]) * SECOND_US)
        for i, row in enumerate(rows):
            row["id"] = f"past{number}-{file}-{i}"
        with machine.ledger.lock:
            for row in rows:
                machine.ledger.sent.setdefault((ORDERS.name, row["id"]), []).append(row)
                machine.ledger.imported[ORDERS.name, row["id"]] = row
        (folder / f"{file}.ndjson").write_bytes(ndjson(rows))
    return Operation(["ingest", ORDERS.name, "--from", str(folder)], machine.env, kills)
