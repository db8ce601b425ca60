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
BLOCK = 16
"""Planes, of those of a slab, that some views go through before the next ones: they stay in the cache."""
PLANES = 64
VIEWS_A_TASK = 8
MOST_PHASES = 16

_Array = NDArray[np.floating]


@njit(nogil=True, cache=True)
def _turn_volume(
    slab: _Array, volume: _Array, shape: tuple[int, int, int, int], axis: int, first: int, end: int, is_packing: bool
) -> None:
    """Turn planes `first` to `end` of a volume into a slab with zeros around it, or add a slab to them.

    Parameters
    ----------
    slab : (planes, 1 + n + 1, n_channels, padded z) float, flat
    volume : (n_channels, z, y, x) float, flat
    shape : of the volume
    axis : 1 for planes across y, 2 for planes across x
    """
    n_channels, n_z, n_y, n_x = shape
    n_minor, plane_step, minor_step = (n_x, n_x, 1) if axis == 1 else (n_y, 1, n_x)
    n_padded = PAD_BEFORE + n_z + PAD_AFTER
    stride = n_channels * n_padded
    z_step = np.uint64(n_y * n_x)
    if is_packing:
        slab[:] = 0
    for channel in range(n_channels):
        for plane_first in range(first, end, BLOCK):
            for minor_first in range(0, n_minor, BLOCK):
                for z_first in range(0, n_z, BLOCK):
                    z_end = np.uint64(min(z_first + BLOCK, n_z))
                    for plane in range(plane_first, min(plane_first + BLOCK, end)):
                        for minor in range(minor_first, min(minor_first + BLOCK, n_minor)):
                            line = ((plane - first) * (n_minor + 2) + minor + 1) * stride
                            at = np.uint64(line + channel * n_padded + PAD_BEFORE)
                            there = np.uint64(channel * n_z * n_y * n_x + plane * plane_step + minor * minor_step)
                            if is_packing:
                                for z in range(np.uint64(z_first), z_end):
                                    slab[at + z] = volume[there + z * z_step]
                            else:
                                for z in range(np.uint64(z_first), z_end):
                                    volume[there + z * z_step] += slab[at + z]


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


@njit(nogil=True, cache=True, fastmath=True)
def _scale(
    sums: _Array, fans: NDArray[np.float64], n_cols: int, n_channels: int, rows: int, n_phases: int, step_mm: float
) -> None:
    """Multiply the sums of some detector columns by the lengths of their rays' steps."""
    n_rows = PAD_BEFORE + (rows + n_phases - 1) // n_phases + PAD_AFTER
    number = sums.dtype.type
    for c in range(n_cols):
        plane_part = number(fans[c, 6])
        for phase in range(n_phases):
            first = number(fans[c, 7] + phase * fans[c, 8])
            change = number(fans[c, 8] * n_phases)
            for channel in range(n_channels):
                start = ((c * n_channels + channel) * n_phases + phase) * n_rows + PAD_BEFORE
                for k in range(np.uint64(n_rows - PAD_BEFORE - PAD_AFTER)):
                    slope = first + number(np.int32(k)) * change
                    sums[np.uint64(start) + k] *= number(step_mm) * np.sqrt(plane_part + slope * slope)


