"""Counts as they are: maximum likelihood for linear and for transmission data, and least squares with their weights.

Three models, and which to take:

- `osem`: counts ~ Poisson(A x + background). Fluorescence, emission, and, as a non-negative least distance, line
  integrals.
- `transmission`: counts ~ Poisson(flat exp(-A x) + background). The likelihood of a scan itself: right where so few
  photons come through that their logarithm is biased or does not exist.
- `pwls`: line integrals with weights of 1 / variance, `line_integral_weights`: its quadratic approximation.

# Ref: expectation maximisation: Shepp and Vardi 1982, IEEE Trans. Med. Imaging 1, 113; Lange and Carson 1984, J.
#      Comput. Assist. Tomogr. 8, 306. Subsets: Hudson and Larkin 1994, IEEE Trans. Med. Imaging 13, 601; here in the
#      additive form over the sensitivity of all views: Browne and De Pierro 1996, IEEE Trans. Med. Imaging 15, 687.
# Ref: transmission likelihood and its curvatures: Erdogan and Fessler 1999, Phys. Med. Biol. 44, 2835 (precomputed),
#      and IEEE Trans. Med. Imaging 18, 801 (the least that is monotone).
# Ref: weights of line integrals: Sauer and Bouman 1993, IEEE Trans. Signal Process. 41, 534.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np

from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.backend import Array
from reconstruction.methods.iterates import Iterate
from reconstruction.methods.least_squares import SquaredError, as_data, as_start
from reconstruction.methods.subsets import Order, ordered_subsets, size_of
from reconstruction.methods.surrogates import ALL_VIEWS, Loss, descend, of_views
from reconstruction.operators import Operator, inner_products

LEAST_FACTOR = 0.1
"""By subsets no voxel falls to less of itself in one step, so that none becomes 0 for ever."""


def line_integral_weights(counts: Array, background: Array | float = 0.0) -> Array:
    """Return 1 / variance of -log((counts - background) / flat): (counts - background)^2 / counts, 0 without photons.

    The flat field is taken as exact.
    """
    xp = backend.namespace(counts)
    signal = xp.maximum(counts - background, 0)
    return xp.where(counts > 0, signal * signal / xp.where(counts > 0, counts, 1), 0)


def pwls(
    A: Operator,
    b: Array,
    *,
    weights: Array | None = None,
    start: Array | None = None,
    is_non_negative: bool = False,
    n_iterations: int = 20,
    n_subsets: int = 10,
    order: Order = "bit-reversal",
    relaxation: float = 1.0,
    has_momentum: bool = True,
    damping: float = 0.0,
    reference: Array | None = None,
) -> Generator[Iterate, None, None]:
    """Penalised weighted least squares of line integrals, by ordered subsets with momentum.

    Parameters
    ----------
    b : array of the range
        Line integrals.
    weights : array that fits the range, optional
        `line_integral_weights`.
    damping : float
        Pulls towards `reference` (None: 0): damping / 2 |x - reference|^2 is added to half the weighted squared error.
    """
    b = as_data(A, b)
    yield from descend(
        A,
        SquaredError(b, weights),
        as_start(A, start, b),
        is_start_zero=start is None,
        n_iterations=n_iterations,
        n_subsets=n_subsets,
        order=order,
        relaxation=relaxation,
        has_momentum=has_momentum,
        is_non_negative=is_non_negative,
        damping=damping,
        reference=reference,
    )


class TransmissionLoss(Loss):
    """Minus the log likelihood of transmission counts, less its least possible value: ybar - y + y log(y / ybar)."""

    def __init__(self, counts: Array, flat: Array, background: Array | float, weights: Array | None) -> None:
        xp = backend.namespace(counts)
        self._counts = counts
        self._flat = xp.broadcast_to(xp.asarray(flat, counts.dtype), counts.shape)
        self._background = xp.broadcast_to(xp.asarray(background, counts.dtype), counts.shape)
        self._weights = None if weights is None else xp.broadcast_to(weights, counts.shape)

    def curvature(self, ray_lengths: Array, projected: Array | None = None) -> Array:
        """Return the curvature times the lengths: precomputed, or the least that lies above h for all l >= 0."""
        if projected is None:
            curvature = line_integral_weights(self._counts, self._background)
        else:
            curvature = self._least_curvature(projected)
        return ray_lengths * (curvature if self._weights is None else curvature * self._weights)

    def _least_curvature(self, l: Array) -> Array:  # noqa: E741
        xp = backend.namespace(l)
        y, flat, background = self._counts, self._flat, self._background
        at_zero = flat * (1 - y * background / (flat + background) ** 2)
        l = xp.maximum(l, 0)  # noqa: E741
        is_far = l > 1e-2
        l_far = xp.where(is_far, l, 1)
        through = flat * xp.exp(-l_far)
        slope = through * (y / (through + background) - 1)
        rise = flat - through - y * xp.log((flat + background) / (through + background))
        return xp.maximum(xp.where(is_far, 2 / l_far**2 * (rise + slope * l_far), at_zero), 0)

    def slope(self, projected: Array, views: slice, n_channels: int) -> tuple[Array, Array, Array]:
        """Return dh/dl, Pearson's chi square and the objective."""
        xp = backend.namespace(projected)
        y, flat, background = (of_views(term, views) for term in (self._counts, self._flat, self._background))
        weights = None if self._weights is None else of_views(self._weights, views)
        through = np.exp(np.negative(projected, out=projected), out=projected)
        through *= flat
        expected = xp.maximum(through + background, xp.finfo(projected.dtype).tiny)
        squared, objective = _distances(y, expected, weights, n_channels)
        through *= y / expected - 1
        if weights is not None:
            through *= weights
        return through, squared, objective


