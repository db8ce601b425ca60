"""Least squares with signs for very many small problems of one matrix: a table of all supports, looked up by each.

Which unknowns are above 0, the support, decides all: on it the solution is linear in the data, and so are the slopes of
the misfit along the unknowns that are 0. The right support is the one on which none of them is below 0. All supports
are solved once; each problem then goes from one to the next by turning whatever has the wrong sign.

# Ref: conditions of Karush, Kuhn and Tucker for non-negative least squares: C. L. Lawson, R. J. Hanson 1974, Solving
#      Least Squares Problems, chapter 23. Turning all wrong signs at once: L. F. Portugal, J. J. Judice, L. N. Vicente
#      1994, Math. Comput. 63, 625 (block principal pivoting).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.kernels import active_sets_cpu

MOST_UNKNOWNS = 10
"""Every subset of the unknowns is solved beforehand: 1024 of them here."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Supports:
    """What every unknown is on every support, by the data projected on the columns of the matrix.

    An unknown of the support has its solution, another one the slope of half the squared misfit along it.

    Attributes
    ----------
    slopes : (2 ** n_unknowns, n_unknowns, n_unknowns) float64
        Support k holds the unknowns whose bits are set in k.
    offsets : (2 ** n_unknowns, n_unknowns) float64
    """

    slopes: NDArray[np.float64]
    offsets: NDArray[np.float64]

    @classmethod
    def non_negative(cls, matrix: NDArray[np.float64]) -> Supports:
        """No unknown is below 0."""
        gram, n = matrix.T @ matrix, _refuse_many(matrix)
        slopes = np.zeros((2**n, n, n))
        for bits, inside, outside in _splits(n):
            inverse = np.linalg.inv(gram[np.ix_(inside, inside)])
            slopes[bits][np.ix_(inside, inside)] = inverse
            slopes[bits][np.ix_(outside, inside)] = gram[np.ix_(outside, inside)] @ inverse
            slopes[bits][outside, outside] = -1.0
        return cls(slopes=slopes, offsets=np.zeros((2**n, n)))

    @classmethod
    def full(cls, matrix: NDArray[np.float64], shares: NDArray[np.float64]) -> Supports:
        """No unknown is below 0, and `shares` of all sum to 1.

        Parameters
        ----------
        shares : (n_unknowns,) float64
            Share of the whole that one unit of each unknown takes; above 0.
        """
        gram, n = matrix.T @ matrix, _refuse_many(matrix)
        slopes, offsets = np.zeros((2**n, n, n)), np.zeros((2**n, n))
        offsets[0] = -np.inf  # nothing cannot be a whole
        for bits, inside, outside in _splits(n):
            if not inside:
                continue
            inverse = np.linalg.inv(gram[np.ix_(inside, inside)])
            towards = inverse @ shares[inside]
            towards /= shares[inside] @ towards
            free = inverse - np.outer(towards, inverse @ shares[inside])
            multiplier = towards  # of the sum: (towards . h - 1 / (shares . inverse . shares))
            size = 1 / (shares[inside] @ inverse @ shares[inside])
            slopes[bits][np.ix_(inside, inside)] = free
            offsets[bits, inside] = towards
            across = gram[np.ix_(outside, inside)]
            slopes[bits][np.ix_(outside, inside)] = across @ free + np.outer(shares[outside], multiplier)
            slopes[bits][outside, outside] = -1.0
            offsets[bits, outside] = across @ towards - shares[outside] * size
        return cls(slopes=slopes, offsets=offsets)


def _refuse_many(matrix: NDArray[np.float64]) -> int:
    n = matrix.shape[1]
    if n > MOST_UNKNOWNS:
        raise WrongUsage(
            f"{n} materials with none below 0; allowed: up to {MOST_UNKNOWNS}", hint="name fewer materials"
        )
    return n


def _splits(n: int) -> list[tuple[int, list[int], list[int]]]:
    """Return every support: its bits, the unknowns inside and those outside."""
    return [
        (bits, [k for k in range(n) if bits >> k & 1], [k for k in range(n) if not bits >> k & 1])
        for bits in range(2**n)
    ]


def multiplied(matrix: NDArray[np.float64], rows: backend.Array) -> backend.Array:
    """Return a small matrix times long rows, where these are: (n, m) times (m, length) float64."""
    xp = backend.namespace(rows)
    if xp is not np:
        return xp.asarray(matrix) @ rows
    product = np.empty((len(matrix), rows.shape[1]))
    active_sets_cpu.multiply(np.ascontiguousarray(matrix), np.ascontiguousarray(rows), product)
    return product


def solve(
    projected: backend.Array,
    supports: Supports,
    *,
    shares: NDArray[np.float64] | None = None,
    full: Supports | None = None,
) -> backend.Array:
    """Solve every problem, where its data are.

    Parameters
    ----------
    projected : (n_unknowns, n_problems) float64
        Matrix transposed times data.
    shares, full :
        Where the shares of the solution sum above 1, the second table has it: a whole is not exceeded.

    Returns
    -------
    solution : (n_unknowns, n_problems) float64
    """
    xp = backend.namespace(projected)
    if xp is np:
        solution = np.empty_like(projected)
        none = np.zeros(len(projected)) if shares is None else shares
        beyond = supports if full is None else full
        active_sets_cpu.solve(
            projected, supports.slopes, supports.offsets, none, beyond.slopes, beyond.offsets, solution
        )
        return solution
    solution = _best(projected, supports)
    if shares is None or full is None:
        return solution
    is_too_much = xp.asarray(shares) @ solution > 1
    return xp.where(is_too_much, _best(projected, full), solution)


def _best(projected: backend.Array, supports: Supports) -> backend.Array:
    """Try all supports on all problems: the one whose lowest value is highest has them all right."""
    xp = backend.namespace(projected)
    best = xp.zeros_like(projected)
    highest = xp.full(projected.shape[1], -np.inf)
    bits = 1 << np.arange(len(projected))
    for support, (slopes, offsets) in enumerate(zip(supports.slopes, supports.offsets, strict=True)):
        if not np.isfinite(offsets).all():
            continue
        values = xp.asarray(slopes) @ projected + xp.asarray(offsets)[:, None]
        lowest = values.min(axis=0)
        is_inside = xp.asarray((support & bits) != 0)[:, None]
        best = xp.where(lowest > highest, xp.where(is_inside, xp.maximum(values, 0), 0), best)
        highest = xp.maximum(highest, lowest)
    return best
