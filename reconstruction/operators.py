"""Linear operators: what an iterative method needs to know of a scan, and nothing else."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from numpy.typing import ArrayLike

from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.backend import Array


class Operator(ABC):
    """A linear map between arrays of two shapes, with its exact adjoint.

    Attributes
    ----------
    domain_shape, range_shape : tuple of int
        Of what `forward` takes, and of what it returns.
    n_channels : int
        Into how many parts along the first axes of both shapes the map falls, each part for itself; 1: it may mix all.
    """

    domain_shape: tuple[int, ...]
    range_shape: tuple[int, ...]
    n_channels: int = 1

    @abstractmethod
    def forward(self, x: Array, out: Array | None = None) -> Array:
        """Return A x, in `out` where that is given."""

    @abstractmethod
    def adjoint(self, y: Array, out: Array | None = None) -> Array:
        """Return A^T y, in `out` where that is given."""

    def subset(self, views: ArrayLike | slice) -> Operator:
        """Return the operator to some entries of the range's second axis only, for ordered subsets."""
        raise WrongUsage(f"{self} cannot be cut into {views}; allowed: methods with one subset")

    @property
    def T(self) -> Operator:  # noqa: N802 - the name of the field
        """The adjoint as an operator."""
        return _Transposed(self)

    def __matmul__(self, x: Array) -> Array:
        """Return A x, or A B for an operator B."""
        return _Product(self, x) if isinstance(x, Operator) else self.forward(x)

    def __repr__(self) -> str:
        return f"<{type(self).__name__.strip('_')} {self.domain_shape} -> {self.range_shape}>"


class _Transposed(Operator):
    def __init__(self, inner: Operator) -> None:
        self._inner = inner
        self.domain_shape, self.range_shape = inner.range_shape, inner.domain_shape
        self.n_channels = inner.n_channels

    def forward(self, x: Array, out: Array | None = None) -> Array:
        return self._inner.adjoint(x, out)

    def adjoint(self, y: Array, out: Array | None = None) -> Array:
        return self._inner.forward(y, out)

    @property
    def T(self) -> Operator:  # noqa: N802
        return self._inner


class _Product(Operator):
    def __init__(self, outer: Operator, inner: Operator) -> None:
        if math.prod(outer.domain_shape) != math.prod(inner.range_shape) or outer.domain_shape != inner.range_shape:
            raise ValueError(f"{outer} cannot follow {inner}: {outer.domain_shape} is not {inner.range_shape}")
        self._outer, self._inner = outer, inner
        self.domain_shape, self.range_shape = inner.domain_shape, outer.range_shape
        self.n_channels = inner.n_channels if inner.n_channels == outer.n_channels else 1

    def forward(self, x: Array, out: Array | None = None) -> Array:
        return self._outer.forward(self._inner.forward(x), out)

    def adjoint(self, y: Array, out: Array | None = None) -> Array:
        return self._inner.adjoint(self._outer.adjoint(y), out)


def inner_products(x: Array, y: Array, n_channels: int = 1) -> Array:
    """Return <x, y> of each channel: (n_channels,) float64, where the arrays are."""
    xp = backend.namespace(x)
    parts = zip(x.reshape(n_channels, -1), y.reshape(n_channels, -1), strict=True)
    return xp.stack([xp.vdot(a, b) for a, b in parts]).astype(xp.float64)
