"""line integrals through a volume larger than memory, and their exact adjoint: the projector, slab by slab.

A volume is the sum of its slabs, each with zeros around it, so that its line integrals are the sum of theirs, and the
adjoint of a slab is the slab of the adjoint. Between two slabs the projector interpolates towards zero from both sides,
which adds up to what it does inside. Volume and line integrals may be mapped files (`numpy.memmap`); a method that
keeps more such arrays takes their memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from reconstruction import backend
from reconstruction.backend import Array
from reconstruction.operators import Operator
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.size.budget import cut, sub_grid
from reconstruction.volume import Grid


class SlabProjector(Operator):
    """Joseph's projector between a grid and the views of a scan, a slab and a block of views at a time.

    It takes and returns arrays of the host, and works on the GPU if told.

    Parameters
    ----------
    scan, grid, n_channels, mask, dtype, use_gpu
        As of `Projector`.
    slices_per_slab, views_per_block : int
        What is held at once.
    """

    def __init__(
        self,
        scan: ScanGeometry,
        grid: Grid,
        *,
        slices_per_slab: int,
        views_per_block: int,
        n_channels: int = 1,
        mask: NDArray[np.bool_] | None = None,
        dtype: DTypeLike = np.float32,
        use_gpu: bool = False,
    ) -> None:
        self.scan, self.grid = scan, grid
        self._mask, self._dtype, self._use_gpu = mask, np.dtype(dtype), use_gpu
        self._views_per_block = views_per_block
        self._slabs = cut(grid.shape[0], -(-grid.shape[0] // slices_per_slab))
        self.domain_shape = (n_channels, *grid.shape)
        self.range_shape = (n_channels, scan.n_views, scan.rows, scan.cols)

    def forward(self, x: Array, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the line integrals: (n_channels, n_views, rows, cols), dimensionless.

        Parameters
        ----------
        x : (n_channels, z, y, x) float, 1/mm
        out : array of `range_shape`, optional
            Filled and returned.
        """
        projections = np.empty(self.range_shape, self._dtype) if out is None else out
        projections[:] = 0
        for slab in self._slabs:
            part = self._send(np.ascontiguousarray(x[:, slab], self._dtype))
            for views, rows, projector in self._parts(slab):
                projections[:, views, rows] += backend.to_host(projector.forward(part))
        return projections

    def adjoint(self, y: Array, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return what `forward` transposed makes of line integrals: (n_channels, z, y, x), mm times their unit."""
        volume = np.empty(self.domain_shape, self._dtype) if out is None else out
        for slab in self._slabs:
            total: Any = np.zeros((self.domain_shape[0], slab.stop - slab.start, *self.grid.shape[1:]), self._dtype)
            for views, rows, projector in self._parts(slab):
                part = self._send(np.ascontiguousarray(y[:, views, rows], self._dtype))
                total += backend.to_host(projector.adjoint(part))
            volume[:, slab] = total
        return volume

    def _send(self, array: NDArray[Any]) -> Array:
        return backend.to_device(array) if self._use_gpu else array

    def _parts(self, slab: slice) -> Iterator[tuple[slice, slice, Projector]]:
        """Yield the blocks of views that see a slab, the rows on which they do, and their projector."""
        grid = sub_grid(self.grid, slab)
        for first in range(0, self.scan.n_views, self._views_per_block):
            views = slice(first, min(first + self._views_per_block, self.scan.n_views))
            scan = self.scan.take(views)
            rows = _rows_met(scan, grid)
            if rows.stop > rows.start:
                yield (
                    views,
                    rows,
                    Projector(
                        _on_rows(scan, rows),
                        grid,
                        n_channels=self.domain_shape[0],
                        mask=None if self._mask is None else self._mask[slab],
                        dtype=self._dtype,
                        use_gpu=self._use_gpu,
                    ),
                )


def _rows_met(scan: ScanGeometry, grid: Grid) -> slice:
    """Return the rows whose rays may meet a grid, with a voxel around it; all, where it reaches behind a source."""
    ends = [(axis[0] - grid.voxel_mm, axis[-1] + grid.voxel_mm) for axis in grid.axes_mm()]
    z, y, x = np.meshgrid(*ends, indexing="ij")
    corners = np.stack([x.ravel(), y.ravel(), z.ravel(), np.ones(8)])
    _, b, c = np.moveaxis(scan.matrices() @ corners, 1, 0)
    if (c <= 0).any():
        return slice(0, scan.rows)
    first, stop = np.clip([np.floor((b / c).min()), np.ceil((b / c).max()) + 1], 0, scan.rows)
    return slice(int(first), int(stop))


def _on_rows(scan: ScanGeometry, rows: slice) -> ScanGeometry:
    shift_px = (rows.start + rows.stop - 1) / 2 - (scan.rows - 1) / 2
    return replace(scan, detector_mm=scan.detector_mm + shift_px * scan.v_mm, rows=rows.stop - rows.start)