@njit(nogil=True, cache=True)
def _turn_views(
    projections: _Array,
    view: int,
    first_col: int,
    sums: _Array,
    sums_at: int,
    is_along: NDArray[np.bool_],
    n_phases: int,
    is_adding: bool,
) -> None:
    """Add sums, whose rows are innermost, to a view's columns where these run along the axis, or fetch them."""
    n_channels, _, rows, _ = projections.shape
    n_rows = PAD_BEFORE + (rows + n_phases - 1) // n_phases + PAD_AFTER
    for channel in range(n_channels):
        for first_row in range(0, rows, BLOCK * n_phases):
            for c in range(len(is_along)):
                if not is_along[c]:
                    continue
                col = np.uint64(first_col + c)
                for phase in range(n_phases):
                    start = sums_at + ((c * n_channels + channel) * n_phases + phase) * n_rows + PAD_BEFORE
                    at = np.uint64(start + first_row // n_phases)
                    end = min(first_row + BLOCK * n_phases, rows)
                    n = np.uint64(max(end - first_row - phase + n_phases - 1, 0) // n_phases)
                    row, step = np.uint64(first_row + phase), np.uint64(n_phases)
                    if is_adding:
                        for k in range(n):
                            projections[channel, view, row + k * step, col] += sums[at + k]
                    else:
                        for k in range(n):
                            sums[at + k] = projections[channel, view, row + k * step, col]


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
    sums = np.zeros(VIEWS_TOGETHER * TILE * sums_stride, slab.dtype)
    line = np.zeros(stride, slab.dtype)
    planes_together = max(BLOCK // n_channels, 1)
    fans, is_along = np.empty((VIEWS_TOGETHER, TILE, 9)), np.empty((VIEWS_TOGETHER, TILE), np.bool_)
    for first_view in range(views[0], views[1], VIEWS_TOGETHER):
        n_views = min(VIEWS_TOGETHER, views[1] - first_view)
        for first_col in range(0, cols, TILE):
            n_cols = min(TILE, cols - first_col)
            for v in range(n_views):
                for c in range(n_cols):
                    is_along[v, c] = _fan(rays[first_view + v], is_parallel, first_col + c, axis, fans[v, c])
            if not is_along[:n_views, :n_cols].any():
                continue
            sums[:] = 0
            for block in range(0, n_planes, planes_together):
                for v in range(n_views):
                    for plane in range(block, min(block + planes_together, n_planes)):
                        for c in range(n_cols):
                            fan = fans[v, c]
                            across = fan[0] + (first_plane + plane) * fan[1]
                            if not (is_along[v, c] and across > -1 and across < n_minor):
                                continue
                            z = fan[2] + (first_plane + plane) * fan[3]
                            z_step = fan[4] + (first_plane + plane) * fan[5]
                            per_step = 1 / z_step
                            first = int(max(np.floor((-1 - z) * per_step) + 1, 0))
                            end = int(min(np.ceil((n_z - z) * per_step), rows))
                            if first >= end:
                                continue
                            left = int(across + 1)
                            right_share = slab.dtype.type(across + 1 - left)
                            lowest = max(PAD_BEFORE + int(z + first * z_step) - 6, 0)
                            highest = min(PAD_BEFORE + int(z + end * z_step) + 26, n_padded)
                            left_at = np.uint64((plane * (n_minor + 2) + left) * stride)
                            right_at = left_at + np.uint64(stride)
                            for channel in range(n_channels):
                                at = channel * n_padded
                                for k in range(np.uint64(at + lowest), np.uint64(at + highest)):
                                    low = slab[left_at + k]
                                    line[k] = low + right_share * (slab[right_at + k] - low)
                            for phase in range(n_phases):
                                read(
                                    sums,
                                    (v * TILE + c) * sums_stride + phase * n_rows + PAD_BEFORE,
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
            for v in range(n_views):
                at = v * TILE * sums_stride
                _scale(sums[at:], fans[v], n_cols, n_channels, rows, n_phases, step_mm)
                _turn_views(projections, first_view + v, first_col, sums, at, is_along[v, :n_cols], n_phases, True)


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
    n_channels, all_views, rows, cols = projections.shape
    n_planes, n_minor, n_z = shape
    n_padded = PAD_BEFORE + n_z + PAD_AFTER
    n_rows = PAD_BEFORE + (rows + n_phases - 1) // n_phases + PAD_AFTER
    stride, sums_stride = n_channels * n_padded, n_channels * n_phases * n_rows
    sums = np.zeros(VIEWS_TOGETHER * TILE * sums_stride, slab.dtype)
    planes_together = max(BLOCK // n_channels, 1)
    fans, is_along = np.empty((VIEWS_TOGETHER, TILE, 9)), np.empty((VIEWS_TOGETHER, TILE), np.bool_)
    for first_view in range(0, all_views, VIEWS_TOGETHER):
        n_views = min(VIEWS_TOGETHER, all_views - first_view)
        for first_col in range(0, cols, TILE):
            n_cols = min(TILE, cols - first_col)
            for v in range(n_views):
                for c in range(n_cols):
                    is_along[v, c] = _fan(rays[first_view + v], is_parallel, first_col + c, axis, fans[v, c])
            if not is_along[:n_views, :n_cols].any():
                continue
            for v in range(n_views):
                at = v * TILE * sums_stride
                _turn_views(projections, first_view + v, first_col, sums, at, is_along[v, :n_cols], n_phases, False)
                _scale(sums[at:], fans[v], n_cols, n_channels, rows, n_phases, step_mm)
            for block in range(0, n_planes, planes_together):
                for v in range(n_views):
                    for plane in range(block, min(block + planes_together, n_planes)):
                        for c in range(n_cols):
                            fan = fans[v, c]
                            across = fan[0] + (first_plane + plane) * fan[1]
                            if not (is_along[v, c] and across > -1 and across < n_minor):
                                continue
                            z = fan[2] + (first_plane + plane) * fan[3]
                            z_step = fan[4] + (first_plane + plane) * fan[5]
                            first = int(min(max(np.floor(z), 0), n_z))
                            end = int(min(np.floor(z + (rows - 1) * z_step) + 2, n_z))
                            left = int(across + 1)
                            right_share = across + 1 - left
                            left_at = (plane * (n_minor + 2) + left) * stride + PAD_BEFORE
                            for phase in range(n_phases):
                                share(
                                    sums,
                                    (v * TILE + c) * sums_stride + phase * n_rows + PAD_BEFORE,
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


def _slabs(n_planes: int) -> list[tuple[int, int]]:
    return [(first, min(first + PLANES, n_planes)) for first in range(0, n_planes, PLANES)]


def forward(volume: _Array, projections: _Array, rays: NDArray[np.float64], is_parallel: bool, step_mm: float) -> None:
    """Fill `projections`; the arrays are those of `joseph_plain`."""
    n_channels, n_z, *_ = volume.shape
    _, n_views, *detector = projections.shape
    phases = n_phases(rays, is_parallel, volume.shape[1:], *detector)
    projections[:] = 0
    for axis in (1, 2):
        n_minor = volume.shape[4 - axis]
        for first, end in _slabs(volume.shape[1 + axis]):
            slab = np.empty((end - first) * (n_minor + 2) * n_channels * (PAD_BEFORE + n_z + PAD_AFTER), volume.dtype)
            _turn_volume(slab, volume.reshape(-1), volume.shape, axis, first, end, True)
            scan = (rays, is_parallel, step_mm, axis, first, phases)
            views = [(view, min(view + VIEWS_A_TASK, n_views)) for view in range(0, n_views, VIEWS_A_TASK)]
            in_threads(_forward, [(projections, slab, (end - first, n_minor, n_z), *scan, some) for some in views])


def adjoint(volume: _Array, projections: _Array, rays: NDArray[np.float64], is_parallel: bool, step_mm: float) -> None:
    """Add to `volume` what `forward` transposed makes of all views; the arrays are those of `joseph_plain`."""
    n_channels, n_z, *_ = volume.shape
    phases = n_phases(rays, is_parallel, volume.shape[1:], *projections.shape[2:])

    def add(axis: int, first: int, end: int) -> None:
        n_minor = volume.shape[4 - axis]
        slab = np.zeros((end - first) * (n_minor + 2) * n_channels * (PAD_BEFORE + n_z + PAD_AFTER), volume.dtype)
        scan = (rays, is_parallel, step_mm, axis, first, phases)
        _adjoint(slab, projections, (end - first, n_minor, n_z), *scan)
        _turn_volume(slab, volume.reshape(-1), volume.shape, axis, first, end, False)

    for axis in (1, 2):
        in_threads(add, [(axis, *planes) for planes in _slabs(volume.shape[1 + axis])])
