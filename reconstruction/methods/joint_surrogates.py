"""Separable surrogates of losses that tie channels together: a small matrix per voxel, and no descent that runs away.

The loss is a sum over rays of h(p), p = A x with one path per channel. Where the K x K matrix C is the curvature of h,
the paraboloid with the block-diagonal Hessian A^T (A 1) C lies above the loss, and each voxel solves a K x K system:
the descent of `reconstruction.methods.surrogates` is the case of K = 1. No change of the channels' basis changes it.

The safeguard: the objective is watched. Where it rises over a pass, or a subset's share of it runs away, momentum
begins anew, the subsets are halved, and the curvature is taken where the descent then stands; with one subset left a
step that is for the worse is taken back and made shorter. So the end is that of one subset, and it never diverges.

# Ref: separable surrogates with a K x K Hessian: Weidinger et al. 2016, Int. J. Biomed. Imaging, 5871604; with ordered
#      subsets and momentum: Mechlem et al. 2018, IEEE Trans. Med. Imaging 37, 68.
# Ref: De Pierro 1995, IEEE Trans. Med. Imaging 14, 132; restart where the objective rises: O'Donoghue and Candes 2015,
#      Found. Comput. Math. 15, 715.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator
from types import ModuleType

import numpy as np

from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.backend import Array
from reconstruction.kernels import onestep_plain
from reconstruction.methods.iterates import Iterate
from reconstruction.methods.subsets import Order
from reconstruction.methods.surrogates import RUNAWAY, Pass
from reconstruction.operators import Operator
from reconstruction.symmetric import packed_size, place

SINGULAR_SHARE = 1e-5
"""Of each voxel's own curvature, and of the mean one: what its Hessian's diagonal is raised by, so that materials that
its rays cannot tell apart, and voxels that no ray meets, stay where they are."""
SHORTER = 2.0
SHORTEST = 2.0**20
ROUNDING = 1e-7
"""Of the objective, in single precision: no more than this is a rise."""


def kernels(like: Array) -> ModuleType:
    """Return the kernels for where this array is, and for its precision."""
    if backend.namespace(like) is np and like.dtype == np.float32:
        from reconstruction.kernels import onestep_cpu

        return onestep_cpu
    return onestep_plain


class JointLoss(ABC):
    """What the data say of the paths of all channels together, ray by ray."""

    @abstractmethod
    def curvature(self, out: Array, projected: Array) -> None:
        """Fill `out`, (packed, n_views, n_rays), with the curvature of h where the paths are `projected`."""

    @abstractmethod
    def slope(self, projected: Array, views: slice) -> tuple[float, float]:
        """Overwrite the paths of some views by h'; return the objective and the squared residual."""


class Penalty(ABC):
    """What is added to the loss: a smooth function of the volume."""

    @abstractmethod
    def value(self, x: Array) -> float:
        """Return its value."""

    @abstractmethod
    def gradient(self, x: Array) -> Array:
        """Return its gradient, (n_channels, z, y, x)."""

    @property
    @abstractmethod
    def curvature(self) -> np.ndarray:
        """A bound of its curvature in each channel, (n_channels,) float64."""


def descend_jointly(
    A: Operator,
    loss: JointLoss,
    x: Array,
    *,
    n_iterations: int,
    penalty: Penalty | None = None,
    n_subsets: int = 1,
    order: Order = "bit-reversal",
    has_momentum: bool = True,
    is_non_negative: bool = False,
) -> Generator[Iterate, None, None]:
    """Make a loss and a penalty smaller from iteration to iteration.

    Parameters
    ----------
    A : Operator
        All channels along the same rays.
    x : (n_channels, z, y, x) float
        The start, and what is yielded: overwritten.
    penalty : Penalty, optional
    n_subsets, order
        See `reconstruction.methods.subsets`.
    is_non_negative : bool
        Allow no value below 0.

    Yields
    ------
    Iterate
        Residual and objective are as the subsets were met after their predecessors' steps; with one subset those of the
        point that momentum leads to, and they never rise.
    """
    descent = _Descent(A, loss, x, penalty, n_subsets, order, has_momentum, is_non_negative)
    objective = descent.begin()
    for number in range(1, n_iterations + 1):
        objective, squared = descent.improve(objective)
        yield Iterate(number, x, math.sqrt(squared), objective)


