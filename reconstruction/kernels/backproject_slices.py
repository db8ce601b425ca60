"""Back-projection of parallel rays square to z into a few slices: each is a plane problem, walked along x.

A slice takes from one height of the detector only, so its rows are blended once for all its voxels; along x the shadow
then moves by a constant step. Eight slices and more are better walked along z (`backproject_cpu`).

# Ref: Kak and Slaney 1988, Principles of Computerized Tomographic Imaging, chapter 3.3.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconstruction.kernels.threads import in_threads

SQUARE = 1e-9
"""Rows that a shadow may climb by from voxel to voxel, where rays count as square to z."""
LINES_TOGETHER = 16


def is_parallel(matrices: NDArray[np.float64]) -> bool:
    """Whether the rays of all views are parallel, and square to z."""
    climb = np.abs(matrices[:, 1, :2]).max(initial=0.0)
    return bool((matrices[:, 2, :3] == 0).all() and (matrices[:, 0, 2] == 0).all() and climb < SQUARE)


def backproject_slices(
    volume: NDArray[np.float32],
    projections: NDArray[np.float32],
    matrices: NDArray[np.float64],
    weights: NDArray[np.floating],
) -> None:
    """Do as `backproject_cpu.backproject`, for parallel rays."""
    depth = matrices[:, 2, 3:]
    to_column, to_row = matrices[:, 0, [0, 1, 3]] / depth, matrices[:, 1, 2:] / depth
    scale = (np.asarray(weights) / depth[:, 0] ** 2)[:, None]
    n_z, n_y, n_x = volume.shape[1:]
    n_cols = projections.shape[3]
    corners = to_column @ np.array([[0, n_x, 0, n_x], [0, 0, n_y, n_y], [1, 1, 1, 1]])
    # So many zeros beside the detector that no shadow falls beside them.
    before = max(-int(np.floor(corners.min())), 0) + 1
    after = max(int(np.ceil(corners.max())) - n_cols, 0) + 2
    to_column[:, 2] += before
    rows = np.zeros((len(projections), before + n_cols + after), np.float32)
    for z in range(n_z):
        blended = _at_heights(projections, to_row[:, 0] * z + to_row[:, 1])
        for b in range(len(volume)):
            rows[:, before : before + n_cols] = scale * blended[:, b]
            lines = range(0, n_y, LINES_TOGETHER)
            in_threads(_add_lines, [(volume[b, z], rows, to_column, y, min(y + LINES_TOGETHER, n_y)) for y in lines])


def _at_heights(projections: NDArray[np.float32], heights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Interpolate each view at its height, in rows: (n_views, n_bins, cols). Beyond the detector are zeros."""
    n_rows, low = projections.shape[2], np.floor(heights).astype(int)
    blended = np.zeros(projections[:, :, 0].shape, np.float32)
    for row in (low, low + 1):
        share = np.where((row >= 0) & (row < n_rows), 1 - np.abs(heights - row), 0).astype(np.float32)
        blended += share[:, None, None] * projections[np.arange(len(row)), :, np.clip(row, 0, n_rows - 1)]
    return blended


@njit(cache=True, nogil=True, fastmath=True)
def _add_lines(
    image: NDArray[np.float32], rows: NDArray[np.float32], to_column: NDArray[np.float64], first: int, end: int
) -> None:
    """Add all views to lines `first` to `end` of an image (y, x)."""
    for view in range(len(rows)):
        row, step = rows[view], np.float32(to_column[view, 0])
        for y in range(first, end):
            line, place = image[y], np.float32(to_column[view, 1] * y + to_column[view, 2])
            for x in range(len(line)):
                shadow = place + np.float32(x) * step
                low = np.int32(shadow)
                column = np.uint64(np.uint32(low))  # unsigned, so that nothing is counted from the end
                value = row[column]
                line[x] += value + (shadow - np.float32(low)) * (row[column + np.uint64(1)] - value)
