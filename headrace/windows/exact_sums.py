"""Sums of float64 without rounding, as integers, so that they come out the same in whatever order and parts.

A number is cut into limbs of 32 bits on one fixed grid: x = sum of limb[k] * 2^(32 k). Limbs are summed as int64, which
is exact for 2^31 numbers; a prefix sum of limbs can be subtracted, and neither a huge number nor many of them cost
their neighbours a digit. The total is rounded at the end, to one of the two nearest numbers.

After Neal, Fast exact summation using small and large superaccumulators, arXiv:1505.05571 (2015); the error of a
product by Veltkamp and Dekker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["Limbs", "carried", "iter_limbs", "iter_square_limbs", "squared_deviations", "total"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Limbs = Mapping[int, Ints]
"""Arrays of one length by the power of 2^32 that they count; a power that is not there is 0."""

BITS = 32
_LOW = (1 << BITS) - 1
_BLOCK = 16_384
_HUGE, _TINY = 2.0**400, 2.0**-400
_SCALE_LIMBS = 16
_SCALE = 2.0 ** (BITS * _SCALE_LIMBS)
_SPLITTER = 134_217_729.0


def iter_limbs(values: Floats) -> Iterator[tuple[int, Ints]]:
    """The limbs of n finite numbers, the highest first: (power of 2^32, int64 of n); those that are all 0 are left
    out."""
    rest = values.copy()
    top = _top(float(np.max(np.abs(rest), initial=0.0)))
    while top is not None:
        parts = np.empty(len(rest), np.int64)
        largest = 0.0
        for start in range(0, len(rest), _BLOCK):
            block = rest[start : start + _BLOCK]
            part = _scaled(block, -BITS * top).astype(np.int64)
            parts[start : start + _BLOCK] = part
            block -= _scaled(part.astype(np.float64), BITS * top)
            largest = max(largest, float(np.max(np.abs(block))))
        yield top, parts
        top = _top(largest)


def _top(largest: float) -> int | None:
    """The highest limb that a number of this size has."""
    return None if largest == 0.0 else (int(np.frexp(largest)[1]) - 1) // BITS


def _scaled(values: Floats, power: int) -> Floats:
    """values * 2^power."""
    scaled: Floats = values * 2.0**power if abs(power) < 1_000 else np.ldexp(values, power)
    return scaled


def iter_square_limbs(values: Floats) -> Iterator[tuple[int, Ints]]:
    """The limbs of the squares of n finite numbers; a power may come more than once."""
    size = np.abs(values)
    huge, tiny = size > _HUGE, (size < _TINY) & (size > 0)
    classes = [(values, 0)]
    if huge.any() or tiny.any():
        classes = [
            (np.where(huge | tiny, 0.0, values), 0),
            (np.where(huge, values, 0.0) / _SCALE, 2 * _SCALE_LIMBS),
            (np.where(tiny, values, 0.0) * _SCALE, -2 * _SCALE_LIMBS),
        ]
    for numbers, shift in classes:
        product = numbers * numbers
        for part in (product, _product_error(numbers, product)):
            for power, limb in iter_limbs(part):
                yield power + shift, limb


def _product_error(values: Floats, product: Floats) -> Floats:
    """What `product` lacks of values * values."""
    wide = values * _SPLITTER
    high = wide - (wide - values)
    low = values - high
    error: Floats = ((high * high - product) + 2.0 * high * low) + low * low
    return error


def carried(limbs: Limbs) -> dict[int, Ints]:
    """The same numbers with every limb in [0, 2^32) but the highest, which has the sign."""
    out: dict[int, Ints] = {}
    if not limbs:
        return out
    carry: Ints | int = 0
    power, last = min(limbs), max(limbs)
    while True:
        found = limbs.get(power)
        if found is None and not np.any(carry):
            if power > last:
                return out
            carry, power = 0, min(other for other in limbs if other >= power)
            continue
        limb = carry if found is None else found + carry
        assert isinstance(limb, np.ndarray)
        if power >= last and limb.min(initial=0) >= -(1 << (BITS - 1)) and limb.max(initial=0) < 1 << (BITS - 1):
            return out | {power: limb}
        out[power], carry = limb & _LOW, limb >> BITS
        power += 1


def total(limbs: Limbs, n: int) -> tuple[Floats, Floats]:
    """The n sums as float64, and what they lack of the exact ones; a sum beyond the range is infinite or not a number.

    It depends on the exact sums alone, not on how they are spread over limbs.
    """
    high, low = np.zeros(n), np.zeros(n)
    parts = carried(limbs)
    if not parts:
        return high, low
    negative = parts[max(parts)] < 0
    if negative.any():
        parts = carried({power: np.where(negative, -limb, limb) for power, limb in parts.items()})
    with np.errstate(over="ignore", invalid="ignore"):
        for power in sorted(parts, reverse=True):
            term = _scaled(parts[power].astype(np.float64), BITS * power)
            both = high + term
            low += term - (both - high)
            high = both
        both = high + low
        low = low - (both - high)
    sign = np.where(negative, -1.0, 1.0)
    return both * sign, low * sign


def squared_deviations(count: Ints, sums: Limbs, squares: Limbs) -> Floats:
    """The sum of squared deviations from the mean, sum(x^2) - sum(x)^2 / count, in twice the digits of a float64.

    `count` is int64 of n; 0 gives 0. What leaves the range of a float64 is infinite or not a number.
    """
    n = len(count)
    q, q_low = total(squares, n)
    s, s_low = total(sums, n)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        half = np.frexp(q)[1] // 2
        q, q_low = np.ldexp(q, -2 * half), np.ldexp(q_low, -2 * half)
        s, s_low = np.ldexp(s, -half), np.ldexp(s_low, -half)
        m = np.maximum(count, 1).astype(np.float64)
        square = s * s
        square_low = _product_error(s, square) + 2.0 * s * s_low
        mean = square / m
        mean_low = (square - mean * m - _two_product_error(mean, m, mean * m) + square_low) / m
        spread = (q - mean) + (q_low - mean_low)
        deviations: Floats = np.ldexp(np.where(spread < 0, 0.0, spread), 2 * half)
    return deviations


def _two_product_error(a: Floats, b: Floats, product: Floats) -> Floats:
    """What `product` lacks of a * b."""
    wide_a, wide_b = a * _SPLITTER, b * _SPLITTER
    a_high, b_high = wide_a - (wide_a - a), wide_b - (wide_b - b)
    a_low, b_low = a - a_high, b - b_high
    error: Floats = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return error
