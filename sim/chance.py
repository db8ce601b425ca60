"""Random numbers inside compiled kernels, which NumPy's generators would serve by a call for each.

# Ref: random bits by xoshiro256++: D. Blackman and S. Vigna 2021, ACM Trans. Math. Softw. 47, 36; 16 of them each
#      choose one of as many normal numbers of equal chance, of which every 16th is kept and the others lie between.
# Ref: directions from points in a disc: G. Marsaglia 1972, Ann. Math. Stat. 43, 645.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtri

_inlined = njit(inline="always", error_model="numpy")
_TAIL, _FINER = 256, 1024
"""The outermost of 65536 normal numbers are split: what has a chance below 0.004 has it to 1.5e-8."""
_LAST = 0xFFFF
_EVERY = 16
_ONE = np.uint64(1)


class Dice(NamedTuple):
    """A source of random numbers, for one thread.

    Attributes
    ----------
    state : (4,) uint64
    normals : (4097,) float32
        The normal numbers between parts of equal chance.
    tail : (_TAIL, _FINER) float32
        Finer ones for the lower tail.
    """

    state: NDArray[np.uint64]
    normals: NDArray[np.float32]
    tail: NDArray[np.float32]


def dice(rng: np.random.Generator) -> Dice:
    """Return a source that starts where a generator says."""
    return Dice(rng.integers(0, 2**64, 4, dtype=np.uint64), *_normals())


@cache
def _normals() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    chance = np.arange(0, _LAST + 2, _EVERY) / (_LAST + 1)
    fine = (np.arange(_TAIL * _FINER) + 0.5) / (_FINER * (_LAST + 1))
    return ndtri(chance).astype(np.float32), ndtri(fine).astype(np.float32).reshape(_TAIL, _FINER)


@_inlined
def _bits(state: np.ndarray) -> np.uint64:
    a, b, c, d = state[0], state[1], state[2], state[3]
    total = a + d
    bits = ((total << np.uint64(23)) | (total >> np.uint64(41))) + a
    shifted = b << np.uint64(17)
    c ^= a
    d ^= b
    state[1], state[0] = b ^ c, a ^ d
    state[2], state[3] = c ^ shifted, (d << np.uint64(45)) | (d >> np.uint64(19))
    return bits


@_inlined
def uniform(dice: Dice) -> float:
    """Return a number from 0 up to 1."""
    return (_bits(dice.state) >> np.uint64(11)) * (1 / (1 << 53))


@_inlined
def two(dice: Dice) -> tuple[float, float]:
    """Return two numbers from 0 up to 1, multiples of 2^-32."""
    bits = _bits(dice.state)
    return (bits >> np.uint64(32)) * (1 / (1 << 32)), np.uint32(bits) * (1 / (1 << 32))


@_inlined
def three(dice: Dice) -> tuple[float, float, float]:
    """Return three numbers from 0 up to 1, multiples of 2^-21."""
    bits, last = _bits(dice.state), np.uint64((1 << 21) - 1)
    part = 1 / (1 << 21)
    return (bits >> np.uint64(43)) * part, ((bits >> np.uint64(22)) & last) * part, ((bits >> _ONE) & last) * part


@_inlined
def exponential(dice: Dice) -> float:
    """Return an exponential number of mean 1; the smallest are multiples of 6e-8."""
    return -math.log(np.float32(1 - uniform(dice)))


@_inlined
def normal(dice: Dice) -> np.float32:
    """Return a normal number."""
    return _normal_of(_bits(dice.state) >> np.uint64(48), dice)


@_inlined
def _normal_of(which: np.uint64, dice: Dice) -> np.float32:
    node, part = np.int32(which) >> 4, np.float32(np.int32(which) & (_EVERY - 1)) + np.float32(0.5)
    low, high = dice.normals[node], dice.normals[node + 1]
    number = low + part * np.float32(1 / _EVERY) * (high - low)
    if which < np.uint64(_TAIL):
        number = dice.tail[which, _bits(dice.state) >> np.uint64(54)]
    elif np.uint64(_LAST) - which < np.uint64(_TAIL):
        number = -dice.tail[np.uint64(_LAST) - which, _bits(dice.state) >> np.uint64(54)]
    return number


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # pyright: ignore[reportCallIssue]
def fill_normal(numbers: np.ndarray, dice: Dice) -> None:
    """Fill with normal numbers: (n,) float32."""
    for start in range(0, len(numbers), 4):
        bits = _bits(dice.state)
        for i in range(start, min(start + 4, len(numbers))):
            numbers[i] = _normal_of(bits & np.uint64(_LAST), dice)
            bits >>= np.uint64(16)


@_inlined
def direction(dice: Dice) -> tuple[float, float, float]:
    """Return a direction in space: a unit vector."""
    square = x = y = 1.0
    while square >= 1:
        x, y = two(dice)
        x, y = 2 * x - 1, 2 * y - 1
        square = x * x + y * y
    across = 2 * math.sqrt(1 - square)
    return x * across, y * across, 1 - 2 * square
