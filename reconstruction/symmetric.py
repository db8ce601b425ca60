"""Symmetric matrices, one for each ray or voxel, packed: the rows of the upper triangle one after another.

Packed is (n_pairs, ...), whole is (n, n, ...): entries come first, as materials do everywhere.
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from reconstruction.backend import Array, namespace

SMALLEST_PIVOT = 1e-5
"""Packed in single precision, a matrix whose correlations leave less than this free has no inverse to speak of."""


def packed_size(n: int) -> int:
    """Return how many entries a symmetric n x n matrix has of its own."""
    return n * (n + 1) // 2


def order_of(packed: Array) -> int:
    """Return how many rows the matrices have that are packed here."""
    return (math.isqrt(8 * len(packed) + 1) - 1) // 2


def pairs(n: int) -> list[tuple[int, int]]:
    """Return which entries are stored, in their order: 00, 01, ..., 11, 12, ..."""
    return list(combinations_with_replacement(range(n), 2))


def place(i: int, j: int, n: int) -> int:
    """Return where entry (i, j) of a symmetric n x n matrix stands."""
    low, high = min(i, j), max(i, j)
    return low * n - low * (low - 1) // 2 + high - low


def unpacked(packed: Array) -> Array:
    """Return symmetric matrices whole: (n, n, ...), from (n_pairs, ...)."""
    n = order_of(packed)
    places = np.array([place(i, j, n) for i in range(n) for j in range(n)])
    return packed[places].reshape(n, n, *packed.shape[1:])


def packed(matrices: Array) -> Array:
    """Return the entries of symmetric matrices that are stored: (n_pairs, ...)."""
    xp = namespace(matrices)
    return xp.stack([matrices[i, j] for i, j in pairs(len(matrices))])


def inverse_packed(packed: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the packed inverse of packed positive matrices, by Cholesky; infinite where one has none."""
    n = order_of(packed)
    diagonal = np.stack([packed[place(k, k, n)] for k in range(n)]).astype(np.float64)
    is_sound = np.isfinite(packed).all(axis=0) & (diagonal > 0).all(axis=0)
    scale = 1 / np.sqrt(np.where(is_sound, diagonal, 1))
    lower: dict[tuple[int, int], NDArray[np.float64]] = {}
    for k in range(n):
        for i in range(k, n):
            value = np.where(is_sound, packed[place(i, k, n)] * scale[i] * scale[k], float(i == k))
            value = value - sum(lower[i, j] * lower[k, j] for j in range(k))
            if i == k:
                is_sound = is_sound & (value > SMALLEST_PIVOT)
                value = np.sqrt(np.where(value > SMALLEST_PIVOT, value, 1))
            lower[i, k] = value if i == k else value / lower[k, k]
    inverse: dict[tuple[int, int], NDArray[np.float64]] = {}  # of the factor
    for k in range(n):
        inverse[k, k] = 1 / lower[k, k]
        for i in range(k + 1, n):
            inverse[i, k] = -sum(lower[i, j] * inverse[j, k] for j in range(k, i)) / lower[i, i]
    result = np.empty(packed.shape, dtype=np.float32)
    for k in range(n):
        for i in range(k, n):
            value = scale[k] * scale[i] * sum(inverse[j, k] * inverse[j, i] for j in range(i, n))
            result[place(i, k, n)] = np.where(is_sound, value, np.inf)
    return result