def _distances(y: Array, expected: Array, weights: Array | None, n_channels: int) -> tuple[Array, Array]:
    """Return Pearson's chi square, and twice-halved deviance ybar - y + y log(y / ybar), of each channel."""
    xp = backend.namespace(y)
    difference = expected - y
    pull = difference / expected
    squared = inner_products(pull if weights is None else pull * weights, difference, n_channels)
    logs = y * xp.log(xp.where(y > 0, y, 1) / xp.where(y > 0, expected, 1)) + difference
    if weights is not None:
        logs = logs * weights
    return squared, logs.reshape(n_channels, -1).sum(axis=1, dtype=xp.float64)


def transmission(
    A: Operator,
    b: Array,
    *,
    flat: Array,
    background: Array | float = 0.0,
    weights: Array | None = None,
    start: Array | None = None,
    is_non_negative: bool = True,
    n_iterations: int = 20,
    n_subsets: int = 10,
    order: Order = "bit-reversal",
    relaxation: float = 1.0,
    has_momentum: bool = True,
    is_monotone: bool = False,
    n_weighted: int = 3,
    damping: float = 0.0,
    reference: Array | None = None,
) -> Generator[Iterate, None, None]:
    """Maximum likelihood of transmission counts: Poisson(flat exp(-A x) + background).

    Its parabolas fit only near where it ends: behind metal the first steps from 0 would go far astray. So without a
    start some iterations of weighted least squares come first; they are not among those that are yielded.

    Parameters
    ----------
    b : array of the range
        Counts.
    flat, background : arrays that fit the range
        Counts without the object; scatter and dark counts.
    weights : array that fits the range, optional
        What each ray counts for: 0 leaves it out.
    is_monotone : bool
        One subset, no momentum, and the curvature anew at each iterate: slow, and never worse, with non-negativity.
    n_weighted : int
        Iterations of `pwls` to start from, where no start is given; 0: from 0.

    Yields
    ------
    Iterate
        The residual is the root of Pearson's chi square; the objective, half the deviance.
    """
    b = as_data(A, b)
    _refuse_negative(b, flat, background)
    subsets = {"n_subsets": 1 if is_monotone else n_subsets, "order": order}
    if start is None and n_weighted > 0:
        start = _weighted_start(A, b, flat, background, weights, is_non_negative, n_weighted, subsets)
    yield from descend(
        A,
        TransmissionLoss(b, flat, background, weights),
        as_start(A, start, b),
        is_start_zero=start is None,
        n_iterations=n_iterations,
        **subsets,
        relaxation=relaxation,
        has_momentum=has_momentum and not is_monotone,
        is_non_negative=is_non_negative,
        damping=damping,
        reference=reference,
        renews_curvature=is_monotone,
    )


