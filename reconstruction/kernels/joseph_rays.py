"""Joseph's projector for any rays: tilted detectors, steep cones, sources inside the volume.

What `joseph_plain` says, with zeros around the volume instead of tests, channels innermost, and only those slices
visited that the ray meets. Forward, threads take different views; backward, different slices of the volume, and the
slices across z, y and x come one after the other: no result depends on the number of threads.

# Ref: Joseph 1982, IEEE Trans. Med. Imaging 1, 192.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconstruction.kernels.threads import in_threads

MARGIN = 2
"""Zeros around the volume: the outermost share of a ray, and a voxel more for rounding."""
VIEWS_TOGETHER = 8
SLICES = 64

_Array = NDArray[np.floating]
_Number = float | np.floating


@njit(nogil=True, cache=True)
def _meet(low: float, high: float, start: float, slope: float, n: int) -> tuple[float, float]:
    """Return between which slices start + index * slope lies above -1 and below n, within `low` and `high`."""
    if slope == 0:
        return (low, high) if -1 < start < n else (low, low)
    one, other = (-1 - start) / slope, (n - start) / slope
    return max(low, min(one, other)), min(high, max(one, other))


@njit(nogil=True, cache=True)
def _aim(ray: NDArray[np.float64], is_parallel: bool, row: int, col: int, line: NDArray[np.float64]) -> int:
    """Fill in where a ray starts and its direction, z, y, x; return the axis that it runs along most.

    line : (11,) float64
        The six are the last ones; `_line` makes the others of them.
    """
    axis = 0
    for i in range(3):
        line[5 + i] = ray[1, i] + col * ray[2, i] + row * ray[3, i]
        line[8 + i] = -ray[0, i] if is_parallel else line[5 + i] - ray[0, i]
        if abs(line[8 + i]) > abs(line[8 + axis]):
            axis = i
    return axis


@njit(nogil=True, cache=True)
def _line(axis: int, shape: tuple[int, int, int], line: NDArray[np.float64]) -> tuple[int, int]:
    """Fill in how a ray runs from slice to slice; return which slices across `axis` it meets.

    line : (11,) float64
        First are the place on the first and on the second of the two other axes in slice 0, each followed by its change
        per slice, and the length of a step from slice to slice.
    """
    origin, direction = line[5:8], line[8:11]
    a, b = (1, 2) if axis == 0 else ((0, 2) if axis == 1 else (0, 1))
    line[1], line[3] = direction[a] / direction[axis], direction[b] / direction[axis]
    line[0], line[2] = origin[a] - origin[axis] * line[1], origin[b] - origin[axis] * line[3]
    line[4] = np.sqrt(1 + line[1] * line[1] + line[3] * line[3])
    low, high = _meet(-1.0, float(shape[axis]), line[0], line[1], shape[a])
    low, high = _meet(low, high, line[2], line[3], shape[b])
    return max(int(np.ceil(low)), 0), min(int(np.floor(high)) + 1, shape[axis]) if high > low else 0


@njit(nogil=True, cache=True)
def _strides(shape: tuple[int, int, int], n_channels: int, axis: int) -> tuple[int, int, int]:
    """Return how many elements of the padded volume lie from one voxel to the next along the axis and the others."""
    along_y = (shape[2] + 2 * MARGIN) * n_channels
    along_z = along_y * (shape[1] + 2 * MARGIN)
    if axis == 0:
        return along_z, along_y, n_channels
    return (along_y, along_z, n_channels) if axis == 1 else (n_channels, along_z, along_y)


@njit(nogil=True, cache=True, inline="always")
def _corner(
    course: tuple[float, float, float, float], index: int, strides: tuple[int, int, int]
) -> tuple[int, float, float]:
    """Return the lowest voxel next to where a ray meets a slice, and the shares of the next ones on the two axes."""
    a, b = course[0] + index * course[1] + MARGIN, course[2] + index * course[3] + MARGIN
    low_a, low_b = int(a), int(b)
    return (index + MARGIN) * strides[0] + low_a * strides[1] + low_b * strides[2], a - low_a, b - low_b


@njit(nogil=True, cache=True, inline="always")
def _between(
    padded: _Array, at: np.uint64, over_a: np.uint64, over_b: np.uint64, share_a: _Number, share_b: _Number
) -> _Number:
    """Return the value between four voxels."""
    low, far = padded[at], padded[at + over_a]
    low += share_b * (padded[at + over_b] - low)
    far += share_b * (padded[at + over_a + over_b] - far)
    return low + share_a * (far - low)


@njit(nogil=True, cache=True, inline="always")
def _give(
    padded: _Array,
    at: np.uint64,
    over_a: np.uint64,
    over_b: np.uint64,
    share_a: _Number,
    share_b: _Number,
    value: _Number,
) -> None:
    """Add to four voxels their shares of a value."""
    high = share_a * value
    low = value - high
    padded[at] += low - share_b * low
    padded[at + over_b] += share_b * low
    padded[at + over_a] += high - share_b * high
    padded[at + over_a + over_b] += share_b * high


@njit(nogil=True, cache=True, fastmath=True)
def _forward(
    projections: _Array,
    padded: _Array,
    shape: tuple[int, int, int],
    rays: NDArray[np.float64],
    is_parallel: bool,
    step_mm: float,
    views: tuple[int, int],
) -> None:
    """Fill the views from one to another."""
    n_channels, _, rows, cols = projections.shape
    number = padded.dtype.type
    line, sums = np.empty(11), np.empty(n_channels, padded.dtype)
    for view in range(views[0], views[1]):
        for row in range(rows):
            for col in range(cols):
                axis = _aim(rays[view], is_parallel, row, col, line)
                first, end = _line(axis, shape, line)
                course = line[0], line[1], line[2], line[3]  # the compiler keeps these in registers, and no array
                strides = _strides(shape, n_channels, axis)
                over_a, over_b = np.uint64(strides[1]), np.uint64(strides[2])
                length = number(step_mm * line[4])
                if n_channels == 1:
                    total = number(0)
                    for index in range(first, end):
                        corner, share_a, share_b = _corner(course, index, strides)
                        total += _between(padded, np.uint64(corner), over_a, over_b, number(share_a), number(share_b))
                    projections[0, view, row, col] = length * total
                    continue
                sums[:] = 0
                for index in range(first, end):
                    corner, share_a, share_b = _corner(course, index, strides)
                    for channel in range(np.uint64(n_channels)):
                        at = np.uint64(corner) + channel
                        sums[channel] += _between(padded, at, over_a, over_b, number(share_a), number(share_b))
                for channel in range(n_channels):
                    projections[channel, view, row, col] = length * sums[channel]


@njit(nogil=True, cache=True, fastmath=True)
def _adjoint(
    padded: _Array,
    projections: _Array,
    shape: tuple[int, int, int],
    rays: NDArray[np.float64],
    is_parallel: bool,
    step_mm: float,
    axis: int,
    slices: tuple[int, int],
) -> None:
    """Add to slices across one axis what the rays that run along it most bring."""
    n_channels, n_views, rows, cols = projections.shape
    number = padded.dtype.type
    line, values = np.empty(11), np.empty(n_channels, padded.dtype)
    strides = _strides(shape, n_channels, axis)
    over_a, over_b = np.uint64(strides[1]), np.uint64(strides[2])
    for view in range(n_views):
        for row in range(rows):
            for col in range(cols):
                if _aim(rays[view], is_parallel, row, col, line) != axis:
                    continue
                first, end = _line(axis, shape, line)
                course = line[0], line[1], line[2], line[3]
                for channel in range(n_channels):
                    values[channel] = number(step_mm * line[4]) * projections[channel, view, row, col]
                for index in range(max(first, slices[0]), min(end, slices[1])):
                    corner, share_a, share_b = _corner(course, index, strides)
                    for channel in range(np.uint64(n_channels)):
                        at = np.uint64(corner) + channel
                        _give(padded, at, over_a, over_b, number(share_a), number(share_b), values[channel])


def _inside(padded: _Array, n_channels: int, shape: tuple[int, int, int]) -> _Array:
    """Return the volume within its margin, as a view: (n_channels, z, y, x)."""
    within = (slice(MARGIN, -MARGIN),) * 3
    return np.moveaxis(padded.reshape(*(n + 2 * MARGIN for n in shape), n_channels)[within], -1, 0)


def _padded(volume: _Array) -> _Array:
    return np.zeros(len(volume) * np.prod([n + 2 * MARGIN for n in volume.shape[1:]]), volume.dtype)


def forward(volume: _Array, projections: _Array, rays: NDArray[np.float64], is_parallel: bool, step_mm: float) -> None:
    """Fill `projections`; the arrays are those of `joseph_plain`."""
    n_channels, *shape = volume.shape
    padded = _padded(volume)
    _inside(padded, n_channels, tuple(shape))[:] = volume
    ends = [*range(0, len(rays), VIEWS_TOGETHER), len(rays)]
    tasks = [(projections, padded, tuple(shape), rays, is_parallel, step_mm, views) for views in pairwise(ends)]
    in_threads(_forward, tasks)


def adjoint(volume: _Array, projections: _Array, rays: NDArray[np.float64], is_parallel: bool, step_mm: float) -> None:
    """Add to `volume` what `forward` transposed makes of all views; the arrays are those of `joseph_plain`."""
    n_channels, *shape = volume.shape
    padded = _padded(volume)
    for axis, n in enumerate(shape):
        ends = [*range(0, n, SLICES), n]
        tasks = [
            (padded, projections, tuple(shape), rays, is_parallel, step_mm, axis, slices) for slices in pairwise(ends)
        ]
        in_threads(_adjoint, tasks)
    volume += _inside(padded, n_channels, tuple(shape))
