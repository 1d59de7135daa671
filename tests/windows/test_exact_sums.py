from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.windows.exact_sums import carried, iter_limbs, iter_square_limbs, squared_deviations, total

FLOATS = (
    st.floats(-1e12, 1e12)
    | st.floats(-1e150, 1e150)
    | st.sampled_from([0.1, 1e-9, -0.0, 5e-324, 2.0**-1022, 2.0**52 + 1, 1e300, -1e300])
)


def added(values: list[float]) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """The sums of limbs of the values and of their squares."""
    sums, squares = {}, {}
    for held, limbs in ((sums, iter_limbs), (squares, iter_square_limbs)):
        for power, limb in limbs(np.array(values)):
            held[power] = held.get(power, 0) + np.array([limb.sum()])
    return sums, squares


@given(st.lists(FLOATS, min_size=1, max_size=40))
@settings(deadline=None)
def test_sums_are_rounded_at_the_end(values: list[float]) -> None:
    high, low = total(added(values)[0], 1)
    exact = sum(map(Fraction, values))
    assert abs(high[0] - math.fsum(values)) <= np.spacing(abs(high[0]))
    assert abs(Fraction(float(high[0])) + Fraction(float(low[0])) - exact) <= abs(exact) / 2**100


@given(st.lists(FLOATS, min_size=1, max_size=40), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_parts_leave_no_trace(values: list[float], rng: object) -> None:
    whole = total(added(values)[0], 1)
    cut = len(values) // 2
    shuffled = sorted(values, key=lambda _: rng.random())  # type: ignore[attr-defined]
    parts = [added(part)[0] for part in (shuffled[:cut], shuffled[cut:]) if part]
    both: dict[int, np.ndarray] = {}
    for part in parts:
        for power, limb in carried(part).items():
            both[power] = both.get(power, 0) + limb
    assert [part.tolist() for part in total(both, 1)] == [part.tolist() for part in whole]


@given(st.lists(FLOATS, min_size=1, max_size=30))
@settings(deadline=None)
def test_deviations_are_those_of_fractions(values: list[float]) -> None:
    exact = [Fraction(value) for value in values]
    centre, squares = sum(exact) / len(exact), sum(value * value for value in exact)
    truth = sum((value - centre) ** 2 for value in exact)
    with np.errstate(all="ignore"):
        found = float(squared_deviations(np.array([len(values)]), *added(values))[0])
    if squares >= Fraction(2) ** 1023:  # beyond a float64
        assert not math.isfinite(found)
    else:
        assert abs(Fraction(found) - truth) <= squares / 10**15 + Fraction(1, 10**300)


def test_a_large_mean_leaves_a_small_variance_its_digits() -> None:
    values = [1e9 + i * 1e-3 for i in range(10)]
    exact = [Fraction(value) for value in values]
    truth = float(sum((value - sum(exact) / 10) ** 2 for value in exact))
    found = squared_deviations(np.array([10]), *added(values))[0]
    assert abs(found - truth) <= 1e-6 * truth
