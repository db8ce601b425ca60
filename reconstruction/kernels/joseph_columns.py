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

import threading

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconstruction.kernels.joseph_lanes import PAD_AFTER, PAD_BEFORE, SHORTEST_STEP, read, share
from reconstruction.kernels.threads import in_threads, n_threads

TILE = 16
"""Detector columns that go through a slab together."""
VIEWS_TOGETHER = 4
"""Views that take turns, tile by tile: neighbours meet voxels that are still in the cache."""
BLOCK = 16
"""Elements that are turned together: a line of the cache."""
CHANNELS_TOGETHER = 2
"""Two share the geometry; more would no longer share the cache."""
SLAB_BYTES = 12 << 20
"""A slab stays in the last cache while all views go through it."""
GROUP_BYTES = 256 << 20
"""Views whose columns are kept turned at a time."""
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
    n_minor = n_x if axis == 1 else n_y
    n_padded = PAD_BEFORE + n_z + PAD_AFTER
    stride = n_channels * n_padded
    y_range, x_range = ((first, end), (0, n_x)) if axis == 1 else ((0, n_y), (first, end))
    y_step, x_step = (n_minor + 2) * stride, stride
    if axis == 2:
        y_step, x_step = x_step, y_step
    if is_packing:
        slab[:] = 0
    for channel in range(n_channels):
        for y in range(y_range[0], y_range[1]):
            line = stride + (y - y_range[0]) * y_step + channel * n_padded + PAD_BEFORE
            for x_first in range(x_range[0], x_range[1], BLOCK):
                n = np.uint64(min(BLOCK, x_range[1] - x_first))
                to = np.uint64(line + (x_first - x_range[0]) * x_step)
                for z in range(n_z):  # a line of the cache at a time: those of other z compete for the same place in it
                    there = np.uint64(((channel * n_z + z) * n_y + y) * n_x + x_first)
                    at = to + np.uint64(z)
                    if is_packing:
                        for i in range(n):
                            slab[at + i * np.uint64(x_step)] = volume[there + i]
                    else:
                        for i in range(n):
                            volume[there + i] += slab[at + i * np.uint64(x_step)]


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
def _size_of_column(n_channels: int, rows: int, n_phases: int) -> int:
    """Return how many elements a detector column takes: (n_channels, n_phases, padded rows)."""
    return n_channels * n_phases * (PAD_BEFORE + (rows + n_phases - 1) // n_phases + PAD_AFTER)


@njit(nogil=True, cache=True, fastmath=True)
def _scale(
    columns: _Array,
    ray: NDArray[np.float64],
    is_parallel: bool,
    shape: tuple[int, int, int],
    n_phases: int,
    step_mm: float,
) -> None:
    """Multiply the columns of a view, `shape` (n_channels, rows, cols), by the lengths of its rays' steps."""
    n_channels, rows, cols = shape
    size = _size_of_column(n_channels, rows, n_phases)
    n_rows = size // (n_channels * n_phases)
    number = columns.dtype.type
    fan = np.empty(9)
    for col in range(cols):
        if not _fan(ray, is_parallel, col, 1, fan):
            _fan(ray, is_parallel, col, 2, fan)
        for line in range(n_channels * n_phases):
            first = number(fan[7] + line % n_phases * fan[8])
            change, in_plane = number(n_phases * fan[8]), number(fan[6])
            start = np.uint64(col * size + line * n_rows + PAD_BEFORE)
            for k in range(np.uint64(n_rows - PAD_BEFORE - PAD_AFTER)):
                slope = first + number(np.int32(k)) * change
                columns[start + k] *= number(step_mm) * np.sqrt(in_plane + slope * slope)


@njit(nogil=True, cache=True)
def _turn_view(
    columns: _Array,
    projections: _Array,
    rays: NDArray[np.float64],
    is_parallel: bool,
    step_mm: float,
    n_phases: int,
    first_view: int,
    view: int,
    is_packing: bool,
) -> None:
    """Turn a view into scaled columns whose rows are innermost, or scaled columns into a view."""
    n_channels, _, rows, cols = projections.shape
    size = _size_of_column(n_channels, rows, n_phases)
    n_rows = size // (n_channels * n_phases)
    of_view = columns[(view - first_view) * cols * size : (view - first_view + 1) * cols * size]
    if not is_packing:
        _scale(of_view, rays[view], is_parallel, (n_channels, rows, cols), n_phases, step_mm)
    for first_col in range(0, cols, BLOCK):
        for channel in range(n_channels):
            for first_row in range(0, rows, BLOCK * n_phases):
                end_row = min(first_row + BLOCK * n_phases, rows)
                for col in range(first_col, min(first_col + BLOCK, cols)):
                    for phase in range(n_phases):
                        start = (channel * n_phases + phase) * n_rows + PAD_BEFORE + first_row // n_phases
                        to = np.uint64(col * size + start)
                        n = np.uint64(max(end_row - first_row - phase + n_phases - 1, 0) // n_phases)
                        row, step = np.uint64(first_row + phase), np.uint64(n_phases)
                        if is_packing:
                            for k in range(n):
                                of_view[to + k] = projections[channel, view, row + k * step, np.uint64(col)]
                        else:
                            for k in range(n):
                                projections[channel, view, row + k * step, np.uint64(col)] = of_view[to + k]
    if is_packing:
        _scale(of_view, rays[view], is_parallel, (n_channels, rows, cols), n_phases, step_mm)


@njit(nogil=True, cache=True)
def _forward(
    columns: _Array,
    slab: _Array,
    shape: tuple[int, int, int, int],
    rays: NDArray[np.float64],
    is_parallel: bool,
    detector: tuple[int, int],
    axis: int,
    first_plane: int,
    n_phases: int,
    views: tuple[int, int],
) -> None:
    """Add what the rays of some views gather in a slab of `shape` (n_channels, planes, n, n_z) to their columns."""
    n_channels, n_planes, n_minor, n_z = shape
    rows, cols = detector
    n_padded = PAD_BEFORE + n_z + PAD_AFTER
    stride, size = n_channels * n_padded, _size_of_column(n_channels, rows, n_phases)
    n_rows = size // (n_channels * n_phases)
    line = np.zeros(stride, slab.dtype)
    fans, is_along = np.empty((TILE, 9)), np.empty(TILE, np.bool_)
    for first_col in range(0, cols, TILE):
        for view in range(views[0], views[1]):
            for c in range(min(TILE, cols - first_col)):
                is_along[c] = _fan(rays[view], is_parallel, first_col + c, axis, fans[c])
            for plane in range(n_planes):
                for c in range(min(TILE, cols - first_col)):
                    fan = fans[c]
                    across = fan[0] + (first_plane + plane) * fan[1]
                    if not (is_along[c] and across > -1 and across < n_minor):
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
                            columns,
                            (view * cols + first_col + c) * size + phase * n_rows + PAD_BEFORE,
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


@njit(nogil=True, cache=True)
def _adjoint(
    slab: _Array,
    columns: _Array,
    shape: tuple[int, int, int, int],
    rays: NDArray[np.float64],
    is_parallel: bool,
    detector: tuple[int, int],
    axis: int,
    first_plane: int,
    n_phases: int,
) -> None:
    """Add to a slab what `_forward` transposed makes of the columns of all views."""
    n_channels, n_planes, n_minor, n_z = shape
    rows, cols = detector
    n_padded = PAD_BEFORE + n_z + PAD_AFTER
    stride, size = n_channels * n_padded, _size_of_column(n_channels, rows, n_phases)
    n_rows = size // (n_channels * n_phases)
    fans, is_along = np.empty((TILE, 9)), np.empty(TILE, np.bool_)
    for first_view in range(0, len(rays), VIEWS_TOGETHER):
        for first_col in range(0, cols, TILE):
            for view in range(first_view, min(first_view + VIEWS_TOGETHER, len(rays))):
                for c in range(min(TILE, cols - first_col)):
                    is_along[c] = _fan(rays[view], is_parallel, first_col + c, axis, fans[c])
                for plane in range(n_planes):
                    for c in range(min(TILE, cols - first_col)):
                        fan = fans[c]
                        across = fan[0] + (first_plane + plane) * fan[1]
                        if not (is_along[c] and across > -1 and across < n_minor):
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
                                columns,
                                (view * cols + first_col + c) * size + phase * n_rows + PAD_BEFORE,
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


class _Work:
    """How a scan and a volume are cut into slabs and groups of views."""

    def __init__(self, volume: _Array, projections: _Array, rays: NDArray[np.float64], is_parallel: bool) -> None:
        n_channels, n_z, *_ = volume.shape
        _, n_views, rows, cols = projections.shape
        self.volume, self.flat, self.detector = volume, volume.reshape(-1), (rows, cols)
        self.is_parallel = is_parallel
        self.n_phases = n_phases(rays, is_parallel, volume.shape[1:], rows, cols)
        self.line = n_channels * (PAD_BEFORE + n_z + PAD_AFTER)
        self.view = cols * _size_of_column(n_channels, rows, self.n_phases)
        n = max(GROUP_BYTES // (self.view * volume.itemsize), 1)
        self._rooms = threading.local()  # memory that is new each time costs as much as the work in it
        self.groups = [(first, min(first + n, n_views)) for first in range(0, n_views, n)]

    def slabs(self, axis: int) -> list[tuple[int, int]]:
        """Return between which planes across an axis each slab lies."""
        n_planes, plane = self.volume.shape[1 + axis], (self.volume.shape[4 - axis] + 2) * self.line
        n = max(SLAB_BYTES // (plane * self.volume.itemsize) // BLOCK, 1) * BLOCK
        return [(first, min(first + n, n_planes)) for first in range(0, n_planes, n)]

    def slab(self, axis: int, first: int, end: int) -> tuple[_Array, tuple[int, int, int, int]]:
        """Return this thread's room for a slab, and its shape without margins: (n_channels, planes, n, n_z)."""
        n_channels, n_z, *_ = self.volume.shape
        n_minor = self.volume.shape[4 - axis]
        size = (end - first) * (n_minor + 2) * self.line
        if len(getattr(self._rooms, "room", ())) < size:
            self._rooms.room = np.empty(size, self.volume.dtype)
        return self._rooms.room[:size], (n_channels, end - first, n_minor, n_z)

    def turn(self, slab: _Array, axis: int, first: int, end: int, is_packing: bool) -> None:
        """Turn a part of the volume into a slab, or add the slab to it."""
        _turn_volume(slab, self.flat, self.volume.shape, axis, first, end, is_packing)


def forward(volume: _Array, projections: _Array, rays: NDArray[np.float64], is_parallel: bool, step_mm: float) -> None:
    """Fill `projections`; the arrays are those of `joseph_plain`."""
    for some in _bunches(len(volume)):
        _forward_together(volume[some], projections[some], rays, is_parallel, step_mm)


def adjoint(volume: _Array, projections: _Array, rays: NDArray[np.float64], is_parallel: bool, step_mm: float) -> None:
    """Add to `volume` what `forward` transposed makes of all views; the arrays are those of `joseph_plain`."""
    for some in _bunches(len(volume)):
        _adjoint_together(volume[some], projections[some], rays, is_parallel, step_mm)


def _bunches(n_channels: int) -> list[slice]:
    return [slice(first, first + CHANNELS_TOGETHER) for first in range(0, n_channels, CHANNELS_TOGETHER)]


def _forward_together(
    volume: _Array, projections: _Array, rays: NDArray[np.float64], is_parallel: bool, step_mm: float
) -> None:
    work = _Work(volume, projections, rays, is_parallel)
    for first_view, end_view in work.groups:
        group = rays[first_view:end_view]
        columns = np.zeros(len(group) * work.view, volume.dtype)
        n = min(VIEWS_TOGETHER, -(-len(group) // n_threads()))
        some_views = [(view, min(view + n, len(group))) for view in range(0, len(group), n)]
        for axis in (1, 2):
            for first, end in work.slabs(axis):
                slab, shape = work.slab(axis, first, end)
                work.turn(slab, axis, first, end, True)
                scan = (group, is_parallel, work.detector, axis, first, work.n_phases)
                in_threads(_forward, [(columns, slab, shape, *scan, views) for views in some_views])
        scan = (rays, is_parallel, step_mm, work.n_phases, first_view)
        views = range(first_view, end_view)
        in_threads(_turn_view, [(columns, projections, *scan, view, False) for view in views])


def _adjoint_together(
    volume: _Array, projections: _Array, rays: NDArray[np.float64], is_parallel: bool, step_mm: float
) -> None:
    work = _Work(volume, projections, rays, is_parallel)
    for first_view, end_view in work.groups:
        group = rays[first_view:end_view]
        columns = np.zeros(len(group) * work.view, volume.dtype)
        scan = (rays, is_parallel, step_mm, work.n_phases, first_view)
        views = range(first_view, end_view)
        in_threads(_turn_view, [(columns, projections, *scan, view, True) for view in views])
        for axis in (1, 2):
            in_threads(_add, [(work, columns, group, axis, first, end) for first, end in work.slabs(axis)])


def _add(work: _Work, columns: _Array, rays: NDArray[np.float64], axis: int, first: int, end: int) -> None:
    """Add to some planes of the volume what all columns bring."""
    slab, shape = work.slab(axis, first, end)
    slab[:] = 0
    _adjoint(slab, columns, shape, rays, work.is_parallel, work.detector, axis, first, work.n_phases)
    work.turn(slab, axis, first, end, False)
