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
from reconstruction.kernels import descent_cpu
from reconstruction.methods.iterates import Iterate
from reconstruction.methods.subsets import Order, ordered_subsets, size_of
from reconstruction.operators import Operator, inner_products

ALL_VIEWS = slice(None)
RUNAWAY = 4.0
"""How many times a subset's usual share of the objective tells that steps have become too long for so many subsets."""


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
        See `reconstruction.methods.subsets`. Where the objective rises over a pass, or runs away within one, momentum
        begins anew and the subsets are halved, so that the end is that of one subset.
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
    descent = _Descent(
        A, loss, x, n_subsets, order, relaxation, has_momentum, is_non_negative, damping, reference, renews_curvature
    )
    usual, previous = descent.evaluate(0, is_zero=is_start_zero)[1], math.inf
    for number in range(1, n_iterations + 1):
        while (met := descent.make_pass(RUNAWAY * usual)) is None:
            descent.calm_down()
        squared, objective = met
        residuals = np.sqrt(backend.to_host(squared))
        yield Iterate(
            number,
            x,
            float(np.sqrt((residuals**2).sum())),
            objective,
            tuple(residuals.tolist()) if A.n_channels > 1 else (),
        )
        if objective > previous:
            descent.calm_down()
        previous = objective
        usual = objective / descent.n_subsets


class _Descent:
    """The arrays of a descent, and its steps through them."""

    def __init__(
        self,
        A: Operator,
        loss: Loss,
        x: Array,
        n_subsets: int,
        order: Order,
        relaxation: float,
        has_momentum: bool,
        is_non_negative: bool,
        damping: float,
        reference: Array | None,
        renews_curvature: bool,
    ) -> None:
        xp = backend.namespace(x)
        self._A, self._loss, self._x = A, loss, x
        self._order: Order = order
        self._relaxation, self._is_non_negative = relaxation, is_non_negative
        self._damping, self._reference = damping, reference
        ray_lengths = A.forward(xp.ones_like(x))
        self._inverse_hessian = _invert(A.adjoint(loss.curvature(ray_lengths)), damping)
        self._ray_lengths = ray_lengths if renews_curvature else None
        self._has_momentum, self._t = has_momentum, 1.0
        self._extrapolated = x.copy() if has_momentum else x
        self._gradient = xp.empty_like(x)
        self._pass = Pass(A, n_subsets, order)

    @property
    def n_subsets(self) -> int:
        """Into how many the views are cut now."""
        return len(self._pass)

    def make_pass(self, runaway: float) -> tuple[Array, float] | None:
        """Make a step by each subset; return the squared residual by channel and the objective, as they were met.

        None: a subset among several had an objective above `runaway`, and the pass was broken off.
        """
        squared, total = 0.0, 0.0
        for index in range(self.n_subsets):
            momentum = 0.0
            if self._has_momentum:
                following = (1 + math.sqrt(1 + 4 * self._t**2)) / 2
                momentum, self._t = (self._t - 1) / following, following
            _step(
                self._x,
                self._extrapolated,
                self._gradient,
                self._inverse_hessian,
                self._relaxation,
                momentum,
                self._is_non_negative,
            )
            more, objective = self.evaluate((index + 1) % self.n_subsets)
            if self.n_subsets > 1 and not objective <= runaway:
                return None
            squared, total = squared + more, total + objective
        return squared, total

    def calm_down(self) -> None:
        """Begin the momentum anew, and make half as many subsets; nothing is done where there is neither."""
        if not self._has_momentum and self.n_subsets == 1:
            return
        self._t = 1.0
        if self._has_momentum:
            self._extrapolated[...] = self._x
        if self.n_subsets > 1:
            self._pass = Pass(self._A, -(-self.n_subsets // 2), self._order)
        self.evaluate(0)

    def evaluate(self, index: int, *, is_zero: bool = False) -> tuple[Array, float]:
        """Fill the gradient by one subset; return its squared residual by channel, and its objective."""
        views, part, projected, share = self._pass.at(index, self._x)
        if is_zero:
            projected[...] = 0
        else:
            part.forward(self._extrapolated, out=projected)
        if self._ray_lengths is not None:
            curvature = self._loss.curvature(self._ray_lengths, projected)
            _invert(self._A.adjoint(curvature, out=self._inverse_hessian), self._damping)
        slope, squared, objectives = self._loss.slope(projected, views, self._A.n_channels)
        part.adjoint(slope, out=self._gradient)
        if share != 1:
            np.multiply(self._gradient, share, out=self._gradient)
        objective = float(objectives.sum())
        if self._damping:
            away = self._extrapolated if self._reference is None else self._extrapolated - self._reference
            objective += self._damping / 2 * float(inner_products(away, away)[0]) / self.n_subsets
            np.add(self._gradient, self._damping * away, out=self._gradient)
        return squared, objective


class Pass:
    """The subsets of one pass: their views, operators and scratch arrays, made when first asked for."""

    def __init__(self, A: Operator, n_subsets: int, order: Order) -> None:
        self._A, self._subsets = A, [ALL_VIEWS]
        self._parts = [A]
        if n_subsets > 1:
            self._subsets = ordered_subsets(A.range_shape[1], n_subsets, order)
            self._parts = [A.subset(views) for views in self._subsets]
        self._scratch: dict[tuple[int, ...], Array] = {}

    def __len__(self) -> int:
        return len(self._subsets)

    def at(self, index: int, like: Array) -> tuple[slice, Operator, Array, float]:
        """Return a subset's views, operator and scratch, and how many times it counts to stand for all views."""
        part = self._parts[index]
        shape = part.range_shape
        if shape not in self._scratch:
            self._scratch[shape] = backend.namespace(like).empty(shape, like.dtype)
        views = self._subsets[index]
        if len(self) == 1:
            return views, part, self._scratch[shape], 1.0
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
