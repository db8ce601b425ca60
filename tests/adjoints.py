"""The law that every operator obeys: <A x, y> = <x, A^T y>."""

from __future__ import annotations

import numpy as np

from reconstruction.operators import Operator


def assert_adjoint(operator: Operator, *, dtype=np.float64, tolerance: float | None = None, seed: int = 0) -> None:
    """Fail unless an operator's two halves agree, relative to the sizes of what they are applied to and give."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(operator.domain_shape).astype(dtype)
    y = rng.standard_normal(operator.range_shape).astype(dtype)
    ax, aty = operator.forward(x).astype(np.float64), operator.adjoint(y).astype(np.float64)
    assert ax.shape == operator.range_shape
    assert aty.shape == operator.domain_shape
    one, other = float((ax * y).sum()), float((x * aty).sum())
    size = max(np.linalg.norm(ax) * np.linalg.norm(y), np.linalg.norm(x) * np.linalg.norm(aty))
    tolerance = tolerance if tolerance is not None else (1e-13 if np.dtype(dtype) == np.float64 else 1e-6)
    assert abs(one - other) <= tolerance * size, f"{one} is not {other}, of {size}"
