"""Linear operators: what an iterative method needs to know of a scan, and nothing else."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from reconstruction.backend import Array


class Operator(ABC):
    """A linear map between arrays of two shapes, with its exact adjoint.

    Attributes
    ----------
    domain_shape, range_shape : tuple of int
        Of what `forward` takes, and of what it returns.
    """

    domain_shape: tuple[int, ...]
    range_shape: tuple[int, ...]

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Return A x."""

    @abstractmethod
    def adjoint(self, y: Array) -> Array:
        """Return A^T y."""

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

    def forward(self, x: Array) -> Array:
        return self._inner.adjoint(x)

    def adjoint(self, y: Array) -> Array:
        return self._inner.forward(y)

    @property
    def T(self) -> Operator:  # noqa: N802
        return self._inner


class _Product(Operator):
    def __init__(self, outer: Operator, inner: Operator) -> None:
        if math.prod(outer.domain_shape) != math.prod(inner.range_shape) or outer.domain_shape != inner.range_shape:
            raise ValueError(f"{outer} cannot follow {inner}: {outer.domain_shape} is not {inner.range_shape}")
        self._outer, self._inner = outer, inner
        self.domain_shape, self.range_shape = inner.domain_shape, outer.range_shape

    def forward(self, x: Array) -> Array:
        return self._outer.forward(self._inner.forward(x))

    def adjoint(self, y: Array) -> Array:
        return self._inner.adjoint(self._outer.adjoint(y))