def _weighted_start(
    A: Operator,
    counts: Array,
    flat: Array,
    background: Array | float,
    weights: Array | None,
    is_non_negative: bool,
    n_iterations: int,
    subsets: dict[str, Any],
) -> Array:
    """Return what weighted least squares make of the counts' logarithms, half a photon where none came through."""
    xp = backend.namespace(counts)
    integrals = xp.log(xp.asarray(flat, counts.dtype) / xp.maximum(counts - background, 0.5))
    weighted = line_integral_weights(counts, background)
    *_, end = pwls(
        A,
        integrals.astype(counts.dtype),
        weights=weighted if weights is None else weighted * weights,
        is_non_negative=is_non_negative,
        n_iterations=n_iterations,
        **subsets,
    )
    return end.volume


def _refuse_negative(*terms: Any) -> None:
    for name, term in zip(("counts", "flat", "background"), terms, strict=True):
        lowest = float(term if isinstance(term, float) else term.min())
        if not lowest >= 0:
            raise WrongUsage(f"the lowest of the {name} is {lowest}; allowed: 0 and more")


def osem(
    A: Operator,
    b: Array,
    *,
    background: Array | float = 0.0,
    weights: Array | None = None,
    start: Array | None = None,
    n_iterations: int = 20,
    n_subsets: int = 10,
    order: Order = "bit-reversal",
) -> Generator[Iterate, None, None]:
    """Maximum likelihood of counts ~ Poisson(A x + background), non-negative by construction; MLEM with one subset.

    Parameters
    ----------
    b : array of the range
        Counts, or other non-negative data.
    weights : array that fits the range, optional
        What each ray counts for: 0 leaves it out.
    start : array of the domain, optional
        Above 0 where anything can be; None: 1 everywhere, or rather what makes the total right.

    Yields
    ------
    Iterate
        The residual is the root of Pearson's chi square; the objective, half the deviance.
    """
    b = as_data(A, b)
    _refuse_negative(b, 0.0, background)
    xp = backend.namespace(b)
    tiny = xp.finfo(b.dtype).tiny
    floor: Array = xp.broadcast_to(xp.asarray(background, b.dtype), b.shape)
    weights = None if weights is None else xp.broadcast_to(weights, b.shape)
    x = as_start(A, start, b, filled=1.0)
    if start is None:
        x *= max(float(b.mean() - floor.mean()), tiny) / max(float(A.forward(x).mean()), tiny)
    sensitivity = A.adjoint(xp.ones_like(b) if weights is None else weights.astype(b.dtype))
    seen = sensitivity > xp.finfo(b.dtype).eps * sensitivity.max()
    sensitivity = xp.where(seen, sensitivity, 1)
    x *= seen
    n_views = b.shape[1] if n_subsets > 1 else 1
    subsets = ordered_subsets(n_views, n_subsets, order) if n_subsets > 1 else [ALL_VIEWS]
    parts = [A] if n_subsets == 1 else [A.subset(views) for views in subsets]

    def improve(index: int) -> tuple[Array, Array, Array]:
        """Return what a subset would multiply by, less 1, and how far the data are."""
        views = subsets[index]
        y = of_views(b, views)
        w = None if weights is None else of_views(weights, views)
        expected = parts[index].forward(x)
        expected += of_views(floor, views)
        np.maximum(expected, tiny, out=expected)
        squared, objective = _distances(y, expected, w, A.n_channels)
        np.divide(y, expected, out=expected)
        expected -= 1
        if w is not None:
            expected *= w
        factor = parts[index].adjoint(expected)
        factor *= 1 if n_subsets == 1 else n_views / size_of(views, n_views)
        factor /= sensitivity
        return factor, squared, objective

    factor, _, _ = improve(0)
    for number in range(1, n_iterations + 1):
        squared, objective = 0.0, 0.0
        for index in range(n_subsets):
            factor += 1
            np.maximum(factor, 0 if n_subsets == 1 else LEAST_FACTOR, out=factor)
            x *= factor
            factor, more_squared, more_objective = improve((index + 1) % n_subsets)
            squared, objective = squared + more_squared, objective + more_objective
        residuals = np.sqrt(backend.to_host(squared))
        yield Iterate(
            number,
            x,
            float(np.sqrt((residuals**2).sum())),
            float(xp.sum(objective)),
            tuple(residuals.tolist()) if A.n_channels > 1 else (),
        )
