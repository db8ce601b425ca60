"""A prior of channels that are mixtures of those that a method works in, which may be bounded below as well.

Methods want channels whose noise is white; a prior may want the materials, and so does the bound that no concentration
is below 0. The prox of strength * R(M u), with rows @ u >= 0 in every voxel, has a dual variable p of the differences
of M u as `priors.Dual` has it, and r >= 0 of the rows; both move together.

# Ref: fast gradient projection of duals, with bounds: Beck and Teboulle 2009, IEEE Trans. Image Process. 18, 2419.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firmware_iface.errors import WrongUsage
from reconstruction.backend import Array, namespace
from reconstruction.priors import DifferencePrior, Dual, Prior


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixedPrior(Prior):
    """strength * R(M u), where rows @ u >= 0.

    Attributes
    ----------
    prior : DifferencePrior
    mixing : (n_mixed, n_channels) float64
        M.
    rows : (n_rows, n_channels) float64, optional
        None: no bounds.
    """

    prior: DifferencePrior
    mixing: NDArray[np.floating]
    rows: NDArray[np.floating] | None = None

    def value(self, u: Array) -> float:
        """Return strength * R(M u); it says nothing of the bounds."""
        return self.prior.value(channels_mixed(u, self.mixing))

    def gradient(self, u: Array) -> Array:
        """Return the gradient, (n_channels, z, y, x), where the prior has one and there are no bounds."""
        if self.rows is not None:
            raise WrongUsage(f"{type(self.prior).__name__} between bounds has no gradient", hint="take its prox")
        return channels_mixed(self.prior.gradient(channels_mixed(u, self.mixing)), self.mixing.T)

    def curvature(self, like: Array) -> float:
        """Return a bound of the gradient's slope; infinite where there are bounds."""
        if self.rows is not None:
            return math.inf
        return self.prior.curvature(channels_mixed(like, self.mixing)) * float(np.linalg.norm(self.mixing, 2)) ** 2

    def prepare(self, like: Array) -> MixedDual:
        """Return the dual variables for volumes like this one, at zero."""
        return MixedDual(self, like)


class MixedDual:
    """The dual variables of a mixed prior, kept between calls, and the steps that move them."""

    def __init__(self, mixed: MixedPrior, like: Array) -> None:
        self._mixing, self._strength = mixed.mixing, mixed.prior.strength_of_norm
        self._differences = Dual(mixed.prior, channels_mixed(like, mixed.mixing))
        self._push = None if mixed.rows is None else _Push(mixed.rows, like)

    def value(self, u: Array) -> float:
        """Return strength * R(M u)."""
        return self._differences.value(channels_mixed(u, self._mixing))

    def prox(self, out: Array, y: Array, step: float, *, n_iterations: int, is_non_negative: bool) -> None:
        """Fill `out` with the prox of `y`, by fast gradient projection on from the present duals."""
        if is_non_negative:
            raise WrongUsage("channels that are mixed are bounded by rows, not each by itself")
        push, differences = self._push, self._differences
        norm2 = differences.norm2 * float(np.linalg.norm(self._mixing, 2)) ** 2
        ratio = (1.0 if push is None else 0.5) / (step * self._strength * norm2)  # two duals: each has half a step
        q = differences.begin()
        t = 1.0
        for _ in range(n_iterations):
            self._fill(out, y, differences.pull(q, step))
            before, t = t, (1 + math.sqrt(1 + 4 * t * t)) / 2
            momentum = (before - 1) / t
            differences.move(channels_mixed(out, self._mixing), ratio, momentum)
            if push is not None:
                push.move(out, momentum)
        if push is not None:
            push.stand_still()
        self._fill(out, y, differences.pull(differences.p, step))

    def _fill(self, out: Array, y: Array, pull: Array) -> None:
        """Set the image that belongs to the duals: y + M^T pull, pushed by the bounds."""
        namespace(y).add(y, channels_mixed(pull, self._mixing.T), out=out)
        if self._push is not None:
            out += self._push.image()


class _Push:
    """The dual variable r >= 0 of rows @ u >= 0, which pushes an image back to where that holds."""

    def __init__(self, rows: NDArray[np.floating], like: Array) -> None:
        self._xp, self._rows = namespace(like), rows / np.linalg.norm(rows, 2)
        self._r = self._xp.zeros((len(rows), *like.shape[1:]), like.dtype)
        self._ahead = self._r

    def image(self) -> Array:
        """Return rows^T r."""
        return channels_mixed(self._ahead, self._rows.T)

    def move(self, u: Array, momentum: float) -> None:
        """Step against rows @ u, and past it by the momentum times the change."""
        new = self._xp.maximum(self._ahead - 0.5 * channels_mixed(u, self._rows), 0)
        self._ahead = new + momentum * (new - self._r)
        self._r = new

    def stand_still(self) -> None:
        """Forget where the momentum went."""
        self._ahead = self._r


def channels_mixed(values: Array, matrix: NDArray[np.floating]) -> Array:
    """Return the matrix times the channels of every voxel or ray: (n_rows, ...), in the dtype of the values."""
    xp = namespace(values)
    return xp.tensordot(xp.asarray(matrix.astype(values.dtype)), values, axes=1)
