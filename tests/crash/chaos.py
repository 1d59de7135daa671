"""What can go wrong: a table of faults, and the schedule that a seed draws from it.

A new kind is a function `(machine, rng) -> note` with `@fault(...)`; every five consecutive seeds from a multiple of
five meet every kind.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from crash.machine import LEASE_S, Machine, present_offset
from crash.operations import Operation, draw_kills
from crash.orders import forget_operation, import_operation
from crash.processes import Child, StoreProcess
from crash.world import ORDERS, VIEWS, VISITS

from headrace.stores.keys import stream_key
from headrace.stores.offline_records import APPENDING

ROUNDS = 5

Action = Callable[[Machine, random.Random], str]


@dataclass(frozen=True)
class Fault:
    """A kind: what it does, how many workers it takes, and whether streams that soon are full."""

    action: Action
    workers: int
    needs_small_budget: bool


FAULTS: dict[str, Fault] = {}


def fault(workers: int = 1, needs_small_budget: bool = False) -> Callable[[Action], Action]:
    def enter(action: Action) -> Action:
        FAULTS[action.__name__] = Fault(action, workers, needs_small_budget)
        return action

    return enter


def schedule(seed: int) -> list[str]:
    """The kinds of a round in their order: its share of the whole table, and one more."""
    deck = sorted(FAULTS)
    random.Random(f"deck {seed // ROUNDS}").shuffle(deck)
    rng = random.Random(f"schedule {seed}")
    mine = [*deck[seed % ROUNDS :: ROUNDS], rng.choice(["kill_worker", "kill_archiver", "kill_store"])]
    rng.shuffle(mine)
    return mine


@fault()
def kill_worker(machine: Machine, rng: random.Random) -> str:
    return _kill(rng, rng.choice(machine.workers))


@fault(workers=2)
def kill_worker_in_its_write(machine: Machine, rng: random.Random) -> str:
    """Some values of a batch are written, or all and the marker is not raised; the next one meets the same."""
    hits = 0
    for _ in range(3):
        worker = machine.active_worker()
        hits += _wait_for_write(machine, rng)
        worker.kill()
    return f"{hits} of 3"


@fault(workers=2)
def freeze_worker_in_its_write(machine: Machine, rng: random.Random) -> str:
    """The standby does the whole batch and more; then the frozen one goes on in the middle of it."""
    frozen = machine.active_worker()
    hit = _wait_for_write(machine, rng)
    frozen.freeze()
    time.sleep(LEASE_S + rng.uniform(0.5, 1))
    frozen.resume()
    return f"{frozen.name}, {'hit' if hit else 'missed'}"


def _wait_for_write(machine: Machine, rng: random.Random) -> bool:
    """Returns when a worker has read values, or written them, or raised a marker; whether one did."""
    project = machine.catalog.project.encode()
    moments = (
        rb'"HGET" "headrace:%b:',
        rb'"EVALSHA" "\w+" "\d+" "headrace:%b:',
        rb'"EVALSHA" "\w+" "1" "headrace.markers:%b" "source',
    )
    seen = machine.store.wait_for_command(rng.choice(moments) % project)
    time.sleep(rng.choice([0, 0, rng.uniform(0, 0.003)]))
    return seen


@fault()
def kill_archiver(machine: Machine, rng: random.Random) -> str:
    return _kill(rng, machine.archiver)


@fault()
def kill_server(machine: Machine, rng: random.Random) -> str:
    return _kill(rng, machine.server)


def _kill(rng: random.Random, child: Child) -> str:
    """Once, or again while it starts, builds or catches up."""
    times = rng.choice([1, 1, 1, 2])
    for _ in range(times):
        child.kill()
        time.sleep(rng.choice([0.05, rng.uniform(0, 2.5)]))
    return f"{child.name} x{times}"


@fault()
def kill_store(machine: Machine, rng: random.Random) -> str:
    """By `appendfsync always` nothing acknowledged is lost, by `everysec` what came within two seconds may be."""
    _begin_loss(machine)
    machine.store.kill()
    died = present_offset()
    if machine.appendfsync == "everysec":
        for place in machine.places:
            machine.losses.allow(place, died - (2_000 << 20), died)
    time.sleep(rng.uniform(0, 0.5))
    machine.store.start()
    machine.losses.epoch += 1
    return machine.appendfsync


@fault()
def kill_everything(machine: Machine, rng: random.Random) -> str:
    """As a power cut, but for the disk."""
    for child in rng.sample(machine.children, len(machine.children)):
        child.kill()
    return kill_store(machine, rng)


@fault()
def empty_store(machine: Machine, rng: random.Random) -> str:
    """The store comes back with nothing: what is archived must come back, what is not is lost."""
    _begin_loss(machine)
    machine.store.kill()
    died = present_offset()
    for place, offset in machine.archived().items():
        machine.losses.allow(place, offset, died)
    machine.store.lose_data()
    time.sleep(rng.uniform(0, 1.5))
    machine.store.start()
    return f"nothing left; {_end_loss(machine, rng)}"


@fault()
def fail_over(machine: Machine, rng: random.Random) -> str:
    """A replica that lags takes the master's place: what it had not received, and is not archived, is lost."""
    follower = machine.replica()
    time.sleep(rng.uniform(0, 0.5))
    return _promote(machine, follower, rng)


