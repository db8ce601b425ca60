"""Joseph's projector as its formula has it: any rays through any grid, one ray at a time.

A ray steps from slice to slice of voxels along the axis that it runs along most, and takes in each slice the value
between the four voxel centres around it; outside the volume all is zero. The adjoint spreads by the same shares.
The fast kernels are held against these two.

# Ref: Joseph 1982, IEEE Trans. Med. Imaging 1, 192.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True, inline="always")
def _slice_of_ray(
    origin: NDArray[np.float64], direction: NDArray[np.float64], axis: int, index: int
) -> tuple[float, float]:
    """Return where a ray meets a slice along the two other axes."""
    t = (index - origin[axis]) / direction[axis]
    a, b = (1, 2) if axis == 0 else ((0, 2) if axis == 1 else (0, 1))
    return origin[a] + t * direction[a], origin[b] + t * direction[b]


@njit(cache=True, nogil=True)
def forward(
    volume: NDArray[np.floating],
    projections: NDArray[np.floating],
    rays: NDArray[np.float64],
    is_parallel: bool,
    step_mm: float,
    first: int,
    end: int,
) -> None:
    """Fill views `first` to `end` of `projections`.

    Parameters
    ----------
    volume : (n_channels, z, y, x) float
    projections : (n_channels, n_views, rows, cols) float
        Line integrals, in `step_mm` times the unit of the volume.
    rays : (n_views, 4, 3) float64
        Source (or the direction to it), centre of the first pixel, and steps to the next column and row: in voxels from
        the centre of the first voxel, in the order z, y, x.
    """
    n_channels, _, rows, cols = projections.shape
    shape = volume.shape[1:]
    for view in range(first, end):
        for row in range(rows):
            for col in range(cols):
                origin = rays[view, 1] + col * rays[view, 2] + row * rays[view, 3]
                direction = -rays[view, 0] if is_parallel else origin - rays[view, 0]
                axis = int(np.argmax(np.abs(direction)))
                scale = step_mm * np.sqrt((direction * direction).sum()) / abs(direction[axis])
                n_a, n_b = (
                    (shape[1], shape[2]) if axis == 0 else ((shape[0], shape[2]) if axis == 1 else (shape[0], shape[1]))
                )
                for channel in range(n_channels):
                    projections[channel, view, row, col] = 0
                for index in range(shape[axis]):
                    a, b = _slice_of_ray(origin, direction, axis, index)
                    low_a, low_b = int(np.floor(a)), int(np.floor(b))
                    if low_a < -1 or low_b < -1 or low_a >= n_a or low_b >= n_b:
                        continue
                    for da in range(2):
                        for db in range(2):
                            ia, ib = low_a + da, low_b + db
                            if ia < 0 or ib < 0 or ia >= n_a or ib >= n_b:
                                continue
                            weight = scale * abs(1 - da - (a - low_a)) * abs(1 - db - (b - low_b))
                            iz, iy, ix = (
                                (index, ia, ib) if axis == 0 else ((ia, index, ib) if axis == 1 else (ia, ib, index))
                            )
                            for channel in range(n_channels):
                                projections[channel, view, row, col] += weight * volume[channel, iz, iy, ix]


@njit(cache=True, nogil=True)
def adjoint(
    volume: NDArray[np.floating],
    projections: NDArray[np.floating],
    rays: NDArray[np.float64],
    is_parallel: bool,
    step_mm: float,
) -> None:
    """Add to `volume` what `forward` transposed makes of all views; the arrays are those of `forward`."""
    n_channels, n_views, rows, cols = projections.shape
    shape = volume.shape[1:]
    for view in range(n_views):
        for row in range(rows):
            for col in range(cols):
                origin = rays[view, 1] + col * rays[view, 2] + row * rays[view, 3]
                direction = -rays[view, 0] if is_parallel else origin - rays[view, 0]
                axis = int(np.argmax(np.abs(direction)))
                scale = step_mm * np.sqrt((direction * direction).sum()) / abs(direction[axis])
                n_a, n_b = (
                    (shape[1], shape[2]) if axis == 0 else ((shape[0], shape[2]) if axis == 1 else (shape[0], shape[1]))
                )
                for index in range(shape[axis]):
                    a, b = _slice_of_ray(origin, direction, axis, index)
                    low_a, low_b = int(np.floor(a)), int(np.floor(b))
                    if low_a < -1 or low_b < -1 or low_a >= n_a or low_b >= n_b:
                        continue
                    for da in range(2):
                        for db in range(2):
                            ia, ib = low_a + da, low_b + db
                            if ia < 0 or ib < 0 or ia >= n_a or ib >= n_b:
                                continue
                            weight = scale * abs(1 - da - (a - low_a)) * abs(1 - db - (b - low_b))
                            iz, iy, ix = (
                                (index, ia, ib) if axis == 0 else ((ia, index, ib) if axis == 1 else (ia, ib, index))
                            )
                            for channel in range(n_channels):
                                volume[channel, iz, iy, ix] += weight * projections[channel, view, row, col]
