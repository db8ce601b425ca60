"""Rows of white noise: independent normal numbers, many at once, from a key and the number of the row.

A row is the same whoever asks for it, so that threads which draw different rows of a field need no common generator,
and agree on the rows that both need.

# Ref: random bits by xoshiro128++ in LANES streams side by side: D. Blackman and S. Vigna 2021, ACM Trans. Math. Softw.
#      47, 36, each started by SplitMix64: G. L. Steele, D. Lea, C. H. Flood 2014, OOPSLA, 453.
# Ref: pairs of normal numbers: G. E. P. Box and M. E. Muller 1958, Ann. Math. Stat. 29, 610. Logarithm, sine and cosine
#      are polynomials through the Chebyshev points, good to 5e-8.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

LANES = 32
BLOCK = 2 * LANES
"""A row has a multiple of so many numbers."""
_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_BETWEEN_ROWS = np.uint64(0xD1342543DE82EF95)
_ROOT_HALF, _MANTISSA = np.int32(0x3F3504F3), np.int32(0x7FFFFF)
"""The bits of the square root of 1/2, and which of a float32's bits are its mantissa."""
_LN_2, _TO_QUARTER_TURNS = np.float32(math.log(2)), np.float32(2.0**-31)


def _float32(*coefficients: float) -> tuple[np.float32, ...]:
    return tuple(np.float32(c) for c in coefficients)


_LOG_1P = _float32(
    0.0874394535, -0.143773306, 0.149490955, -0.16560696, 0.199569775, -0.250021535, 0.333341833, -0.49999987, 1
)
_SIN, _COS = (
    _float32(0.000151675118, -0.00467415067, 0.0796899226, -0.64596376, 1.57079632),
    _float32(0.000858162543, -0.0208105714, 0.25365071, -1.23369821, 1),
)
"""ln(1 + x) / x; sin(x) / x and cos(x) as polynomials of x squared, x in quarter turns; highest powers first."""

_inlined = njit(inline="always")


@_inlined
def _polynomial(coefficients: tuple[np.float32, ...], x: np.float32) -> np.float32:
    value = np.float32(0)
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # pyright: ignore[reportCallIssue]
def _fill_bits(key: np.uint64, row: int, state: np.ndarray, bits: np.ndarray) -> None:
    """Fill with random bits: (n,) uint32, n a multiple of LANES; ``state`` (4, LANES) uint32 is memory."""
    counter = np.uint64(key) + np.uint64(row) * _BETWEEN_ROWS
    for lane in range(LANES):
        for half in range(2):
            counter += _GOLDEN
            z = (counter ^ (counter >> np.uint64(30))) * _FIRST
            z = (z ^ (z >> np.uint64(27))) * _SECOND
            z ^= z >> np.uint64(31)
            state[2 * half, lane], state[2 * half + 1, lane] = np.uint32(z), np.uint32(z >> np.uint64(32))
    first, second, third, fourth = state[0], state[1], state[2], state[3]
    for start in range(0, len(bits), LANES):
        block = bits[start:]
        for lane in range(LANES):
            a, b, c, d = first[lane], second[lane], third[lane], fourth[lane]
            total, shifted = np.uint32(a + d), np.uint32(b << np.uint32(9))
            turned = np.uint32(np.uint32(total << np.uint32(7)) | np.uint32(total >> np.uint32(25)))
            block[lane] = np.uint32(turned + a)
            c, d = np.uint32(c ^ a), np.uint32(d ^ b)
            second[lane], first[lane], third[lane] = np.uint32(b ^ c), np.uint32(a ^ d), np.uint32(c ^ shifted)
            fourth[lane] = np.uint32(np.uint32(d << np.uint32(11)) | np.uint32(d >> np.uint32(21)))


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, fastmath={"contract", "nsz", "arcp"})  # pyright: ignore[reportCallIssue]
def fill_row(key: np.uint64, row: int, state: np.ndarray, bits: np.ndarray, numbers: np.ndarray) -> None:
    """Fill with the normal numbers of a row.

    Parameters
    ----------
    key : uint64
        Tells fields apart.
    row : int
    state, bits : (4, LANES) and (n,) uint32
        Memory to work in.
    numbers : (n,) float32
        Where n is a multiple of BLOCK.
    """
    _fill_bits(key, row, state, bits)
    n_pairs = len(numbers) // 2
    ones, others, first, second = bits[:n_pairs], bits[n_pairs:], numbers[:n_pairs], numbers[n_pairs:]
    for i in range(n_pairs):
        # The logarithm of (k + 1/2) / 2^31: the float's exponent counts its octaves, the mantissa is from sqrt(1/2) up.
        uniform = np.float32(np.float32(np.int32(ones[i] >> np.uint32(1))) + np.float32(0.5))
        above = np.int32(uniform.view(np.int32) - _ROOT_HALF)
        mantissa = np.int32(np.int32(above & _MANTISSA) + _ROOT_HALF).view(np.float32) - np.float32(1)
        octaves = np.float32(np.int32(np.int32(above >> np.int32(23)) - np.int32(31)))
        logarithm = mantissa * _polynomial(_LOG_1P, mantissa) + octaves * _LN_2
        radius = math.sqrt(max(np.float32(-2) * logarithm, np.float32(0)))
        # Half a turn, and the bit that the uniform number left says whether it is the other half.
        radius = -radius if ones[i] & np.uint32(1) else radius
        angle = np.float32(np.int32(others[i])) * _TO_QUARTER_TURNS
        square = angle * angle
        first[i] = radius * _polynomial(_COS, square)
        second[i] = radius * (angle * _polynomial(_SIN, square))
