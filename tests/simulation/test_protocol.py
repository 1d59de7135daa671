"""The position protocol holds in every play of the model, and each rule of it is needed."""

from __future__ import annotations

from itertools import count, product
from typing import Literal

import pytest
from simulation.protocol_model import Play, Rules

SIZES = [(1, 1), (1, 2), (2, 2), (3, 2)]
"""(shards, partitions)."""
RARE = {
    "completed views are counted": 4_030,
    "the archiver looks before its commit alone": 101,
    "a lookup takes a value of a newer build for none": 1_480,
}
"""The first seed to try, where one in hundreds shows it."""
ACCIDENTS = ["", "killed", "fails over", "fails over, loses more", "flush", "restart_empty", "apply"]

OFTEN: Literal["after it and at every start"] = "after it and at every start"
"""Views are then begun anew more often, which is what some wrong rules need to be found."""

WRONG = {
    "a write compares positions instead of the header": (Rules(compare="positions"), "batch job was lost"),
    "a write does not compare": (Rules(compare="nothing"), "lacks"),
    "batch numbers and a fencing token instead of positions": (Rules(merged_up_to="batch number"), "twice ['e"),
    "the marker rises before the values are acknowledged": (Rules(raise_marker="before"), "lacks"),
    "a worker resumes from the newest marker": (Rules(resume="newest"), "lacks"),
    "values do not know their build": (Rules(builds=False), "lacks"),
    "markers rise for whatever build or catalog": (Rules(guarded=False), "lacks"),
    "completed views are counted": (Rules(told_apart_by="count", archiver_looks=OFTEN), "lacks"),
    "the archiver looks before its commit alone": (Rules(archiver_looks="before it"), "lacks"),
    "a lookup takes a value of a newer build for none": (
        Rules(lookup_refuses_newer=False, archiver_looks=OFTEN),
        "lacks",
    ),
}


@pytest.mark.parametrize(("shards", "partitions"), SIZES)
def test_every_event_that_survives_counts_once(shards: int, partitions: int) -> None:
    for seed in range(150):
        assert not Play(seed, Rules(), shards, partitions).run(), f"seed {seed}"


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_two_workers_meet_at_every_pair_of_moments(accident: str) -> None:
    for first, second in product(range(0, 45, 2), range(0, 45, 5)):
        assert not Play(0, Rules(), 1, 1).meet(first, accident, second), (first, second)


def passings(rules: Rules) -> dict[tuple[str, bool], list[tuple[int, int]]]:
    """By accident, and whether the archiver is killed then: the moments of archiver and worker at which what was
    archived is missing online."""
    found: dict[tuple[str, bool], list[tuple[int, int]]] = {}
    for accident, killed in product(["flush", "restart_empty", "fails over"], [False, True]):
        for first, second in product(range(1, 6), range(0, 40, 8)):
            if Play(0, rules, 1, 1).pass_by(first, accident, second, killed):
                found.setdefault((accident, killed), []).append((first, second))
    return found


def test_a_commit_that_comes_after_the_stream_has_lost_it_is_never_passed_by() -> None:
    assert passings(Rules()) == {}
    assert ("flush", False) in passings(Rules(archiver_looks="before it"))
    assert ("flush", True) in passings(Rules(notes_doubt=False))


@pytest.mark.parametrize("wrong", WRONG)
def test_the_protocol_without_one_of_its_rules_is_found_out(wrong: str) -> None:
    rules, expected = WRONG[wrong]
    for seed in count(RARE.get(wrong, 0)):
        assert seed < 10_000, "no violation was found"
        shards, partitions = SIZES[seed % len(SIZES)]
        if any(expected in violation for violation in Play(seed, rules, shards, partitions).run()):
            return