@fault(workers=2)
def fail_over_behind_a_frozen_worker(machine: Machine, rng: random.Random) -> str:
    """The frozen worker wakes before another store than the one it read from, beside the standby."""
    follower = machine.replica()
    frozen = machine.active_worker()
    time.sleep(rng.uniform(0, 0.5))
    frozen.freeze()
    note = _promote(machine, follower, rng)
    time.sleep(rng.uniform(0.5, 2))
    frozen.resume()
    return f"{note}, {frozen.name} frozen"


def _promote(machine: Machine, follower: StoreProcess, rng: random.Random) -> str:
    lag_s = rng.uniform(0.1, 1)
    follower.freeze()
    time.sleep(lag_s)
    _begin_loss(machine)
    machine.store.kill()
    died = present_offset()
    archived = machine.archived()
    follower.kill()
    promoted = StoreProcess(follower.folder, machine.store.port, "always")
    promoted.start()
    machine.replace_store(promoted)
    for place, offset in machine.heads(died).items():
        machine.losses.allow(place, max(offset, archived[place]), died)
    return f"{lag_s:.1f} s behind; {_end_loss(machine, rng)}"


@fault()
def trim_too_far(machine: Machine, rng: random.Random) -> str:
    """Somebody trims a stream that is not archived to its end: what is lost is told, to the event."""
    machine.archiver.freeze()
    time.sleep(rng.uniform(0.5, 1.5))
    place = rng.choice([place for place in machine.places if place[0] in (ORDERS.name, VISITS.name)])
    archived = machine.archived()[place]
    _begin_loss(machine)
    with machine.store.client() as client:
        gone = client.xtrim(stream_key(machine.catalog.project, *place), maxlen=1, approximate=False)
    machine.losses.allow(place, archived, present_offset(), is_counted=True)
    machine.archiver.resume()
    return f"{place[0]}|{place[1]}, {gone} entries; {_end_loss(machine, rng)}"


def _begin_loss(machine: Machine) -> None:
    machine.losses.epoch += 1


def _end_loss(machine: Machine, rng: random.Random) -> str:
    """After a while the operator accepts what is lost; until then values may fall."""
    time.sleep(rng.uniform(0, 1.5))
    said = machine.accept_losses()
    machine.losses.epoch += 1
    return said


@fault()
def freeze_store(machine: Machine, rng: random.Random) -> str:
    seconds = rng.uniform(0.5, 3)
    machine.store.freeze()
    time.sleep(seconds)
    machine.store.resume()
    return f"{seconds:.1f} s"


@fault(workers=2)
def freeze_worker_past_its_lease(machine: Machine, rng: random.Random) -> str:
    """The standby takes over; then both are alive, one of them with what it had read long before."""
    frozen = machine.active_worker()
    frozen.freeze()
    time.sleep(LEASE_S + rng.uniform(0.3, 1.2))
    frozen.resume()
    return frozen.name


@fault()
def freeze_archiver(machine: Machine, rng: random.Random) -> str:
    seconds = rng.uniform(0.5, 2)
    machine.archiver.freeze()
    time.sleep(seconds)
    machine.archiver.resume()
    return f"{seconds:.1f} s"


