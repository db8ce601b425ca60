"""Whole, nested counts with given means, correlated between thresholds and between neighbouring pixels.

White fields of normal numbers are mixed by a small kernel, the square root of the wanted spectrum, and each correlated
normal number becomes the count that has the same quantile in Poisson's law. What is drawn are the counts between
neighbouring thresholds, which one photon cannot share, so that counters stay nested.

# Ref: normal numbers turned into others by their quantiles: M. C. Cario and B. L. Nelson 1997, NORTA, Northwestern
#      University. Correlations shrink by the first Hermite coefficients, and are asked for that much larger.
# Ref: quantiles of Poisson's law at large means: M. B. Giles 2016, ACM Trans. Math. Softw. 42, 7, from whose normal
#      expansion the first four terms are taken.

At means below about 0.05 between two thresholds no correlation of normal numbers is large enough; the counts are then
less correlated than asked for.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtri, pdtrc

from sim import strips, white
from sim.tables import CLASS_OF_PLACE, MEMBERS, PLACES, REACH

_LEAST_OCTAVE, _OCTAVES, _STEPS = -24, 28, 16
"""Means from 2^-24 to 16 in 16 steps per octave have tables; below nothing counts, above the expansion is used."""
_LARGE, _LEAST = np.float32(16), np.float32(2.0**_LEAST_OCTAVE)
_LEAST_BITS, _REST_BITS = _LEAST.view(np.int32), 23 - (_STEPS - 1).bit_length()
"""Bits of a float32 from the least mean on count steps; in the last so many stands what is left of a step."""
_GUESSED = np.float32(0.5)
"""From this mean on the expansion says where in the table to look first."""
_MOST = 47
"""No count beyond has a chance at a mean of 16."""
_WAVES = 8
"""Points of the grid of spatial frequencies along each axis; it must hold twice the reach of the kernel."""
_NEGLIGIBLE = 3e-4
_RING = 2 * REACH + 1


class Mixing(NamedTuple):
    """How counts hang together.

    Attributes
    ----------
    order : (n,) int64
        Counters family by family, each from its highest threshold to its lowest.
    ends : (n_families,) int64
        Where each family ends in ``order``.
    kernel : (n_places, n, n) float32
        What the normal numbers in one pixel of each class around a pixel contribute to its own, in that order.
    bond : (n, n) float32
        What dead time takes from their covariance at a load of 1.
    """

    order: NDArray[np.int64]
    ends: NDArray[np.int64]
    kernel: NDArray[np.float32]
    bond: NDArray[np.float32]


def independent(order: NDArray[np.int64], ends: NDArray[np.int64]) -> Mixing:
    """Return how counts hang together that only nesting binds."""
    n = len(order)
    return Mixing(order, ends, np.eye(n, dtype=np.float32)[None], np.zeros((n, n), dtype=np.float32))


def mixing_kernel(correlation: NDArray[np.floating], ends: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """Return a kernel that makes white fields correlated.

    Parameters
    ----------
    correlation : (n_places, n, n) float
        Between a pixel and one pixel of each class around it; in class 0 with ones in the diagonal.
    ends : (n_families,) int64, optional
        Where families end within which nothing is correlated in the same pixel: this is kept exactly, whatever
        correlations are asked for that cannot be together.

    Returns
    -------
    (n_places or less, n, n) float32
    """
    spectrum = np.einsum("kp,pij->kij", _waves()[0], correlation)
    values, vectors = np.linalg.eigh(0.5 * (spectrum + spectrum.transpose(0, 2, 1)))
    root = np.einsum("kia,ka,kja->kij", vectors, np.sqrt(values.clip(0)), vectors)
    kernel = np.einsum("kp,kij->pij", _waves()[1], root)
    kernel[np.abs(kernel) < _NEGLIGIBLE] = 0
    here = np.einsum("p,pik,pjk->ij", MEMBERS.astype(float), kernel, kernel)
    ends = np.arange(1, len(here) + 1) if ends is None else ends
    for first, end in zip([0, *ends[:-1]], ends, strict=True):
        values, vectors = np.linalg.eigh(here[first:end, first:end])
        kernel[:, first:end] = (vectors / np.sqrt(values.clip(1e-6))) @ vectors.T @ kernel[:, first:end]
    size = 1 + max((place for place in range(len(PLACES)) if kernel[place].any()), default=0)
    return np.ascontiguousarray(kernel[:size], dtype=np.float32)


@cache
def _waves() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return sums over each class of cosines at all frequencies, and what brings a spectrum back to a class."""
    along, across = np.triu_indices(_WAVES // 2 + 1)  # the others are their mirror images
    unit = 2 * np.pi / _WAVES
    to_waves = np.zeros((len(along), len(PLACES)))
    for row in range(-REACH, REACH + 1):
        for col in range(-REACH, REACH + 1):
            which = CLASS_OF_PLACE[row + REACH, col + REACH]
            to_waves[:, which] += np.cos(unit * (row * along + col * across))
    images = np.where(along % (_WAVES // 2), 2, 1) * np.where(across % (_WAVES // 2), 2, 1) * (1 + (along != across))
    averaged = 0.5 * np.stack(
        [
            np.cos(unit * row * along) * np.cos(unit * col * across)
            + np.cos(unit * col * along) * np.cos(unit * row * across)
            for row, col in PLACES
        ],
        axis=1,
    )
    return to_waves, averaged * images[:, None] / _WAVES**2


@cache
def _cuts() -> NDArray[np.float32]:
    """Return the normal numbers above which a count exceeds 0, 1, 2 ...: (means, _MOST) float32."""
    above = pdtrc(np.arange(_MOST)[None, :], _table_means()[:, None])
    return (-ndtri(above)).clip(-9, 9).astype(np.float32)


def shrinkage(mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much smaller than those of normal numbers the correlations of counts with these means are."""
    means, first = _first_coefficients()
    return np.interp(mean, means, first, left=first[0], right=1.0)


@cache
def _first_coefficients() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    cuts = _cuts().astype(float)
    means = _table_means()
    return means, np.exp(-0.5 * cuts**2).sum(axis=1) / np.sqrt(2 * np.pi * means)


def _table_means() -> NDArray[np.float64]:
    steps = np.arange(_OCTAVES * _STEPS + 1)
    return 2.0 ** (_LEAST_OCTAVE + steps // _STEPS) * (1 + steps % _STEPS / _STEPS)


def draw_counts(
    mean: NDArray[np.float32], load: NDArray[np.float32], mixing: Mixing, rng: np.random.Generator
) -> NDArray[np.uint32]:
    """Draw counts.

    Parameters
    ----------
    mean : (n, rows, cols) float32
    load : (rows, cols) float32
        How strongly dead time binds each pixel, as a multiple of what ``mixing.bond`` is for.
    mixing : Mixing
    rng : Generator
        The same generator gives the same counts, on any number of processors.

    Returns
    -------
    (n, rows, cols) uint32
    """
    counts, cuts = np.empty(mean.shape, dtype=np.uint32), _cuts()
    key = rng.integers(0, 2**64, dtype=np.uint64)
    has_bond = bool(mixing.bond.any()) and bool(load.any())

    def draw_strip(start: int, stop: int) -> None:
        _draw_strip(mean, load, mixing, has_bond, key, cuts, counts, start, stop)

    strips.in_parallel(draw_strip, mean.shape[1])
    return counts


@strips.quick
def _quantile_large(normal: np.float32, mean: np.float32) -> np.uint32:
    """Return the count that Poisson's law with a large mean has at the quantile of a normal number."""
    root, square = math.sqrt(mean), normal * normal
    at = (
        mean + root * normal + np.float32(1 / 3) + square * np.float32(1 / 6)
        - normal * (np.float32(1 / 36) + square * np.float32(1 / 72)) / root
    )  # fmt: skip
    return np.uint32(max(at, np.float32(0)))


@strips.quick
def _quantile_small(normal: np.float32, mean: np.float32, guess: np.uint32, cuts: np.ndarray) -> np.uint32:
    """Return the same for a small mean, from the table; ``guess`` is what the law with a large mean says."""
    if mean < _LEAST:
        return np.uint32(0)
    bits = np.int32(np.float32(mean).view(np.int32) - _LEAST_BITS)
    row, part = bits >> _REST_BITS, np.float32(bits & ((1 << _REST_BITS) - 1)) * np.float32(2.0**-_REST_BITS)
    lower, upper = cuts[row], cuts[row + 1]
    count = min(np.int64(guess), _MOST - 1) if mean > _GUESSED else 0
    while count < _MOST and lower[count] + part * (upper[count] - lower[count]) <= normal:
        count += 1
    while count > 0 and lower[count - 1] + part * (upper[count - 1] - lower[count - 1]) > normal:
        count -= 1
    return np.uint32(count)


@strips.quick
def _quantile(normal: np.float32, mean: np.float32, cuts: np.ndarray) -> np.uint32:
    large = _quantile_large(normal, mean)
    return large if mean >= _LARGE else _quantile_small(normal, mean, large, cuts)


@strips.quick
def _sum_around(field: np.ndarray, row: int, around: np.ndarray, near: np.ndarray, far: np.ndarray) -> None:
    """Sum a field over each class of pixels around those of a row: (n_places, n, cols) float32, places as in PLACES.

    ``field`` (_RING, n * (cols + 2 REACH) or more) holds the rows around in a ring; ``near`` and ``far`` are memory.
    """
    n_places, n, cols = around.shape
    for plane in range(n):
        span = slice(plane * len(near), (plane + 1) * len(near))
        itself, middle = around[0, plane], field[(row + 2) % _RING, span]
        for col in range(cols):
            itself[col] = middle[col + 2]
        if n_places == 1:
            continue
        low, high = field[(row + 1) % _RING, span], field[(row + 3) % _RING, span]
        lowest, highest = field[row % _RING, span], field[(row + 4) % _RING, span]
        for col in range(len(near)):
            near[col] = low[col] + high[col]
        for col in range(len(far)):
            far[col] = lowest[col] + highest[col]
        beside, corner, second = around[1, plane], around[2, plane], around[3, plane]
        knight, farthest = around[4, plane], around[5, plane]
        for col in range(cols):
            beside[col] = middle[col + 1] + middle[col + 3] + near[col + 2]
        for col in range(cols):
            corner[col] = near[col + 1] + near[col + 3]
        for col in range(cols):
            second[col] = middle[col] + middle[col + 4] + far[col + 2]
        for col in range(cols):
            knight[col] = near[col] + near[col + 4] + far[col + 1] + far[col + 3]
        for col in range(cols):
            farthest[col] = far[col] + far[col + 4]


@strips.quick
def _bind(normal: np.ndarray, load: np.ndarray, bond: np.ndarray, bound: np.ndarray) -> None:
    """Multiply by the square root of 1 - load * bond, to second order; ``bound`` (2, n, cols) is memory."""
    strips.multiply(bond, normal, bound[0])
    strips.multiply(bond, bound[0], bound[1])
    for i in range(len(normal)):
        once, twice, one = bound[0, i], bound[1, i], normal[i]
        for col in range(len(load)):
            one[col] -= load[col] * (np.float32(0.5) * once[col] + np.float32(0.125) * load[col] * twice[col])


@strips.quick
def _draw_nested(
    mean: np.ndarray, row: int, planes: np.ndarray, normal: np.ndarray, cuts: np.ndarray, step: np.ndarray,
    counts: np.ndarray,
) -> bool:  # fmt: skip
    """Draw one family of one row; return whether a pixel's thresholds stand in another order than those of the most."""
    is_disordered = False
    for i in range(len(planes)):
        here, one, found = mean[planes[i], row], normal[i], counts[planes[i], row]
        below, reached = mean[planes[max(i - 1, 0)], row], counts[planes[max(i - 1, 0)], row]
        n_small = n_negative = 0
        for col in range(len(step)):
            step[col] = here[col] - below[col] if i else here[col]
            n_small += step[col] < _LARGE
            n_negative += step[col] < 0
        for col in range(len(step)):
            found[col] = _quantile_large(one[col], step[col])
        if n_small:
            for col in range(len(step)):
                if step[col] < _LARGE:
                    found[col] = _quantile_small(one[col], step[col], found[col], cuts)
        if i:
            for col in range(len(step)):
                found[col] += reached[col]
        is_disordered |= n_negative > 0
    return is_disordered


@strips.quick
def _draw_sorted(
    mean: np.ndarray, row: int, col: int, planes: np.ndarray, normal: np.ndarray, cuts: np.ndarray, counts: np.ndarray
) -> None:
    """Draw one family of one pixel, from the least mean to the largest; ``planes`` is sorted so."""
    for i in range(1, len(planes)):
        j, plane = i, planes[i]
        while j > 0 and mean[planes[j - 1], row, col] > mean[plane, row, col]:
            planes[j] = planes[j - 1]
            j -= 1
        planes[j] = plane
    reached, drawn = np.float32(0), np.uint32(0)
    for i in range(len(planes)):
        drawn += _quantile(normal[i, col], mean[planes[i], row, col] - reached, cuts)
        reached = mean[planes[i], row, col]
        counts[planes[i], row, col] = drawn


@njit(cache=True, nogil=True)
def _draw_strip(
    mean: np.ndarray, load: np.ndarray, mixing: Mixing, has_bond: bool, key: np.uint64, cuts: np.ndarray,
    counts: np.ndarray, start: int, stop: int,
) -> None:  # fmt: skip
    n, _, cols = mean.shape
    size = -(-n // strips.TILE) * strips.TILE
    n_places = 1 if len(mixing.kernel) == 1 else len(PLACES)
    weights = np.zeros((size, n_places, size), dtype=np.float32)
    bond = np.zeros((size, size), dtype=np.float32)
    for i in range(n):  # each by itself: to assign arrays takes Numba seconds to compile
        for j in range(n):
            for which in range(len(mixing.kernel)):
                weights[i, which, j] = mixing.kernel[which, i, j]
            bond[i, j] = mixing.bond[i, j]
    weights = weights.reshape(size, n_places * size)

    width = cols + 2 * REACH
    field = np.empty((_RING, -(-n * width // white.BLOCK) * white.BLOCK), dtype=np.float32)
    state, bits = np.empty((4, white.LANES), dtype=np.uint32), np.empty(field.shape[1], dtype=np.uint32)
    around, near, far = (
        np.zeros((n_places, size, cols), np.float32),
        np.empty(width, np.float32),
        np.empty(width, np.float32),
    )
    sources = around.reshape(n_places * size, cols)
    normal, bound = np.empty((size, cols), dtype=np.float32), np.empty((2, size, cols), dtype=np.float32)
    step, planes = np.empty(cols, dtype=np.float32), np.empty(n, np.int64)
    for row in range(start, start + _RING - 1):
        white.fill_row(key, row, state, bits, field[row % _RING])
    for row in range(start, stop):
        last = row + _RING - 1
        white.fill_row(key, last, state, bits, field[last % _RING])
        _sum_around(field, row, around[:, :n], near, far)
        strips.multiply(weights, sources, normal)
        if has_bond:
            _bind(normal, load[row], bond, bound)
        first = 0
        for end in mixing.ends:
            order = mixing.order[first:end]
            if _draw_nested(mean, row, order, normal[first:end], cuts, step, counts):
                for col in range(cols):
                    for i in range(1, end - first):
                        if mean[order[i], row, col] < mean[order[i - 1], row, col]:
                            for k in range(len(order)):
                                planes[k] = order[k]
                            _draw_sorted(mean, row, col, planes[: end - first], normal[first:end], cuts, counts)
                            break
            first = end
