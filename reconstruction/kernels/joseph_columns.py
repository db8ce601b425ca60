"""Joseph's projector for upright detectors: all rays of one detector column lie in one upright plane.

On its way from plane to plane of voxels, such a fan of rays lies between the same two columns of voxels in each plane.
They are blended once, and along the blend the rays of the column stand at equal steps: `joseph_lanes` reads them there,
eight at a time. The planes are those across x or across y, whichever the column's rays run along more.

The volume goes through by slabs of some planes, turned so that z is innermost, with zeros around it. Several views
that look alike share what is in the cache. Where rows stand closer than the voxels, every second, third ... row makes a
line of its own (`n_phases`). Forward, threads take different views; backward, different slabs: no result depends on
their number.

# Ref: Joseph 1982, IEEE Trans. Med. Imaging 1, 192.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconstruction.kernels.joseph_lanes import PAD_AFTER, PAD_BEFORE, SHORTEST_STEP, read, share
from reconstruction.kernels.threads import in_threads

TILE = 16
"""Detector columns that go through a slab together."""
VIEWS_TOGETHER = 4
PLANES = 16
"""Planes of a slab: what a tile of columns meets of them stays in the cache for the next views."""
MOST_PHASES = 16

_Array = NDArray[np.floating]


@njit(nogil=True, cache=True)
def _pack(slab: _Array, volume: _Array, axis: int, first: int, end: int) -> None:
    """Turn planes `first` to `end` of the volume into a slab: (planes, 1 + n + 1, n_channels, padded z), flat."""
    n_channels, n_z, n_y, n_x = volume.shape
    n_padded = PAD_BEFORE + n_z + PAD_AFTER
    n_minor = n_x if axis == 1 else n_y
    stride = n_channels * n_padded
    slab[: (end - first) * (n_minor + 2) * stride] = 0
    for plane in range(first, end):
        start = ((plane - first) * (n_minor + 2) + 1) * stride + PAD_BEFORE
        for channel in range(n_channels):
            for z_first in range(0, n_z, 16):
                for minor in range(n_minor):
                    at = start + minor * stride + channel * n_padded
                    for z in range(z_first, min(z_first + 16, n_z)):
                        slab[at + z] = (
                            volume[channel, z, plane, minor] if axis == 1 else volume[channel, z, minor, plane]
                        )


@njit(nogil=True, cache=True)
def _unpack(volume: _Array, slab: _Array, axis: int, first: int, end: int) -> None:
    """Add a slab to the planes of the volume that it stands for."""
    n_channels, n_z, n_y, n_x = volume.shape
    n_padded = PAD_BEFORE + n_z + PAD_AFTER
    n_minor = n_x if axis == 1 else n_y
    stride = n_channels * n_padded
    for plane in range(first, end):
        start = ((plane - first) * (n_minor + 2) + 1) * stride + PAD_BEFORE
        for channel in range(n_channels):
            for z_first in range(0, n_z, 16):
                for minor in range(n_minor):
                    at = start + minor * stride + channel * n_padded
                    for z in range(z_first, min(z_first + 16, n_z)):
                        if axis == 1:
                            volume[channel, z, plane, minor] += slab[at + z]
                        else:
                            volume[channel, z, minor, plane] += slab[at + z]


@njit(nogil=True, cache=True)
def _fan(ray: NDArray[np.float64], is_parallel: bool, col: int, axis: int, fan: NDArray[np.float64]) -> bool:
    """Fill in where the rays of a detector column run; return whether they run along `axis`.

    fan : (9,) float64
        Place across and its change per plane; z of row 0 and its change; z per row and its change; then the squared
        length of a step from plane to plane: in the plane, z of its direction at row 0, and its change per row.
    """
    origin_z, origin_p, origin_m = (
        ray[1, 0],
        ray[1, axis] + col * ray[2, axis],
        ray[1, 3 - axis] + col * ray[2, 3 - axis],
    )
    if is_parallel:
        along_z, along_p, along_m = -ray[0, 0], -ray[0, axis], -ray[0, 3 - axis]
    else:
        along_z, along_p, along_m = origin_z - ray[0, 0], origin_p - ray[0, axis], origin_m - ray[0, 3 - axis]
    if abs(along_p) < abs(along_m) or (axis == 2 and abs(along_p) == abs(along_m)):
        return False
    fan[1] = along_m / along_p
    fan[0] = origin_m - origin_p * fan[1]
    if is_parallel:
        fan[2], fan[3], fan[4], fan[5] = origin_z, 0.0, ray[3, 0], 0.0
        fan[8] = 0.0
    else:
        fan[3] = along_z / along_p
        fan[2] = ray[0, 0] - ray[0, axis] * fan[3]
        fan[5] = ray[3, 0] / along_p
        fan[4] = -ray[0, axis] * fan[5]
        fan[8] = ray[3, 0] / along_p
    fan[6] = 1 + fan[1] * fan[1]
    fan[7] = along_z / along_p
    return True


@njit(nogil=True, cache=True)
def _forward(
    projections: _Array,
    slab: _Array,
    shape: tuple[int, int, int],
    rays: NDArray[np.float64],
    is_parallel: bool,
    step_mm: float,
    axis: int,
    first_plane: int,
    n_phases: int,
    views: tuple[int, int],
) -> None:
    """Add what the rays of some views gather in a slab of `shape` (planes, n, n_z) to `projections`."""
    n_channels, _, rows, cols = projections.shape
    n_planes, n_minor, n_z = shape
    n_padded = PAD_BEFORE + n_z + PAD_AFTER
    n_rows = PAD_BEFORE + (rows + n_phases - 1) // n_phases + PAD_AFTER
    stride, sums_stride = n_channels * n_padded, n_channels * n_phases * n_rows
    sums = np.zeros(TILE * sums_stride, slab.dtype)
    line = np.zeros(stride, slab.dtype)
    fans, is_along = np.empty((TILE, 9)), np.empty(TILE, np.bool_)
    for first_view in range(views[0], views[1], VIEWS_TOGETHER):
        for first_col in range(0, cols, TILE):
            n_cols = min(TILE, cols - first_col)
            for view in range(first_view, min(first_view + VIEWS_TOGETHER, views[1])):
                for c in range(n_cols):
                    is_along[c] = _fan(rays[view], is_parallel, first_col + c, axis, fans[c])
                if not is_along[:n_cols].any():
                    continue
                sums[:] = 0
                for plane in range(n_planes):
                    for c in range(n_cols):
                        across = fans[c, 0] + (first_plane + plane) * fans[c, 1]
                        if not (is_along[c] and across > -1 and across < n_minor):
                            continue
                        z = fans[c, 2] + (first_plane + plane) * fans[c, 3]
                        z_step = fans[c, 4] + (first_plane + plane) * fans[c, 5]
                        first = max(int(np.floor((-1 - z) / z_step)) + 1, 0)
                        end = min(int(np.ceil((n_z - z) / z_step)), rows)
                        if first >= end:
                            continue
                        left = int(np.floor(across + 1))
                        right_share = slab.dtype.type(across + 1 - left)
                        left_at, right_at = (
                            (plane * (n_minor + 2) + left) * stride,
                            (plane * (n_minor + 2) + left + 1) * stride,
                        )
                        lowest = max(PAD_BEFORE + int(z + first * z_step) - 5, 0)
                        highest = min(PAD_BEFORE + int(z + end * z_step) + 26, n_padded)
                        for channel in range(n_channels):
                            at = channel * n_padded
                            for k in range(np.uint64(at + lowest), np.uint64(at + highest)):
                                low = slab[np.uint64(left_at) + k]
                                line[k] = low + right_share * (slab[np.uint64(right_at) + k] - low)
                        for phase in range(n_phases):
                            read(
                                sums,
                                c * sums_stride + phase * n_rows + PAD_BEFORE,
                                n_phases * n_rows,
                                line,
                                PAD_BEFORE,
                                n_padded,
                                n_channels,
                                z + phase * z_step,
                                n_phases * z_step,
                                (first - phase + n_phases - 1) // n_phases,
                                (end - phase + n_phases - 1) // n_phases,
                            )
                for row in range(rows):
                    at = row % n_phases * n_rows + PAD_BEFORE + row // n_phases
                    for c in range(n_cols):
                        if is_along[c]:
                            slope = fans[c, 7] + row * fans[c, 8]
                            scale = slab.dtype.type(step_mm * np.sqrt(fans[c, 6] + slope * slope))
                            for channel in range(n_channels):
                                value = sums[c * sums_stride + channel * n_phases * n_rows + at]
                                projections[channel, view, row, first_col + c] += scale * value


@njit(nogil=True, cache=True)
def _adjoint(
    slab: _Array,
    projections: _Array,
    shape: tuple[int, int, int],
    rays: NDArray[np.float64],
    is_parallel: bool,
    step_mm: float,
    axis: int,
    first_plane: int,
    n_phases: int,
) -> None:
    """Add to a slab what `_forward` transposed makes of all views."""
    n_channels, n_views, rows, cols = projections.shape
    n_planes, n_minor, n_z = shape
    n_padded = PAD_BEFORE + n_z + PAD_AFTER
    n_rows = PAD_BEFORE + (rows + n_phases - 1) // n_phases + PAD_AFTER
    stride, sums_stride = n_channels * n_padded, n_channels * n_phases * n_rows
    sums = np.zeros(TILE * sums_stride, slab.dtype)
    fans, is_along = np.empty((TILE, 9)), np.empty(TILE, np.bool_)
    for first_view in range(0, n_views, VIEWS_TOGETHER):
        for first_col in range(0, cols, TILE):
            n_cols = min(TILE, cols - first_col)
            for view in range(first_view, min(first_view + VIEWS_TOGETHER, n_views)):
                for c in range(n_cols):
                    is_along[c] = _fan(rays[view], is_parallel, first_col + c, axis, fans[c])
                if not is_along[:n_cols].any():
                    continue
                for row in range(rows):
                    at = row % n_phases * n_rows + PAD_BEFORE + row // n_phases
                    for c in range(n_cols):
                        if is_along[c]:
                            slope = fans[c, 7] + row * fans[c, 8]
                            scale = slab.dtype.type(step_mm * np.sqrt(fans[c, 6] + slope * slope))
                            for channel in range(n_channels):
                                value = projections[channel, view, row, first_col + c]
                                sums[c * sums_stride + channel * n_phases * n_rows + at] = scale * value
                for plane in range(n_planes):
                    for c in range(n_cols):
                        across = fans[c, 0] + (first_plane + plane) * fans[c, 1]
                        if not (is_along[c] and across > -1 and across < n_minor):
                            continue
                        z = fans[c, 2] + (first_plane + plane) * fans[c, 3]
                        z_step = fans[c, 4] + (first_plane + plane) * fans[c, 5]
                        first = int(min(max(np.floor(z), 0), n_z))
                        end = int(min(np.floor(z + (rows - 1) * z_step) + 2, n_z))
                        left = int(np.floor(across + 1))
                        right_share = across + 1 - left
                        left_at = (plane * (n_minor + 2) + left) * stride + PAD_BEFORE
                        for phase in range(n_phases):
                            share(
                                sums,
                                c * sums_stride + phase * n_rows + PAD_BEFORE,
                                n_phases * n_rows,
                                slab,
                                left_at,
                                left_at + stride,
                                n_padded,
                                n_channels,
                                1 - right_share,
                                right_share,
                                z + phase * z_step,
                                n_phases * z_step,
                                first,
                                end,
                            )


@njit(nogil=True, cache=True)
def _row_steps(
    rays: NDArray[np.float64], is_parallel: bool, shape: tuple[int, int, int], rows: int, cols: int
) -> tuple[float, float]:
    """Return the shortest step from row to row, in voxels, and the steepest slope of a ray against z = const."""
    shortest, steepest = np.inf, 0.0
    fan = np.empty(9)
    for view in range(len(rays)):
        for col in range(cols):
            axis = 1 if _fan(rays[view], is_parallel, col, 1, fan) else 2
            _fan(rays[view], is_parallel, col, axis, fan)
            shortest = min(shortest, fan[4], fan[4] + (shape[axis] - 1) * fan[5])
            steepest = max(steepest, abs(fan[7]), abs(fan[7] + (rows - 1) * fan[8]))
    return shortest, steepest


def n_phases(rays: NDArray[np.float64], is_parallel: bool, shape: tuple[int, int, int], rows: int, cols: int) -> int:
    """Return into how many lines the rows of a detector column are dealt out; 0 where this module cannot do the scan.

    It can where the detectors stand upright with rows that rise, no ray runs along z most, and the source is outside.
    """
    if (
        np.abs(rays[:, 2, 0]).max() > 0
        or np.abs(rays[:, 3, 1:]).max() > 0
        or (is_parallel and np.abs(rays[:, 0, 0]).max() > 0)
    ):
        return 0
    shortest, steepest = _row_steps(rays, is_parallel, shape, rows, cols)
    if steepest > 1 or not shortest > 0:
        return 0
    phases = int(np.ceil(SHORTEST_STEP / shortest))
    return phases if phases <= MOST_PHASES else 0


def forward(volume: _Array, projections: _Array, rays: NDArray[np.float64], is_parallel: bool, step_mm: float) -> None:
    """Fill `projections`; the arrays are those of `joseph_plain`."""
    n_channels, n_z, *_ = volume.shape
    _, n_views, rows, cols = projections.shape
    phases = n_phases(rays, is_parallel, volume.shape[1:], rows, cols)
    projections[:] = 0
    size = n_channels * (PAD_BEFORE + n_z + PAD_AFTER)
    for axis in (1, 2):
        n_planes, n_minor = volume.shape[1 + axis], volume.shape[4 - axis]
        slab = np.empty(min(PLANES, n_planes) * (n_minor + 2) * size, volume.dtype)
        for first in range(0, n_planes, PLANES):
            end = min(first + PLANES, n_planes)
            _pack(slab, volume, axis, first, end)
            shape = (end - first, n_minor, n_z)
            in_threads(
                _forward,
                [
                    (
                        projections,
                        slab,
                        shape,
                        rays,
                        is_parallel,
                        step_mm,
                        axis,
                        first,
                        phases,
                        (view, min(view + 16, n_views)),
                    )
                    for view in range(0, n_views, 16)
                ],
            )


def adjoint(volume: _Array, projections: _Array, rays: NDArray[np.float64], is_parallel: bool, step_mm: float) -> None:
    """Add to `volume` what `forward` transposed makes of all views; the arrays are those of `joseph_plain`."""
    n_channels, n_z, *_ = volume.shape
    phases = n_phases(rays, is_parallel, volume.shape[1:], *projections.shape[2:])

    def add(axis: int, first: int) -> None:
        end = min(first + PLANES, volume.shape[1 + axis])
        n_minor = volume.shape[4 - axis]
        slab = np.zeros((end - first) * (n_minor + 2) * n_channels * (PAD_BEFORE + n_z + PAD_AFTER), volume.dtype)
        shape = (end - first, n_minor, n_z)
        _adjoint(slab, projections, shape, rays, is_parallel, step_mm, axis, first, phases)
        _unpack(volume, slab, axis, first, end)

    for axis in (1, 2):
        in_threads(add, [(axis, first) for first in range(0, volume.shape[1 + axis], PLANES)])