@fault()
def lose_store_in_the_archiver_s_commit(machine: Machine, rng: random.Random) -> str:
    """The archiver sleeps between its look at the stream and its commit; the store comes back with less, and the worker
    goes on without what is committed then."""
    hit = _freeze_in_commit(machine)
    note = rng.choice([empty_store, fail_over])(machine, rng)
    time.sleep(rng.uniform(0.5, 1.5))
    machine.archiver.resume()
    return f"{'hit' if hit else 'missed'}, {note}"


def _freeze_in_commit(machine: Machine, timeout_s: float = 6) -> bool:
    """Freezes the archiver when it has noted a commit, and not yet looked after it; whether it did."""
    note, deadline = machine.offline.root / APPENDING, time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if note.exists():
            machine.archiver.freeze()
            time.sleep(0.02)
            if note.exists():
                return True
            machine.archiver.resume()
        time.sleep(0.0005)
    machine.archiver.freeze()
    return False


@fault(workers=2)
def stutter(machine: Machine, rng: random.Random) -> str:
    """Many short freezes of workers and store, so that some fall between a read and its write."""
    times = rng.randrange(40, 80)
    for _ in range(times):
        frozen = rng.choice([*machine.workers, *machine.workers, machine.archiver, machine.store])
        frozen.freeze()
        time.sleep(rng.uniform(0.001, 0.05))
        frozen.resume()
        time.sleep(rng.uniform(0, 0.02))
    return f"x{times}"


@fault()
def fill_disk(machine: Machine, rng: random.Random) -> str:
    """The archiver cannot write a file of more than a few bytes; then it can."""
    size = rng.choice([0, 200, 1_500, 4_000])
    ends = len(machine.archiver.ends)
    machine.archiver.limit_files(size)
    time.sleep(rng.uniform(1.5, 3))
    machine.archiver.limit_files(-1)
    beside = "has one archiver" in machine.archiver.tail(100)  # that of an import
    died = [code for code in machine.archiver.ends[ends:] if code != -signal.SIGKILL and not (beside and code == 1)]
    assert not died, f"a full disk ended the archiver: {died}\n{machine.archiver.tail()}"
    return f"{size} B"


@fault()
def rebuild(machine: Machine, rng: random.Random) -> str:
    """A view, or two, anew, while it goes on serving."""
    names = [view.name for view in rng.sample(VIEWS, rng.choice([1, 2]))]
    return _operate(machine, rng, Operation(["rebuild", *names], machine.env, draw_kills(rng, 5)))


@fault()
def forget(machine: Machine, rng: random.Random) -> str:
    return _operate(machine, rng, forget_operation(machine, rng, draw_kills(rng, 3)))


@fault()
def ingest(machine: Machine, rng: random.Random) -> str:
    return _operate(machine, rng, import_operation(machine, rng, draw_kills(rng, 3)))


@fault()
def compact(machine: Machine, rng: random.Random) -> str:
    """By order, and then the archiver dies, perhaps in it."""
    note = _operate(machine, rng, Operation(["compact", "--all", "--timeout", "60"], machine.env, draw_kills(rng, 2)))
    time.sleep(rng.uniform(0.5, 2))
    return f"{note}; {_kill(rng, machine.archiver)}"


def _operate(machine: Machine, rng: random.Random, operation: Operation) -> str:
    """Lets a command begin; what comes next meets it at work."""
    machine.operate(operation)
    time.sleep(rng.choice([0, rng.uniform(0, 2)]))
    return " ".join(operation.arguments)


@fault(needs_small_budget=True)
def exhaust_budget(machine: Machine, rng: random.Random) -> str:
    """The archiver is down until pushes are refused, and a while longer; what is read stays right."""
    machine.finish_operations()
    before, began = machine.ledger.full, time.monotonic()
    machine.archiver.held = True
    machine.archiver.kill()
    machine.hurrying.set()
    while machine.ledger.full < before + 3:
        assert time.monotonic() < began + 40, "no push was refused though nothing is archived"
        time.sleep(0.05)
    machine.hurrying.clear()
    refused_s = time.monotonic() - began
    time.sleep(rng.uniform(0.5, 2))
    machine.archiver.held = False
    return f"refused after {refused_s:.1f} s"
