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
SLICES = 16

_Array = NDArray[np.floating]


@njit(nogil=True, cache=True)
def _meet(low: float, high: float, start: float, slope: float, n: int) -> tuple[float, float]:
    """Return between which slices start + index * slope lies above -1 and below n, within `low` and `high`."""
    if slope == 0:
        return (low, high) if -1 < start < n else (low, low)
    one, other = (-1 - start) / slope, (n - start) / slope
    return max(low, min(one, other)), min(high, max(one, other))


@njit(nogil=True, cache=True)
def _line(
    ray: NDArray[np.float64],
    is_parallel: bool,
    row: int,
    col: int,
    shape: tuple[int, int, int],
    line: NDArray[np.float64],
) -> tuple[int, int, int]:
    """Fill in how a ray runs; return the axis that it runs along most and the slices across it that it meets.

    line : (5,) float64
        Place on the first and on the second of the two other axes in slice 0, each with its change per slice, then the
        length of a step from slice to slice.
    """
    direction, origin = np.empty(3), np.empty(3)
    for i in range(3):
        origin[i] = ray[1, i] + col * ray[2, i] + row * ray[3, i]
        direction[i] = -ray[0, i] if is_parallel else origin[i] - ray[0, i]
    axis = int(np.argmax(np.abs(direction)))
    a, b = (1, 2) if axis == 0 else ((0, 2) if axis == 1 else (0, 1))
    line[1], line[3] = direction[a] / direction[axis], direction[b] / direction[axis]
    line[0], line[2] = origin[a] - origin[axis] * line[1], origin[b] - origin[axis] * line[3]
    line[4] = np.sqrt(1 + line[1] * line[1] + line[3] * line[3])
    low, high = _meet(-1.0, float(shape[axis]), line[0], line[1], shape[a])
    low, high = _meet(low, high, line[2], line[3], shape[b])
    return axis, max(int(np.ceil(low)), 0), min(int(np.floor(high)) + 1, shape[axis]) if high > low else 0


@njit(nogil=True, cache=True)
def _strides(shape: tuple[int, int, int], n_channels: int) -> tuple[int, int, int]:
    """Return how many elements of the padded volume lie from one voxel to the next along z, y and x."""
    along_y = (shape[2] + 2 * MARGIN) * n_channels
    return along_y * (shape[1] + 2 * MARGIN), along_y, n_channels


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
    strides = _strides(shape, n_channels)
    line, sums = np.empty(5), np.empty(n_channels, padded.dtype)
    for view in range(views[0], views[1]):
        for row in range(rows):
            for col in range(cols):
                axis, first, end = _line(rays[view], is_parallel, row, col, shape, line)
                along, over_a, over_b = (
                    strides
                    if axis == 0
                    else ((strides[1], strides[0], strides[2]) if axis == 1 else (strides[2], strides[0], strides[1]))
                )
                sums[:] = 0
                for index in range(first, end):
                    a, b = line[0] + index * line[1] + MARGIN, line[2] + index * line[3] + MARGIN
                    low_a, low_b = int(a), int(b)
                    share_a, share_b = padded.dtype.type(a - low_a), padded.dtype.type(b - low_b)
                    at = np.uint64((index + MARGIN) * along + low_a * over_a + low_b * over_b)
                    for channel in range(np.uint64(n_channels)):
                        near = at + channel
                        far = near + np.uint64(over_a)
                        low = padded[near] + share_b * (padded[near + np.uint64(over_b)] - padded[near])
                        high = padded[far] + share_b * (padded[far + np.uint64(over_b)] - padded[far])
                        sums[channel] += low + share_a * (high - low)
                for channel in range(n_channels):
                    projections[channel, view, row, col] = step_mm * line[4] * sums[channel]


@njit(nogil=True, cache=True, fastmath=True)
def _adjoint(
    padded: _Array,
    projections: _Array,
    shape: tuple[int, int, int],
    rays: NDArray[np.float64],
    is_parallel: bool,
    step_mm: float,
    across: int,
    slices: tuple[int, int],
) -> None:
    """Add to slices across one axis what the rays that run along it most bring."""
    n_channels, n_views, rows, cols = projections.shape
    strides = _strides(shape, n_channels)
    line, values = np.empty(5), np.empty(n_channels, padded.dtype)
    for view in range(n_views):
        for row in range(rows):
            for col in range(cols):
                axis, first, end = _line(rays[view], is_parallel, row, col, shape, line)
                if axis != across:
                    continue
                along, over_a, over_b = (
                    strides
                    if axis == 0
                    else ((strides[1], strides[0], strides[2]) if axis == 1 else (strides[2], strides[0], strides[1]))
                )
                for channel in range(n_channels):
                    values[channel] = step_mm * line[4] * projections[channel, view, row, col]
                for index in range(max(first, slices[0]), min(end, slices[1])):
                    a, b = line[0] + index * line[1] + MARGIN, line[2] + index * line[3] + MARGIN
                    low_a, low_b = int(a), int(b)
                    share_a, share_b = padded.dtype.type(a - low_a), padded.dtype.type(b - low_b)
                    at = np.uint64((index + MARGIN) * along + low_a * over_a + low_b * over_b)
                    for channel in range(np.uint64(n_channels)):
                        near = at + channel
                        far = near + np.uint64(over_a)
                        high = share_a * values[channel]
                        low = values[channel] - high
                        padded[near] += low - share_b * low
                        padded[near + np.uint64(over_b)] += share_b * low
                        padded[far] += high - share_b * high
                        padded[far + np.uint64(over_b)] += share_b * high


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
