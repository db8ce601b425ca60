"""Back-projection along a helix on the CPU: every voxel shares itself out among the views that see it.

A line through a voxel is measured once a turn from either end, for as long as its shadow stays on the detector. Each of
these measurements counts less towards the lowest and the highest row, where it is about to be lost, and all of them
together count one.

# Ref: Stierstorfer et al. 2004, Phys. Med. Biol. 49, 2209: weights by the detector's row, normalised over
#      the views along one line. There the rays are parallel in each plane; here they are those of the fan.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconstruction.kernels.threads import in_threads

TAPERED_SHARE = 0.25
"""Rows at either edge over which measurements lose their weight, as a share of all."""


class Turns(NamedTuple):
    """The even helix of a scan, lengths in voxels.

    Attributes
    ----------
    lowest_rad, highest_rad : float
        Angles between which there are views.
    rows_per_turn : float
        How far a shadow on the axis moves over the rows.
    to_source : float
        From the axis.
    x_first, y_first : float
        The first voxel's place.
    centre_col, centre_row : float
        Pixel of the ray that meets the axis at a right angle.
    is_one_sided : bool
        Share out among the turns only, not among the two ends of a line.
    """

    lowest_rad: float
    highest_rad: float
    rows_per_turn: float
    to_source: float
    x_first: float
    y_first: float
    centre_col: float
    centre_row: float
    is_one_sided: bool


def backproject_helix(
    volume: NDArray[np.float32],
    projections: NDArray[np.float32],
    matrices: NDArray[np.float64],
    weights: NDArray[np.float64],
    angles_rad: NDArray[np.float64],
    turns: Turns,
) -> None:
    """Add to each voxel, of each view, share * weight / c^2 times the value at its shadow.

    Parameters
    ----------
    volume, projections, matrices, weights
        As of `backproject_cpu.backproject`, of upright detectors.
    angles_rad : (n_views,) float64
        Of all turns, not taken back to one circle.
    turns : Turns
        Of the whole scan.
    """
    columns = np.ascontiguousarray(projections.swapaxes(2, 3))
    work = volume, columns, matrices, weights, angles_rad, turns
    in_threads(_add_row, [(*work, y) for y in range(volume.shape[2])])


@njit(cache=True, nogil=True, error_model="numpy")
def _count(counts: NDArray[np.float64], first: int, end: int, row0: float, step: float, n_rows: int) -> None:
    """Add what measurements at rows row0 + k * step weigh, k from `first` to `end`: 1 inside, less near the edges."""
    last, taper = n_rows - 1.0, max(TAPERED_SHARE * n_rows, 1.0)
    for k in range(np.uint32(first), np.uint32(end)):
        row = row0 + np.float64(np.int32(k)) * step
        counts[k] += min(max(min(row, last - row) / taper, 0.0), 1.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _add_row(
    volume: NDArray[np.float32],
    columns: NDArray[np.float32],
    matrices: NDArray[np.float64],
    weights: NDArray[np.float64],
    angles: NDArray[np.float64],
    turns: Turns,
    y: int,
) -> None:
    """Do as `backproject_helix` for one y, from columns (n_views, n_bins, cols, rows)."""
    n_views, n_bins, n_cols, n_rows = columns.shape
    n_z = volume.shape[1]
    own, together = np.zeros(n_z), np.zeros(n_z)
    blended = np.zeros(n_rows + 1, np.float32)
    turn = 2 * np.pi
    for view in range(n_views):
        m, angle = matrices[view], angles[view]
        cos, sin = np.cos(angle), np.sin(angle)
        for x in range(volume.shape[3]):
            depth = m[2, 0] * x + m[2, 1] * y + m[2, 3]
            col = (m[0, 0] * x + m[0, 1] * y + m[0, 3]) / depth
            if not (depth > 0 and col > -1 and col < n_cols):
                continue
            step = m[1, 2] / depth
            row0 = (m[1, 0] * x + m[1, 1] * y + m[1, 3]) / depth
            first = max(int(np.ceil(-row0 / step)), 0)
            end = min(int(np.floor((n_rows - 1 - row0) / step)) + 1, n_z)
            if first >= end:
                continue
            own[first:end] = 0
            _count(own, first, end, row0, step, n_rows)
            for z in range(first, end):
                together[z] = own[z]
            x_mid, y_mid = turns.x_first + x, turns.y_first + y
            away = turns.to_source - x_mid * sin + y_mid * cos
            per_turn = turns.rows_per_turn * turns.to_source / away
            for back in range(1, int((angle - turns.lowest_rad) / turn) + 1):
                _count(together, first, end, row0 - back * per_turn, step, n_rows)
            for on in range(1, int((turns.highest_rad - angle) / turn) + 1):
                _count(together, first, end, row0 + on * per_turn, step, n_rows)
            other_col = 2 * turns.centre_col - col
            if not turns.is_one_sided and other_col > -1 and other_col < n_cols:
                fan = np.arctan2(x_mid * cos + y_mid * sin, away)
                other_angle = angle + np.pi - 2 * fan
                stretch = away / (2 * turns.to_source * np.cos(fan) ** 2 - away)
                lowest = int(np.ceil((turns.lowest_rad - other_angle) / turn))
                highest = int(np.floor((turns.highest_rad - other_angle) / turn))
                for i in range(lowest, highest + 1):
                    moved = per_turn * ((other_angle - angle) / turn + i)
                    other_row0 = turns.centre_row + (row0 + moved - turns.centre_row) * stretch
                    _count(together, first, end, other_row0, step * stretch, n_rows)
            left = int(np.floor(col))
            scale = weights[view] / (depth * depth)
            left_share = np.float32(scale * (1 - (col - left))) if left >= 0 else np.float32(0)
            right_share = np.float32(scale * (col - left)) if left + 1 < n_cols else np.float32(0)
            left, right = max(left, 0), min(left + 1, n_cols - 1)
            lowest, highest = int(row0 + first * step), min(int(row0 + (end - 1) * step) + 2, n_rows)
            for b in range(n_bins):
                for i in range(np.uint64(lowest), np.uint64(highest)):
                    blended[i] = left_share * columns[view, b, left, i] + right_share * columns[view, b, right, i]
                for k in range(np.uint64(first), np.uint64(end)):
                    if together[k] > 0:
                        row = row0 + np.float64(np.int64(k)) * step
                        low = np.uint64(row)
                        value = blended[low] + (row - low) * (blended[low + np.uint64(1)] - blended[low])
                        volume[b, k, y, x] += own[k] / together[k] * value
