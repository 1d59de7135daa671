"""The position protocol holds in every play of the model, and each rule of it is needed."""

from __future__ import annotations

from itertools import count, product

import pytest
from simulation.protocol_model import Play, Rules

SIZES = [(1, 1), (1, 2), (2, 2), (3, 2)]
"""(shards, partitions)."""
RARE = {
    "completed views are counted": 4_030,
    "the archiver does not look back": 550,
    "a lookup takes a value of a newer build for none": 1_480,
}
"""The first seed to try, where one in hundreds shows it."""
ACCIDENTS = ["", "killed", "fails over", "fails over, loses more", "flush", "restart_empty", "apply"]

WRONG = {
    "a write compares positions instead of the header": (Rules(compare="positions"), "batch job was lost"),
    "a write does not compare": (Rules(compare="nothing"), "lacks"),
    "batch numbers and a fencing token instead of positions": (Rules(merged_up_to="batch number"), "twice ['e"),
    "the marker rises before the values are acknowledged": (Rules(raise_marker="before"), "lacks"),
    "a worker resumes from the newest marker": (Rules(resume="newest"), "lacks"),
    "values do not know their build": (Rules(builds=False), "lacks"),
    "markers rise for whatever build or catalog": (Rules(guarded=False), "lacks"),
    "completed views are counted": (Rules(told_apart_by="count"), "lacks"),
    "the archiver does not look back": (Rules(archiver_looks_back=False), "lacks"),
    "a lookup takes a value of a newer build for none": (Rules(lookup_refuses_newer=False), "lacks"),
}


@pytest.mark.parametrize(("shards", "partitions"), SIZES)
def test_every_event_that_survives_counts_once(shards: int, partitions: int) -> None:
    for seed in range(150):
        assert not Play(seed, Rules(), shards, partitions).run(), f"seed {seed}"


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_two_workers_meet_at_every_pair_of_moments(accident: str) -> None:
    for first, second in product(range(0, 45, 2), range(0, 45, 5)):
        assert not Play(0, Rules(), 1, 1).meet(first, accident, second), (first, second)


@pytest.mark.parametrize("wrong", WRONG)
def test_the_protocol_without_one_of_its_rules_is_found_out(wrong: str) -> None:
    rules, expected = WRONG[wrong]
    for seed in count(RARE.get(wrong, 0)):
        assert seed < 10_000, "no violation was found"
        shards, partitions = SIZES[seed % len(SIZES)]
        if any(expected in violation for violation in Play(seed, rules, shards, partitions).run()):
            return
