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
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtri, pdtrc

from sim import chance
from sim.tables import CLASS_OF_PLACE, MEMBERS, PLACES, REACH

_LEAST_OCTAVE, _OCTAVES, _STEPS = -24, 28, 16
"""Means from 2^-24 to 16 in 16 steps per octave have tables; below nothing counts, above the expansion is used."""
_LARGE = 16.0
_MOST = 47
"""No count beyond has a chance at a mean of 16."""
_WAVES = 8
"""Points of the grid of spatial frequencies along each axis; it must hold twice the reach of the kernel."""
_NEGLIGIBLE = 3e-4


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
    n, rows, cols = mean.shape
    white = np.empty((n, rows + 2 * REACH, cols + 2 * REACH), dtype=np.float32)
    halves = [(half.reshape(-1), chance.dice(rng)) for half in (white[: n // 2], white[n // 2 :])]
    in_parallel(lambda half: chance.fill_normal(*half), halves)
    counts = np.zeros(mean.shape, dtype=np.uint32)
    cuts, has_bond = _cuts(), bool(mixing.bond.any()) and bool(load.any())

    def draw_strip(strip: tuple[int, int]) -> None:
        _draw_strip(mean, load, mixing, has_bond, white, cuts, CLASS_OF_PLACE, counts, strip[0], strip[1])

    in_parallel(draw_strip, strips(rows))
    return counts


@cache
def _pool() -> ThreadPoolExecutor | None:
    # Threads of our own, not Numba's: the chip is exposed from whatever thread reads the bus, and Numba's portable
    # threading layer does not bear two callers at once.
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(n, thread_name_prefix="sensor") if n > 1 else None


def in_parallel(work: Callable[[Any], object], parts: Sequence[Any]) -> None:
    """Do the same to several parts, on all processors."""
    pool = _pool()
    if pool is None:
        for part in parts:
            work(part)
    else:
        list(pool.map(work, parts))


def strips(rows: int) -> list[tuple[int, int]]:
    """Return the rows in two halves, each from and up to."""
    return [(0, rows // 2), (rows // 2, rows)]


@njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"})
def _quantile_large(normal: np.float32, mean: np.float32) -> np.uint32:
    """Return the count that Poisson's law with a large mean has at the quantile of a normal number."""
    root, square = math.sqrt(mean), normal * normal
    at = (
        mean + root * normal + np.float32(1 / 3) + square * np.float32(1 / 6)
        - normal * (np.float32(1 / 36) + square * np.float32(1 / 72)) / root
    )  # fmt: skip
    return np.uint32(max(at, np.float32(0)))


@njit(cache=True, nogil=True)
def _quantile_small(normal: np.float32, mean: np.float32, cuts: np.ndarray) -> np.uint32:
    """Return the same for a small mean, from the table."""
    if mean < 2.0**_LEAST_OCTAVE:
        return np.uint32(0)
    fraction, octave = math.frexp(mean)
    step = (2 * fraction - 1) * _STEPS
    row = min((octave - 1 - _LEAST_OCTAVE) * _STEPS + int(step), len(cuts) - 2)
    part = step - int(step)
    count = min(int(max(mean + normal * math.sqrt(mean), 0.0)), _MOST - 1)
    while count < _MOST and cuts[row, count] + part * (cuts[row + 1, count] - cuts[row, count]) <= normal:
        count += 1
    while count > 0 and cuts[row, count - 1] + part * (cuts[row + 1, count - 1] - cuts[row, count - 1]) > normal:
        count -= 1
    return np.uint32(count)


@njit(cache=True, nogil=True)
def _quantile(normal: np.float32, mean: np.float32, cuts: np.ndarray) -> np.uint32:
    return _quantile_large(normal, mean) if mean >= _LARGE else _quantile_small(normal, mean, cuts)


@njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp", "reassoc"})
def _mix(
    white: np.ndarray, kernel: np.ndarray, class_of_place: np.ndarray, row: int, around: np.ndarray, normal: np.ndarray
) -> None:
    """Give one row its correlated normal numbers: (n, cols) float32."""
    n, cols = normal.shape
    around[:] = 0
    for down in range(class_of_place.shape[0]):
        for right in range(class_of_place.shape[1]):
            which = class_of_place[down, right]
            if which < len(kernel):
                for plane in range(n):
                    for col in range(cols):
                        around[which, plane, col] += white[plane, row + down, col + right]
    normal[:] = 0
    for which in range(len(kernel)):
        for i in range(n):
            for j in range(n):
                weight = kernel[which, i, j]
                if weight != 0:
                    for col in range(cols):
                        normal[i, col] += weight * around[which, j, col]


@njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp", "reassoc"})
def _bind(normal: np.ndarray, load: np.ndarray, bond: np.ndarray, bound: np.ndarray) -> None:
    """Multiply by the square root of 1 - load * bond, to second order; ``bound`` (2, n, cols) is memory."""
    n, cols = normal.shape
    bound[:] = 0
    for i in range(n):
        for j in range(n):
            for col in range(cols):
                bound[0, i, col] += bond[i, j] * load[col] * normal[j, col]
    for i in range(n):
        for j in range(n):
            for col in range(cols):
                bound[1, i, col] += bond[i, j] * load[col] * bound[0, j, col]
    for i in range(n):
        for col in range(cols):
            normal[i, col] -= np.float32(0.5) * bound[0, i, col] + np.float32(0.125) * bound[1, i, col]


@njit(cache=True, nogil=True)
def _draw_sorted(
    mean: np.ndarray, row: int, col: int, order: np.ndarray, normal: np.ndarray, first: int, cuts: np.ndarray,
    counts: np.ndarray,
) -> None:  # fmt: skip
    """Draw one family of one pixel whose thresholds stand in another order than those of the most."""
    place = order.copy()
    for i in range(1, len(place)):
        j, plane = i, place[i]
        while j > 0 and mean[place[j - 1], row, col] > mean[plane, row, col]:
            place[j] = place[j - 1]
            j -= 1
        place[j] = plane
    reached, drawn = np.float32(0), np.uint32(0)
    for i in range(len(place)):
        drawn += _quantile(normal[first + i, col], mean[place[i], row, col] - reached, cuts)
        reached = mean[place[i], row, col]
        counts[place[i], row, col] = drawn


@njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"})
def _draw_strip(
    mean: np.ndarray, load: np.ndarray, mixing: Mixing, has_bond: bool, white: np.ndarray, cuts: np.ndarray,
    class_of_place: np.ndarray, counts: np.ndarray, start: int, stop: int,
) -> None:  # fmt: skip
    n, _, cols = mean.shape
    around = np.empty((len(mixing.kernel), n, cols), dtype=np.float32)
    normal, bound = np.empty((n, cols), dtype=np.float32), np.empty((2, n, cols), dtype=np.float32)
    step, drawn = np.empty(cols, dtype=np.float32), np.empty(cols, dtype=np.uint32)
    for row in range(start, stop):
        _mix(white, mixing.kernel, class_of_place, row, around, normal)
        if has_bond:
            _bind(normal, load[row], mixing.bond, bound)
        first = 0
        for end in mixing.ends:
            drawn[:] = 0
            is_disordered = False
            for i in range(first, end):
                here = mean[mixing.order[i], row]
                if i > first:
                    before = mean[mixing.order[i - 1], row]
                    for col in range(cols):
                        step[col] = here[col] - before[col]
                else:
                    step[:] = here
                smallest = step.min()
                if smallest >= _LARGE:
                    for col in range(cols):
                        drawn[col] += _quantile_large(normal[i, col], step[col])
                else:
                    is_disordered |= smallest < 0
                    for col in range(cols):
                        drawn[col] += _quantile(normal[i, col], step[col], cuts)
                counts[mixing.order[i], row] = drawn
            if is_disordered:
                for col in range(cols):
                    for i in range(first + 1, end):
                        if mean[mixing.order[i], row, col] < mean[mixing.order[i - 1], row, col]:
                            _draw_sorted(mean, row, col, mixing.order[first:end], normal, first, cuts, counts)
                            break
            first = end
