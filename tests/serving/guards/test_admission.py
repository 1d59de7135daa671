from __future__ import annotations

import pytest

from serving.guards.admission import Admission, TokenBucket
from serving.guards.heads import Priority

LATE_S, IN_TIME_S = 0.1, 0.0


def shares(admission: Admission, tries: int = 2_000) -> list[float]:
    """By priority, the share of requests that are refused."""
    return [sum(admission.refuses(priority) is not None for _ in range(tries)) / tries for priority in Priority]


def test_the_least_important_are_refused_first_as_the_loop_lags() -> None:
    admission, seen = Admission(1_000, 0.01), []
    for _ in range(12):
        seen.append(shares(admission))
        admission.feel(0.05)
    assert seen[0] == [0.0, 0.0, 0.0] and seen[-1] == pytest.approx([0.75, 1.0, 1.0], abs=0.05)
    for critical, normal, batch in seen:
        assert critical == 0 or normal == 1
        assert normal == 0 or batch == 1
    assert seen[2][2] == pytest.approx(0.5, abs=0.05)


def test_the_pressure_falls_to_nothing_once_the_loop_is_in_time() -> None:
    admission = Admission(1_000, 0.01)
    for _ in range(1_000):
        admission.feel(LATE_S)
    assert shares(admission, 100) == [1.0, 1.0, 1.0]
    for _ in range(400):  # of 5 ms: two seconds
        admission.feel(IN_TIME_S)
    assert shares(admission, 100) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("under_way, refused", [(4, []), (5, ["batch"]), (8, ["normal", "batch"]), (10, list("cnb"))])
def test_the_last_places_are_kept_for_what_matters(under_way: int, refused: list[str]) -> None:
    admission = Admission(10, 1.0)
    admission.under_way = under_way
    found = [priority.name for priority in Priority if admission.refuses(priority) == "concurrency"]
    assert [name[0] for name in found] == [name[0] for name in refused]


def test_a_bucket_lets_through_its_rate_and_says_how_long_to_wait() -> None:
    bucket = TokenBucket(10.0)
    assert [bucket.take(0.0) for _ in range(11)] == [0.0] * 10 + [pytest.approx(0.1)]
    passed = sum(bucket.take(0.001 * i) == 0.0 for i in range(10_000))
    assert passed == pytest.approx(100, abs=1)


def test_a_loop_that_has_time_to_sleep_is_not_overloaded_and_one_that_spins_is() -> None:
    import asyncio
    import time

    async def play(work_s: float, rest_s: float) -> float:
        admission = Admission(1_000, 0.000_001)  # any lag is too much
        admission.enter()
        ends_s = time.monotonic() + 0.5
        while time.monotonic() < ends_s:
            until_s = time.monotonic() + work_s
            while time.monotonic() < until_s:
                pass
            await asyncio.sleep(rest_s)
        return admission.pressure

    assert asyncio.run(play(0.0005, 0.01)) == 0.0
    assert asyncio.run(play(0.005, 0.0)) > 0.0
