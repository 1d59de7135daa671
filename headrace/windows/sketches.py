"""Sketches that give the same answer for the same events, in whatever order and parts they came.

Distinct counts: HyperLogLog of 2^11 registers over a 64-bit hash, typically within 2.3 %, with the estimator of
Ertl, New cardinality estimation algorithms for HyperLogLog sketches, arXiv:1702.01284 (2017).
Percentiles: DDSketch, within 1 % of the value, after Masson, Rim, Lee, DDSketch: a fast and fully-mergeable quantile
sketch with relative-error guarantees, VLDB 12 (2019). Bucket bounds are powers of gamma by repeated multiplication,
which IEEE 754 fixes to the last bit, so every machine puts a value into the same bucket.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

__all__ = [
    "RANKS",
    "REGISTERS",
    "buckets",
    "estimate_distinct",
    "estimate_reached",
    "hashes",
    "midpoints",
    "registers",
    "value_bits",
]

Ints = NDArray[np.int64]

_PRECISION = 11
REGISTERS = 1 << _PRECISION
_MOST_RANK = 64 - _PRECISION + 1
RANKS = _MOST_RANK + 1
"""A register's rank is less; 0 is that of an empty one."""

_ACCURACY = 0.01
_GAMMA = (1 + _ACCURACY) / (1 - _ACCURACY)


def value_bits(column: pa.Array) -> Ints:
    """64 bits that stand for each value (nulls: 0): the number itself, a float's bits, a string's hash."""
    if pa.types.is_string(column.type):
        return _string_hashes(column)
    if pa.types.is_floating(column.type):
        floats = np.asarray(pc.fill_null(column.cast(pa.float64()), 0.0)) + 0.0  # -0.0 is 0.0
        return floats.view(np.int64)
    bits: Ints = np.asarray(pc.fill_null(column.cast(pa.int64()), 0))
    return bits


def _string_hashes(column: pa.Array) -> Ints:
    coded = pc.dictionary_encode(column)
    digests = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
        for text in coded.dictionary.to_pylist()
    ]
    table = np.array([0, *digests], np.int64)
    hashed: Ints = table[np.asarray(coded.indices.fill_null(-1)) + 1]
    return hashed


def hashes(bits: Ints) -> NDArray[np.uint64]:
    """Well-mixed 64-bit hashes of value bits (the finalizer of SplitMix64)."""
    mixed = bits.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def registers(bits: Ints) -> tuple[Ints, Ints]:
    """Each value's register, 0 to REGISTERS - 1, and its rank, 1 to 54."""
    mixed = hashes(bits)
    register = (mixed >> np.uint64(64 - _PRECISION)).astype(np.int64)
    rest = mixed << np.uint64(_PRECISION)
    high, low = (rest >> np.uint64(32)).astype(np.float64), (rest & np.uint64(0xFFFFFFFF)).astype(np.float64)
    length = np.where(high > 0, 32 + np.frexp(high)[1], np.frexp(low)[1])
    return register, np.minimum(64 - length + 1, _MOST_RANK).astype(np.int64)


def estimate_distinct(ranks: NDArray[Any]) -> Ints:
    """How many distinct values each row of registers (n, REGISTERS; 0 is empty) has seen, rounded."""
    n = len(ranks)
    flat = ranks.astype(np.int64) + np.arange(n)[:, None] * RANKS
    return _estimate(list(np.bincount(flat.ravel(), minlength=n * RANKS).reshape(n, RANKS).T))


def estimate_reached(reached: Sequence[Ints]) -> Ints:
    """The same from how many registers of each row have a rank of at least 0, 1 and so on: int64 arrays of n, ranks
    that none has reached may be left out."""
    rows = [*reached, np.zeros_like(reached[0])]
    counts = [one - more for one, more in pairwise(rows)]
    return _estimate([*counts, *[rows[-1]] * (RANKS - len(counts))])


def _estimate(counts: Sequence[Ints]) -> Ints:
    """From how many registers of each row have the rank 0, 1 and so on: RANKS arrays of n."""
    total = REGISTERS * _tau(1 - counts[_MOST_RANK] / REGISTERS)
    for rank in range(_MOST_RANK - 1, 0, -1):
        total = 0.5 * (total + counts[rank])
    total = total + REGISTERS * _sigma(counts[0] / REGISTERS)
    with np.errstate(divide="ignore"):
        estimate: NDArray[np.float64] = REGISTERS * REGISTERS / (2 * np.log(2.0)) / total
    return np.rint(estimate).astype(np.int64)


def _sigma(x: NDArray[np.float64]) -> NDArray[np.float64]:
    full = x == 1.0
    x, y = np.where(full, 0.0, x), np.ones_like(x)
    z, before = x.copy(), np.full_like(x, -1.0)
    while (z != before).any():
        x, before = x * x, z
        z, y = z + x * y, y + y
    return np.where(full, np.inf, z)


def _tau(x: NDArray[np.float64]) -> NDArray[np.float64]:
    none = (x == 0.0) | (x == 1.0)
    x, y = np.where(none, 0.5, x), np.ones_like(x)
    z, before = 1 - x, np.full_like(x, -1.0)
    while (z != before).any():
        x, before, y = np.sqrt(x), z, 0.5 * y
        z = z - (1 - x) ** 2 * y
    return np.where(none, 0.0, z / 3)


@lru_cache(maxsize=1)
def _bounds() -> NDArray[np.float64]:
    """gamma^i for every i that a float64 can reach, rising, and the largest float64 itself."""
    up, down = [1.0], [1.0]
    while up[-1] * _GAMMA < np.inf:
        up.append(up[-1] * _GAMMA)
    while down[-1] / _GAMMA > np.finfo(np.float64).tiny:
        down.append(down[-1] / _GAMMA)
    return np.array([*down[:0:-1], *up, np.finfo(np.float64).max])


def buckets(values: NDArray[np.float64]) -> Ints:
    """The bucket of each finite value; buckets rise with their values, 0 holds what is next to zero."""
    size = np.abs(values)
    number = np.searchsorted(_bounds(), size, side="left") + 1
    near_zero = size < np.finfo(np.float64).tiny
    rising: Ints = np.where(near_zero, 0, np.where(values > 0, number, -number))
    return rising


def midpoints(bucket: Ints) -> NDArray[np.float64]:
    """The value that stands for each bucket: within 1 % of every value in it."""
    bounds = _bounds()
    upper = np.where(bucket == 0, 0.0, bounds[np.maximum(np.abs(bucket) - 1, 0)])
    middle = upper * (2 / (_GAMMA + 1))
    return np.where(bucket < 0, -middle, middle)
