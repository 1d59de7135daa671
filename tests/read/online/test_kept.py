from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

from headrace.read.online.kept import FORGOTTEN_PER_KEY, REFRESH_US, KeptValues
from headrace.read.online.reads import Asked

READS: Any = SimpleNamespace(number=7)
MARKS: Any = [SimpleNamespace(), SimpleNamespace()]


def keep(kept: KeptValues, keys: list[str], t_us: int, marks: Any = MARKS[0]) -> None:
    asked = Asked(len(keys), [keys], [[list(range(len(keys)))]])
    replies = [[], *[[f"{key} at {t_us}".encode(), None] for key in keys]]
    kept.keep(READS, asked, replies, SimpleNamespace(marks=marks, times_us=[t_us] * len(keys)), t_us + 1)  # type: ignore[arg-type]


def test_the_latest_values_are_found_with_their_moment_and_their_markers() -> None:
    kept = KeptValues(100)
    keep(kept, ["a", "b"], 5)
    keep(kept, ["b"], 9 + REFRESH_US, MARKS[1])
    keep(kept, ["a", "b"], 20)  # too soon after
    a, b = kept.find(READS, 0, "a"), kept.find(READS, 0, "b")
    assert a is not None and (a.held, a.t_us, a.kept_us, a.marks) == ((b"a at 5", None), 5, 6, MARKS[0])
    assert b is not None and (b.t_us, b.kept_us, b.marks) == (9 + REFRESH_US, 10 + REFRESH_US, MARKS[1])
    assert kept.find(READS, 0, "c") is None and kept.find(READS, 1, "a") is None
    assert kept.find(SimpleNamespace(number=8), 0, "a") is None  # type: ignore[arg-type]  # another catalog's plan


def test_no_more_than_so_many_keys_are_kept_and_those_of_the_latest_answers_are() -> None:
    kept = KeptValues(100)
    for number in range(1_000):
        keep(kept, [f"k{number}"], number)
        assert len(kept) <= 101
    assert all(kept.find(READS, 0, f"k{number}") for number in range(951, 1_000))
    assert kept.find(READS, 0, "k800") is None
    assert sum(map(len, kept._dying)) <= 51 - FORGOTTEN_PER_KEY or not kept._dying


def test_what_is_kept_gives_the_garbage_collector_nothing_to_follow() -> None:
    kept = KeptValues(10_000)
    gc.collect()
    before = len(gc.get_objects())
    for number in range(4_000):
        keep(kept, [f"k{number}"], number)
    gc.collect()
    assert len(gc.get_objects()) - before < 1_000


def test_nothing_is_kept_where_nothing_may_be() -> None:
    kept = KeptValues(0)
    keep(kept, ["a"], 1)
    assert len(kept) == 0 and kept.find(READS, 0, "a") is None
