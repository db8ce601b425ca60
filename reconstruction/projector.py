"""line integrals through a volume, and their exact adjoint: the matched pair that iterative methods stand on.

Volumes are in 1/mm, line integrals have no dimension. Which kernels compute them is chosen once, by the scan: parallel
beams square to z go slice by slice (`joseph_slices`), upright detectors column by column (`joseph_columns`), all others
ray by ray (`joseph_rays`), and everything on a GPU by `joseph_gpu`. All give what `joseph_plain` has as a formula.

# Ref: Joseph 1982, IEEE Trans. Med. Imaging 1, 192.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from reconstruction.backend import Array, namespace, require_gpu, to_device
from reconstruction.kernels import joseph_columns, joseph_rays, joseph_slices
from reconstruction.operators import Operator
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid


class Projector(Operator):
    """Joseph's projector between a grid and the views of a scan.

    Parameters
    ----------
    scan : ScanGeometry
    grid : Grid
    n_channels : int
        Bins or materials that go through together.
    mask : (z, y, x) bool, optional
        Where the object can be: voxels outside count as 0.
    dtype : float32 or float64
    use_gpu : bool
        Take and return arrays of the device.
    """

    def __init__(
        self,
        scan: ScanGeometry,
        grid: Grid,
        *,
        n_channels: int = 1,
        mask: NDArray[np.bool_] | None = None,
        dtype: DTypeLike = np.float32,
        use_gpu: bool = False,
    ) -> None:
        self.scan, self.grid, self.use_gpu = scan, grid, use_gpu
        self.mask: Any = to_device(mask) if use_gpu and mask is not None else mask
        self.n_channels = n_channels
        self.dtype: Any = np.dtype(dtype)
        self.domain_shape = (n_channels, *grid.shape)
        self.range_shape = (n_channels, scan.n_views, scan.rows, scan.cols)
        self._rays = _rays(scan, grid)
        self._kernels: Any = self._choose()

    def forward(self, x: Array, out: Array | None = None) -> Array:
        """Return the line integrals: (n_channels, n_views, rows, cols), dimensionless.

        Parameters
        ----------
        x : (n_channels, z, y, x) float, 1/mm
        out : array of `range_shape`, optional
            Filled and returned.
        """
        volume = self._checked(x, self.domain_shape)
        volume = volume if self.mask is None else volume * self.mask
        projections = self._room(self.range_shape, out)
        self._kernels.forward(volume, projections, self._rays, self.scan.is_parallel, self.grid.voxel_mm)
        return _into(out, projections)

    def adjoint(self, y: Array, out: Array | None = None) -> Array:
        """Return what `forward` transposed makes of line integrals: (n_channels, z, y, x), mm times their unit."""
        projections = self._checked(y, self.range_shape)
        volume = self._room(self.domain_shape, out)
        volume[:] = 0
        self._kernels.adjoint(volume, projections, self._rays, self.scan.is_parallel, self.grid.voxel_mm)
        if self.mask is not None:
            volume *= self.mask
        return _into(out, volume)

    def subset(self, views: ArrayLike | slice) -> Projector:
        """Return the projector of some views only, for ordered subsets."""
        return Projector(
            self.scan.take(views),
            self.grid,
            n_channels=self.domain_shape[0],
            mask=self.mask,
            dtype=self.dtype,
            use_gpu=self.use_gpu,
        )

    def _choose(self) -> ModuleType:
        """Return the kernels for this scan: all have `forward` and `adjoint`, which take and give the same."""
        if self.use_gpu:
            return importlib.import_module("reconstruction.kernels.joseph_gpu")
        scan = self.scan
        if joseph_slices.suits(self._rays, scan.is_parallel):
            return joseph_slices
        if joseph_columns.n_phases(self._rays, scan.is_parallel, self.grid.shape, scan.rows, scan.cols):
            return joseph_columns
        return joseph_rays

    def _room(self, shape: tuple[int, ...], out: Array | None) -> Any:
        """Return what the kernels can write to: `out` itself where they can."""
        if out is not None and out.shape != shape:
            raise ValueError(f"out has shape {out.shape}; allowed: {shape}")
        if out is not None and out.dtype == self.dtype and out.flags.c_contiguous:
            return out
        return (require_gpu() if self.use_gpu else np).empty(shape, self.dtype)

    def _checked(self, array: Any, shape: tuple[int, ...]) -> Any:
        if array.shape != shape:
            raise ValueError(f"the array has shape {array.shape}; allowed: {shape}")
        return namespace(array).ascontiguousarray(array, self.dtype)


def _into(out: Array | None, result: Array) -> Array:
    if out is None or out is result:
        return result
    out[...] = result
    return out


def _rays(scan: ScanGeometry, grid: Grid) -> NDArray[np.float64]:
    """Return the vectors as the kernels take them: (n_views, 4, 3), in voxels from the first one, z, y, x."""
    first_voxel = np.array([axis[0] for axis in grid.axes_mm()])
    first_pixel = scan.detector_mm - (scan.cols - 1) / 2 * scan.u_mm - (scan.rows - 1) / 2 * scan.v_mm
    rays = np.stack([scan.source_mm, first_pixel, scan.u_mm, scan.v_mm], axis=1)[..., ::-1].copy()
    rays[:, 1] -= first_voxel
    if not scan.is_parallel:
        rays[:, 0] -= first_voxel
    return rays / grid.voxel_mm
