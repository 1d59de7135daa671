"""One round: start everything, push and watch, let faults happen, quiesce, compare."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from crash.chaos import FAULTS, ROUNDS, schedule
from crash.ledger import Ledger
from crash.machine import Machine
from crash.oracle import check_archive, check_values
from crash.pusher import ACKNOWLEDGED_WITHIN_S, Pusher
from crash.watcher import Watcher
from crash.world import HORIZON_US, catalog

PUSHERS = 2
SMALL_BUDGET = {"HEADRACE_STREAM_BUDGET": "120000", "HEADRACE_STREAM_KEEP": "0"}
SHORT_HORIZON_US = 2_000_000


@dataclass
class Round:
    """What a seed draws, and what came of it."""

    seed: int
    kinds: list[str]
    appendfsync: str
    clock: str
    workers: int
    horizon_us: int
    options: dict[str, str]
    done: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        setting = f"seed {self.seed}: appendfsync {self.appendfsync}, clock {self.clock}, {self.workers} workers"
        setting += "".join(f", {name.removeprefix('HEADRACE_').lower()} {v}" for name, v in self.options.items())
        return "\n  ".join([setting, *(note for _, note in self.done), *self.notes])


def draw(seed: int) -> Round:
    rng = random.Random(f"round {seed}")
    kinds = schedule(seed)
    workers = max(rng.choice([1, 2]), *(FAULTS[kind].workers for kind in kinds))
    appendfsync = "everysec" if seed % ROUNDS == ROUNDS - 1 else "always"
    clock = rng.choice(["wall", "event"])
    options = rng.choice([{}, {"HEADRACE_COMPACT_FILES": "4", "HEADRACE_VACUUM_AFTER_H": "0"}])
    if any(FAULTS[kind].needs_small_budget for kind in kinds):  # what is kept is told by the wall
        return Round(seed, kinds, appendfsync, "wall", workers, SHORT_HORIZON_US, {**options, **SMALL_BUDGET})
    return Round(seed, kinds, appendfsync, clock, workers, HORIZON_US, options)


def run(seed: int, folder: Path) -> Round:
    """Raises AssertionError for whatever does not hold, with the seed, what was done and the ends of the logs."""
    this = draw(seed)
    definitions = catalog(this.clock, this.horizon_us)
    machine = Machine(folder, definitions, this.workers, this.appendfsync, Ledger(), this.options)
    try:
        _run(this, machine)
    except Exception as error:
        raise AssertionError(f"{this}\n{error}\nlogs in {folder}\n{machine.tails()}") from error
    return this


def _run(this: Round, machine: Machine) -> None:
    rng = random.Random(f"chaos {this.seed}")
    ledger, writes = machine.ledger, this.horizon_us == HORIZON_US  # direct writes stay ten minutes in their stream
    with machine.running():
        pushers = [Pusher(n, this.seed, machine.url, ledger, machine.hurrying, writes) for n in range(PUSHERS)]
        watcher = Watcher(machine.url, machine.losses)
        for thread in (*pushers, watcher):
            thread.start()
        try:
            _hurt(this, machine, rng)
            machine.heal()
            machine.finish_operations()
        finally:
            machine.heal()
            this.notes += map(str, machine.operations)
            for pusher in pushers:
                pusher.stopping.set()
            for pusher in pushers:
                pusher.join(ACKNOWLEDGED_WITHIN_S + 10)
        _finish(this, machine, pushers, ledger)
        watcher.stopping.set()
        watcher.join(10)
        _conclude(this, machine, watcher, ledger, rng)


def _hurt(this: Round, machine: Machine, rng: random.Random) -> None:
    started = time.monotonic()
    for kind in this.kinds:
        time.sleep(rng.uniform(0.1, 0.8))
        at_s = time.monotonic() - started
        note = FAULTS[kind].action(machine, rng)
        this.done.append((kind, f"{at_s:5.1f} s {kind}: {note}"))
    time.sleep(rng.uniform(0.1, 0.5))


def _finish(this: Round, machine: Machine, pushers: list[Pusher], ledger: Ledger) -> None:
    for pusher in pushers:
        if pusher.failure is not None:
            raise pusher.failure
    machine.wait_until_ready()
    for pusher in pushers:
        pusher.close()
    streams = machine.wait_until_caught_up()
    lags = {name: row["lag"] for name, row in streams.items() if row["lag"]}
    this.notes.append(f"caught up; lag {lags or 'none'}; {ledger.retries} retries, {ledger.full} full")
    assert not ledger.refusals, f"pushes were refused: {ledger.refusals[:5]}"


def _conclude(this: Round, machine: Machine, watcher: Watcher, ledger: Ledger, rng: random.Random) -> None:
    history, lost = check_archive(machine, ledger)
    counted = sum(map(len, history.values()))
    starts = {child.name: child.starts for child in machine.children}
    this.notes.append(
        f"{len(ledger.sent)} events sent, {counted} counted, {lost} lost as allowed; starts {starts}; {watcher.replies}"
    )
    if machine.told:
        this.notes.append("; ".join(machine.told))
    check_values(machine, history, rng)
    assert not watcher.problems, "\n".join(watcher.problems[:5])
