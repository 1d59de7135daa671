from __future__ import annotations

from serving.guards.breaker import FAILURES, LONGEST_REST_S, PROBE_S, Breaker


def opened() -> tuple[Breaker, list[bool]]:
    told: list[bool] = []
    breaker = Breaker(told.append)
    for _ in range(FAILURES):
        assert breaker.allows(0.0)
        breaker.failed(0.0)
    return breaker, told


def test_it_opens_after_some_failures_in_a_row_and_a_success_between_them_forgets_them() -> None:
    told: list[bool] = []
    breaker = Breaker(told.append)
    for _ in range(3):
        for _ in range(FAILURES - 1):
            breaker.failed(0.0)
        breaker.succeeded()
    assert not breaker.is_open and told == []
    breaker, told = opened()
    assert breaker.is_open and told == [True] and not breaker.allows(0.0)


def test_after_a_rest_one_request_is_let_through_and_its_success_closes_it() -> None:
    breaker, told = opened()
    later = LONGEST_REST_S
    assert breaker.allows(later) and not breaker.allows(later)
    breaker.succeeded()
    assert told == [True, False] and breaker.allows(later)


def test_a_probe_that_fails_rests_longer_and_one_that_is_lost_is_replaced() -> None:
    breaker, _ = opened()
    rests = []
    now_s = 0.0
    for _ in range(8):
        waited_s = 0.0
        while not breaker.allows(now_s + waited_s):
            waited_s += 0.01
        now_s += waited_s
        rests.append(waited_s)
        breaker.failed(now_s)
    assert rests[0] < rests[2] < rests[4] and max(rests) <= LONGEST_REST_S + 0.01
    assert breaker.allows(now_s + LONGEST_REST_S)
    assert not breaker.allows(now_s + LONGEST_REST_S + PROBE_S / 2)
    assert breaker.allows(now_s + LONGEST_REST_S + PROBE_S)
