"""Regularised reconstruction: least squares plus a prior, by proximal methods.

Both make ||A x - b||_W^2 / 2 + h * prior(x) least, over x >= 0 if that is wanted. W are statistical weights, and h is
the mean curvature of the data term (`data_curvature`), so that a prior's strength keeps its meaning whatever the scan.

# Ref: FISTA: Beck and Teboulle 2009, SIAM J. Imaging Sci. 2, 183; its restart: O'Donoghue and Candes 2015, Found.
#      Comput. Math. 15, 715.
# Ref: ordered subsets with momentum: Kim, Ramani and Fessler 2015, IEEE Trans. Med. Imaging 34, 167.
# Ref: PDHG: Chambolle and Pock 2011, J. Math. Imaging Vis. 40, 120; for CT: Sidky, Jorgensen and Pan 2012,
#      Phys. Med. Biol. 57, 3065; by ordered subsets: Chambolle, Ehrhardt, Richtarik and Schonlieb 2018, SIAM J. Optim.
#      28, 2783.
# Ref: mean of a matrix's diagonal from random signs: Hutchinson 1990, Commun. Stat. Simul. Comput. 19, 433.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import numpy as np

from reconstruction.backend import Array, namespace
from reconstruction.iterates import Iterate
from reconstruction.operators import Operator
from reconstruction.priors import Prior

POWER_ITERATIONS = 4
BACKTRACKING = 1.5
MARGIN = 1.05
"""What power iteration may lack of the largest curvature."""


def data_curvature(A: Operator, weights: Array | None, like: Array) -> float:
    """Return the mean of the diagonal of A^T W A, estimated by one projection of random signs; the same every time."""
    xp = namespace(like)
    signs = np.random.default_rng(0).integers(0, 2, A.domain_shape, dtype=np.int8) * 2 - 1
    projected = A.forward(xp.asarray(signs.astype(like.dtype)))
    return _norm2(projected, weights) / math.prod(A.domain_shape)


def largest_curvature(A: Operator, weights: Array | None, like: Array, n_iterations: int = POWER_ITERATIONS) -> float:
    """Return the largest eigenvalue of A^T W A by power iteration from a flat image: a little too small."""
    x = namespace(like).ones(A.domain_shape, like.dtype)
    curvature = 0.0
    for _ in range(n_iterations):
        norm = math.sqrt(_norm2(x))
        if norm == 0:
            break
        x = A.adjoint(_weighted(A.forward(x / norm), weights))
        curvature = math.sqrt(_norm2(x))
    if not curvature > 0:
        raise ValueError("the operator makes nothing of a flat image: there is no data to reconstruct from")
    return curvature


def _weighted(y: Array, weights: Array | None) -> Array:
    return y if weights is None else weights * y


def _dot(a: Array, b: Array) -> float:
    xp = namespace(a)
    return float(xp.vdot(a.ravel(), b.ravel()))


def _norm2(a: Array, weights: Array | None = None) -> float:
    return _dot(a, a) if weights is None else _dot(a, weights * a)


def _start(A: Operator, b: Array, start: Array | None) -> Array:
    xp = namespace(b)
    if b.shape != A.range_shape:
        raise ValueError(f"the data has shape {b.shape}; allowed: {A.range_shape}")
    if start is None:
        return xp.zeros(A.domain_shape, b.dtype)
    if start.shape != A.domain_shape:
        raise ValueError(f"the start has shape {start.shape}; allowed: {A.domain_shape}")
    return xp.array(start, dtype=b.dtype)


def fista(
    A: Operator,
    b: Array,
    prior: Prior,
    *,
    weights: Array | None = None,
    start: Array | None = None,
    is_non_negative: bool = True,
    n_iterations: int = 50,
    n_subsets: int = 1,
    n_prox_iterations: int = 5,
    has_momentum: bool = True,
    has_restart: bool = True,
) -> Generator[Iterate, None, None]:
    """Yield what accelerated proximal gradient steps make of data, one projection and back-projection to a step.

    Parameters
    ----------
    A : Operator
    b : (n_channels, n_views, rows, cols) float
        Line integrals.
    prior : Prior
    weights : array that broadcasts with `b`, optional
        Statistical weights: the reciprocal of each value's variance, or in proportion to it.
    start : (n_channels, z, y, x) float, optional
        Zero otherwise.
    n_subsets : int
        Parts of the views, each of which gives a step; an iteration goes through all. More are faster at first, and
        stay further from the minimum in the end.
    n_prox_iterations : int
        Inner steps of every prox; its dual variable is kept from one to the next.
    has_momentum : bool
        Without it (and with one subset) this is plain proximal gradient descent, whose objective never rises.
    has_restart : bool
        Begin the momentum anew where it points uphill.
    """
    x = _start(A, b, start)
    scale = data_curvature(A, weights, x)
    bound = MARGIN * largest_curvature(A, weights, x)
    prox = prior.prepare(x)
    momentum = _Momentum(has_momentum, has_restart)

    def descend(y: Array, gradient: Array) -> Array:
        gradient *= -1 / bound
        gradient += y
        new = namespace(y).empty_like(y)
        prox.prox(new, gradient, scale / bound, n_iterations=n_prox_iterations, is_non_negative=is_non_negative)
        return new

    y = x
    if n_subsets > 1:
        parts = _parts(A, b, weights, n_subsets)
        for number in range(1, n_iterations + 1):
            residual2 = 0.0
            for part, data, weight, share in parts:
                difference = part.forward(y) - data
                residual2 += _norm2(difference, weight)
                new = descend(y, share * part.adjoint(_weighted(difference, weight)))
                ahead = momentum.after(y, new, x)
                x, y = new, new + ahead * (new - x)
            yield Iterate(number, x, math.sqrt(residual2), residual2 / 2 + scale * prox.value(x))
        return
    seen = y_seen = A.forward(x) if start is not None else namespace(b).zeros_like(b)
    for number in range(1, n_iterations + 1):
        gradient = A.adjoint(_weighted(y_seen - b, weights))
        new = descend(y, gradient.copy())
        new_seen = A.forward(new)
        while _norm2(new_seen - y_seen, weights) > bound * _norm2(new - y):
            bound *= BACKTRACKING
            new = descend(y, gradient.copy())
            new_seen = A.forward(new)
        ahead = momentum.after(y, new, x)
        y, y_seen = new + ahead * (new - x), new_seen + ahead * (new_seen - seen)
        x, seen = new, new_seen
        residual2 = _norm2(seen - b, weights)
        yield Iterate(number, x, math.sqrt(residual2), residual2 / 2 + scale * prox.value(x))


class _Momentum:
    """How far to go on in the direction of the last step."""

    def __init__(self, is_on: bool, has_restart: bool) -> None:
        self._is_on, self._has_restart = is_on, has_restart
        self._t = 1.0

    def after(self, y: Array, new: Array, old: Array) -> float:
        """Return the factor after a step from `y` to `new`, where the step before ended in `old`."""
        if not self._is_on:
            return 0.0
        if self._has_restart and _dot(y - new, new - old) > 0:
            self._t = 1.0
        before, self._t = self._t, (1 + math.sqrt(1 + 4 * self._t * self._t)) / 2
        return (before - 1) / self._t


def _parts(
    A: Operator, b: Array, weights: Array | None, n_subsets: int
) -> list[tuple[Any, Array, Array | None, float]]:
    """Return operator, data, weights of each ordered subset, and how many times it counts to stand for all."""
    n_views = b.shape[1]
    everywhere = None if weights is None else namespace(b).broadcast_to(weights, b.shape)
    parts = []
    for first in sorted(range(n_subsets), key=lambda i: i * 0.618033988749895 % 1):
        views = slice(first, None, n_subsets)
        data = b[:, views]
        weight = None if everywhere is None else everywhere[:, views]
        operator: Any = A
        parts.append((operator.subset(views), data, weight, n_views / data.shape[1]))
    return parts


def pdhg(
    A: Operator,
    b: Array,
    prior: Prior,
    *,
    weights: Array | None = None,
    start: Array | None = None,
    is_non_negative: bool = True,
    n_iterations: int = 100,
    n_subsets: int = 1,
    n_prox_iterations: int = 1,
    balance: float = 0.1,
) -> Generator[Iterate, None, None]:
    """Yield what primal-dual steps make of data, one projection and back-projection to a step.

    Parameters
    ----------
    A, b, prior, weights, start, is_non_negative
        As `fista` has them.
    n_subsets : int
        Parts of the views, each with a dual variable of its own, which are updated in turn: an iteration goes through
        all, and the end is the same.
    n_prox_iterations : int
        Steps of the prior's dual variable to each step of the data's.
    balance : float
        Dual over primal steps, 1 where the dual variable would follow the residual at once.
    """
    x = _start(A, b, start)
    scale = data_curvature(A, weights, x)
    prox = prior.prepare(x)
    parts = _parts(A, b, weights, n_subsets) if n_subsets > 1 else [(A, b, weights, 1.0)]
    bound = MARGIN * max(largest_curvature(part, weight, x) for part, _, weight, _ in parts)
    step = 1 / (balance * n_subsets * bound)
    xp = namespace(x)
    y = [xp.zeros_like(data) for _, data, _, _ in parts]
    gathered, extrapolated = xp.zeros_like(x), xp.zeros_like(x)
    for number in range(1, n_iterations + 1):
        residual2 = 0.0
        for index, (part, data, weight, _) in enumerate(parts):
            base = x - step * extrapolated
            prox.prox(x, base, step * scale, n_iterations=n_prox_iterations, is_non_negative=is_non_negative)
            difference = part.forward(x) - data
            residual2 += _norm2(difference, weight)
            new = (y[index] + balance * _weighted(difference, weight)) / (1 + balance)
            change = part.adjoint(new - y[index])
            y[index] = new
            gathered += change
            extrapolated = gathered + n_subsets * change
        yield Iterate(number, x, math.sqrt(residual2), residual2 / 2 + scale * prox.value(x))