class _Descent:
    """The arrays of a descent, and its steps through them."""

    def __init__(
        self,
        A: Operator,
        loss: JointLoss,
        x: Array,
        penalty: Penalty | None,
        n_subsets: int,
        order: Order,
        has_momentum: bool,
        is_non_negative: bool,
    ) -> None:
        if x.shape != A.domain_shape:
            raise WrongUsage(f"the start has shape {x.shape}; allowed: {A.domain_shape}")
        xp = backend.namespace(x)
        self._A, self._loss, self._x, self._penalty = A, loss, x, penalty
        self._has_momentum, self._is_non_negative = has_momentum, is_non_negative
        self._order: Order = order
        self._kernels = kernels(x)
        self._ray_lengths = A.forward(xp.ones_like(x))[0]
        self._ray_lengths = self._ray_lengths.reshape(len(self._ray_lengths), -1)
        self._hessian = xp.empty((packed_size(len(x)), *x.shape[1:]), x.dtype)
        self._gradient = xp.empty_like(x)
        self._extrapolated = x.copy() if has_momentum else x
        self._anchor = x.copy()
        self._pass = Pass(A, n_subsets, order)
        self._t, self._stiffness, self._squared = 1.0, 1.0, 0.0
        self._floor = np.zeros(len(x))

    def begin(self) -> float:
        """Take the curvature and the first gradient at the start; return the objective of all views."""
        self._renew_curvature()
        objective, _ = self._evaluate(0)
        return objective * len(self._pass)

    def improve(self, before: float) -> tuple[float, float]:
        """Make one pass over the views that is not for the worse; return the objective and the squared residual."""
        self._anchor[...] = self._extrapolated
        tries = 0
        while True:
            was_plain = self._t == 1.0 and len(self._pass) == 1
            met = self._make_pass(before)
            if met is not None:
                break
            self._extrapolated[...] = self._anchor
            self._x[...] = self._anchor
            if was_plain:
                self._stiffness *= SHORTER
                tries += 1
            before = self._calm_down()
            if self._stiffness > SHORTEST or tries > 20:
                self._stiffness = 1.0
                return before, self._squared
        objective, squared = met
        if len(self._pass) > 1 and objective > before:
            objective = self._calm_down()
        return objective, squared

    def _make_pass(self, before: float) -> tuple[float, float] | None:
        """Make a step by each subset; return the objective and the squared residual as they were met.

        None: a subset's share of the objective ran away, or with one subset it rose, and the pass was broken off.
        """
        n = len(self._pass)
        most = before * (1 + ROUNDING) if n == 1 else RUNAWAY * before / n
        total, squared = 0.0, 0.0
        for index in range(n):
            momentum = 0.0
            if self._has_momentum:
                following = (1 + math.sqrt(1 + 4 * self._t**2)) / 2
                momentum, self._t = (self._t - 1) / following, following
            self._kernels.step(
                self._x,
                self._extrapolated,
                self._gradient,
                self._hessian,
                self._floor,
                self._stiffness,
                momentum,
                self._is_non_negative,
            )
            objective, more = self._evaluate((index + 1) % n)
            if not objective <= most:
                return None
            total, squared = total + objective, squared + more
        return total, squared

    def _calm_down(self) -> float:
        """Begin the momentum anew with half as many subsets, by the curvature here; return the objective."""
        self._t = 1.0
        if self._extrapolated is not self._x:
            self._extrapolated[...] = self._x
        if len(self._pass) > 1:
            self._pass = Pass(self._A, len(self._pass) // 2, self._order)
        self._renew_curvature()
        objective, self._squared = self._evaluate(0)
        return objective * len(self._pass)

    def _evaluate(self, index: int) -> tuple[float, float]:
        """Fill the gradient by one subset; return its objective and squared residual."""
        views, part, projected, share = self._pass.at(index, self._x)
        part.forward(self._extrapolated, out=projected)
        flat = projected.reshape(*projected.shape[:2], -1)
        objective, squared = self._loss.slope(flat, views)
        part.adjoint(projected, out=self._gradient)
        if share != 1:
            np.multiply(self._gradient, share, out=self._gradient)
        if self._penalty is not None:
            objective += self._penalty.value(self._extrapolated) / len(self._pass)
            np.add(self._gradient, self._penalty.gradient(self._extrapolated), out=self._gradient)
        return objective, squared

    def _renew_curvature(self) -> None:
        """Take the Hessian where the descent stands."""
        xp = backend.namespace(self._x)
        n = len(self._x)
        projected = self._A.forward(self._extrapolated)
        paths = projected.reshape(*projected.shape[:2], -1)
        by_ray = xp.empty((packed_size(n), *paths.shape[1:]), paths.dtype)
        self._loss.curvature(by_ray, paths)
        by_ray *= self._ray_lengths
        for first in range(0, len(by_ray), n):  # as many entries at a time as there are channels
            some = by_ray[first : first + n]
            paths[: len(some)] = some
            back = self._A.adjoint(projected, out=self._gradient)
            self._hessian[first : first + n] = back[: len(some)]
        diagonals = [self._hessian[place(i, i, n)] for i in range(n)]
        means = [float(diagonal.mean()) for diagonal in diagonals]
        if not min(means) > 0:
            raise WrongUsage("there is nothing to reconstruct from: no ray with a weight meets the volume")
        for diagonal in diagonals:
            diagonal *= 1 + SINGULAR_SHARE
        self._floor = SINGULAR_SHARE * np.array(means)
        if self._penalty is not None:
            self._floor = self._floor + self._penalty.curvature
