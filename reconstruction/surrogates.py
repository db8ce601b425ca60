"""The one descent that SIRT, OS-SART, PWLS and the transmission likelihood are: separable surrogates of a loss.

A loss is a sum over rays of h(l), l = A x. Where c is at least the curvature of h, a paraboloid with the diagonal
Hessian D = A^T (c A 1) lies above the loss and touches it at x, so that x - D^-1 A^T h'(A x) is no worse. Ordered
subsets take h' from some views and count it for all; momentum goes on the way that the last steps went.

# Ref: separable surrogates: De Pierro 1995, IEEE Trans. Med. Imaging 14, 132; Erdogan and Fessler 1999, Phys. Med.
#      Biol. 44, 2835, with ordered subsets. SIRT as such a descent: Gregor and Benson 2008, IEEE Trans. Med. Imaging
#      27, 918.
# Ref: momentum over ordered subsets: Kim, Ramani and Fessler 2015, IEEE Trans. Med. Imaging 34, 167, after Nesterov
#      1983. Restart where the objective rises: O'Donoghue and Candes 2015, Found. Comput. Math. 15, 715.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator

import numpy as np

from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.backend import Array
from reconstruction.iterates import Iterate
from reconstruction.kernels import descent_cpu
from reconstruction.operators import Operator
from reconstruction.subsets import Order, ordered_subsets, size_of

ALL_VIEWS = slice(None)


def of_views(array: Array, views: slice) -> Array:
    """Return the part of some views, without a copy."""
    return array if views == ALL_VIEWS else array[:, views]


class Loss(ABC):
    """What the data say of line integrals, ray by ray."""

    @abstractmethod
    def curvature(self, ray_lengths: Array, projected: Array | None = None) -> Array:
        """Return c A 1, of which A^T makes D: at least the curvature of h, times the length of each ray.

        Parameters
        ----------
        ray_lengths : array of the range
            A 1.
        projected : array of the range, optional
            A x, for a curvature that is as small as it may be there.
        """

    @abstractmethod
    def slope(self, projected: Array, views: slice, n_channels: int) -> tuple[Array, Array, Array]:
        """Return h'(A x) of some views, the squared residual and the objective of each channel.

        `projected` is the caller's scratch: it may be overwritten and returned.
        """


def descend(
    A: Operator,
    loss: Loss,
    x: Array,
    *,
    n_iterations: int,
    is_start_zero: bool = False,
    n_subsets: int = 1,
    order: Order = "bit-reversal",
    relaxation: float = 1.0,
    has_momentum: bool = False,
    is_non_negative: bool = False,
    damping: float = 0.0,
    reference: Array | None = None,
    renews_curvature: bool = False,
) -> Generator[Iterate, None, None]:
    """Make a loss, and damping / 2 |x - reference|^2, smaller from iteration to iteration.

    Parameters
    ----------
    x : (n_channels, z, y, x) float
        The start, and what is yielded: overwritten.
    is_start_zero : bool
        Spares the projection of the start.
    n_subsets, order
        See `reconstruction.subsets`. Where the objective rises over a pass, momentum begins anew and the subsets are
        halved, so that the end is that of one subset.
    relaxation : float
        Share of each step, above 0 and below 2; at most 1 with momentum.
    renews_curvature : bool
        Ask the loss for its curvature at every iterate: one adjoint more each, and no iteration is for the worse.

    Yields
    ------
    Iterate
        Residual and objective are as the subsets were met after their predecessors' steps: with one subset and no
        momentum exactly those of the volume.
    """
    if not 0 < relaxation < 2 or (has_momentum and relaxation > 1):
        raise WrongUsage(f"relaxation is {relaxation}; allowed: above 0 and below 2, with momentum up to 1")
    if renews_curvature and n_subsets > 1:
        raise WrongUsage(f"{n_subsets} subsets cannot renew the curvature; allowed: one")
    if damping < 0:
        raise WrongUsage(f"damping is {damping}; allowed: 0 or more")
    xp = backend.namespace(x)
    n_views = A.range_shape[1] if n_subsets > 1 else 1
    ray_lengths = A.forward(xp.ones_like(x))
    inverse_hessian = _invert(A.adjoint(loss.curvature(ray_lengths)), damping)
    if not renews_curvature:
        ray_lengths = None

    passes = _Pass(A, ordered_subsets(n_views, n_subsets, order))
    gradient = xp.empty_like(x)
    extrapolated = x.copy() if has_momentum else x
    t, previous = 1.0, math.inf

    def evaluate(index: int) -> tuple[Array, Array]:
        """Fill the gradient by one subset; return its squared residual and its objective, by channel."""
        views, part, projected, share = passes.at(index, x)
        if is_start_zero and first:
            projected[...] = 0
        else:
            part.forward(extrapolated, out=projected)
        if renews_curvature:
            _invert(A.adjoint(loss.curvature(ray_lengths, projected), out=inverse_hessian), damping)
        slope, squared, objective = loss.slope(projected, views, A.n_channels)
        part.adjoint(slope, out=gradient)
        if share != 1:
            np.multiply(gradient, share, out=gradient)
        if damping:
            away = extrapolated if reference is None else extrapolated - reference
            objective = objective + damping / 2 * float(xp.vdot(away, away)) / len(passes)
            np.add(gradient, damping * away, out=gradient)
        return squared, objective

    first = True
    evaluate(0)
    first = False
    for number in range(1, n_iterations + 1):
        squared, objective = 0.0, 0.0
        for index in range(len(passes)):
            momentum = 0.0
            if has_momentum:
                following = (1 + math.sqrt(1 + 4 * t * t)) / 2
                momentum, t = (t - 1) / following, following
            _step(x, extrapolated, gradient, inverse_hessian, relaxation, momentum, is_non_negative)
            more_squared, more_objective = evaluate((index + 1) % len(passes))
            squared, objective = squared + more_squared, objective + more_objective
        total = float(xp.sum(objective))
        residuals = np.sqrt(backend.to_host(squared))
        yield Iterate(
            number,
            x,
            float(np.sqrt((residuals**2).sum())),
            total,
            tuple(residuals.tolist()) if A.n_channels > 1 else (),
        )
        if total > previous and (has_momentum or len(passes) > 1):
            t = 1.0
            if has_momentum:
                extrapolated[...] = x
            if len(passes) > 1:
                passes = _Pass(A, ordered_subsets(n_views, -(-len(passes) // 2), order))
            evaluate(0)
        previous = total


class _Pass:
    """The subsets of one pass: their views, operators and scratch arrays, made when first asked for."""

    def __init__(self, A: Operator, subsets: list[slice]) -> None:
        self._A, self._subsets = A, subsets
        self._parts = [A] if len(subsets) == 1 else [A.subset(views) for views in subsets]
        self._scratch: dict[tuple[int, ...], Array] = {}

    def __len__(self) -> int:
        return len(self._subsets)

    def at(self, index: int, like: Array) -> tuple[slice, Operator, Array, float]:
        """Return a subset's views, operator and scratch, and how many times it counts to stand for all views."""
        part = self._parts[index]
        shape = part.range_shape
        if shape not in self._scratch:
            self._scratch[shape] = backend.namespace(like).empty(shape, like.dtype)
        if len(self) == 1:
            return ALL_VIEWS, part, self._scratch[shape], 1.0
        views = self._subsets[index]
        n_views = self._A.range_shape[1]
        return views, part, self._scratch[shape], n_views / size_of(views, n_views)


def _invert(hessian: Array, damping: float) -> Array:
    """Return 1 / (hessian + damping), in its place, and 0 where no ray comes by."""
    xp = backend.namespace(hessian)
    seen = hessian > xp.finfo(hessian.dtype).eps * hessian.max()
    np.add(hessian, damping, out=hessian)
    np.divide(1, hessian, out=hessian, where=seen) if xp is np else np.divide(1, hessian, out=hessian)
    return np.multiply(hessian, seen, out=hessian)


def _step(
    x: Array,
    extrapolated: Array,
    gradient: Array,
    inverse_hessian: Array,
    relaxation: float,
    momentum: float,
    is_non_negative: bool,
) -> None:
    """Go down the gradient from the extrapolated point, and extrapolate from there; all in place."""
    if backend.namespace(x) is np:
        descent_cpu.step(x, extrapolated, gradient, inverse_hessian, relaxation, momentum, is_non_negative)
        return
    gradient *= inverse_hessian
    gradient *= -relaxation
    gradient += extrapolated
    if is_non_negative:
        np.maximum(gradient, 0, out=gradient)
    if extrapolated is not x:
        extrapolated[...] = gradient + momentum * (gradient - x)
    x[...] = gradient
