"""An operator of dense matrices, one per channel: small enough that NumPy and SciPy solve it too."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reconstruction.operators import Operator


class MatrixOperator(Operator):
    """Channel c maps (n_voxels,) to (n_views, n_rays) by ``matrices[c]``: (n_channels, n_views, n_rays, n_voxels)."""

    def __init__(self, matrices: NDArray[np.float64]) -> None:
        self.matrices = matrices
        self.n_channels = len(matrices)
        self.domain_shape = (len(matrices), matrices.shape[-1])
        self.range_shape = matrices.shape[:-1]
        self.n_forward = self.n_adjoint = 0

    def forward(self, x, out=None):
        self.n_forward += 1
        y = np.einsum("cvrj,cj->cvr", self.matrices, x)
        return y if out is None else np.copyto(out, y) or out

    def adjoint(self, y, out=None):
        self.n_adjoint += 1
        x = np.einsum("cvrj,cvr->cj", self.matrices, y)
        return x if out is None else np.copyto(out, x) or out

    def subset(self, views):
        return MatrixOperator(self.matrices[:, views])

    def dense(self, channel: int = 0) -> NDArray[np.float64]:
        """The matrix of one channel: (n_views * n_rays, n_voxels)."""
        return self.matrices[channel].reshape(-1, self.matrices.shape[-1])


def random_operator(
    rng: np.random.Generator, *, n_channels: int = 1, n_views: int = 12, n_rays: int = 5, n_voxels: int = 20
) -> MatrixOperator:
    """Non-negative, sparse and overdetermined, as rays are; each channel has a matrix of its own."""
    shape = (n_channels, n_views, n_rays, n_voxels)
    return MatrixOperator(rng.uniform(0.2, 1.0, shape) * (rng.random(shape) < 0.4))
