"""Joseph's projector for parallel beams square to z: every detector row is a plane problem of its own.

All rays of a row stay at one height, so the volume is first interpolated to the heights of the rows. Then, in each line
of voxels across x or y, the rays of a view stand at equal steps: `joseph_lanes` reads them there, eight at a time, for
several rows and channels at once. Forward, threads take different views; backward, different lines of voxels: no result
depends on their number.

# Ref: Joseph 1982, IEEE Trans. Med. Imaging 1, 192.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconstruction.kernels.joseph_lanes import PAD_AFTER, PAD_BEFORE, SHORTEST_STEP, read, spread
from reconstruction.kernels.threads import in_threads

TOGETHER = 8
"""Images (a row of a channel each) that go through one pass over the geometry."""
VIEWS_A_TASK = 32
LINES_A_TASK = 32
MOST_PHASES = 16

_Array = NDArray[np.floating]


def suits(rays: NDArray[np.float64], is_parallel: bool) -> bool:
    """Whether this module can do the scan: all views look along slices, with rows at the same heights."""
    if not is_parallel or np.abs(rays[:, 0, 0]).max() > 0 or np.abs(rays[:, 2, 0]).max() > 0:
        return False
    if np.abs(rays[:, 3, 1:]).max() > 0 or np.ptp(rays[:, 1, 0]) > 0 or np.ptp(rays[:, 3, 0]) > 0:
        return False
    steps = np.array([_fan(ray)[3] for ray in rays])
    return bool(steps.min() * MOST_PHASES > SHORTEST_STEP)


@njit(nogil=True, cache=True)
def _fan(ray: NDArray[np.float64]) -> tuple[int, float, float, float, bool, float]:
    """Return how a view's rays run.

    The axis that they run along most; the place of the first of them in line 0 and its change per line; the step from
    ray to ray, which is positive; whether the last column comes first for that; the length of a step from line to line.
    """
    axis = 1 if abs(ray[0, 1]) >= abs(ray[0, 2]) else 2
    slope = ray[0, 3 - axis] / ray[0, axis]
    start = ray[1, 3 - axis] - ray[1, axis] * slope
    step = ray[2, 3 - axis] - ray[2, axis] * slope
    return axis, start, slope, abs(step), step < 0, np.sqrt(1 + slope * slope)


@njit(nogil=True, cache=True)
def _deal(sums: _Array, view: _Array, is_reversed: bool, n_phases: int, factor: float, is_adding: bool) -> None:
    """Add sums, times a factor, to the images of a view (n, cols), or fetch them from there."""
    n_images, cols = view.shape
    n_cols = PAD_BEFORE + (cols + n_phases - 1) // n_phases + PAD_AFTER
    number = sums.dtype.type(factor)
    for image in range(n_images):
        for k in range(cols):
            at = (image * n_phases + k % n_phases) * n_cols + PAD_BEFORE + k // n_phases
            col = cols - 1 - k if is_reversed else k
            if is_adding:
                view[image, col] += number * sums[at]
            else:
                sums[at] = number * view[image, col]


@njit(nogil=True, cache=True)
def _forward(
    projections: _Array, lines: _Array, rays: NDArray[np.float64], axis: int, step_mm: float, n_phases: int
) -> None:
    """Add what some views, (n_views, n_images, cols), gather in lines: (n_images, n_lines, padded) along `axis`."""
    n_views, n_images, cols = projections.shape
    _, n_lines, n_padded = lines.shape
    n = n_padded - PAD_BEFORE - PAD_AFTER
    n_cols = PAD_BEFORE + (cols + n_phases - 1) // n_phases + PAD_AFTER
    sums = np.zeros(n_images * n_phases * n_cols, lines.dtype)
    flat = lines.reshape(-1)
    for view in range(n_views):
        along, start, slope, step, is_reversed, length = _fan(rays[view])
        if along != axis:
            continue
        start -= (cols - 1) * step if is_reversed else 0.0
        sums[:] = 0
        for line in range(n_lines):
            place = start + line * slope
            first = int(max(np.floor((-1 - place) / step) + 1, 0))
            end = int(min(np.ceil((n - place) / step), cols))
            for phase in range(n_phases):
                read(
                    sums,
                    phase * n_cols + PAD_BEFORE,
                    n_phases * n_cols,
                    flat,
                    line * n_padded + PAD_BEFORE,
                    n_lines * n_padded,
                    n_images,
                    place + phase * step,
                    n_phases * step,
                    (first - phase + n_phases - 1) // n_phases,
                    (end - phase + n_phases - 1) // n_phases,
                )
        _deal(sums, projections[view], is_reversed, n_phases, step_mm * length, True)


@njit(nogil=True, cache=True)
def _adjoint(
    lines: _Array,
    projections: _Array,
    rays: NDArray[np.float64],
    axis: int,
    step_mm: float,
    n_phases: int,
    first_line: int,
) -> None:
    """Add to lines, the first of which is `first_line`, what `_forward` transposed makes of all views."""
    n_views, n_images, cols = projections.shape
    _, n_lines, n_padded = lines.shape
    n = n_padded - PAD_BEFORE - PAD_AFTER
    n_cols = PAD_BEFORE + (cols + n_phases - 1) // n_phases + PAD_AFTER
    sums = np.zeros(n_images * n_phases * n_cols, lines.dtype)
    flat = lines.reshape(-1)
    for view in range(n_views):
        along, start, slope, step, is_reversed, length = _fan(rays[view])
        if along != axis:
            continue
        start -= (cols - 1) * step if is_reversed else 0.0
        _deal(sums, projections[view], is_reversed, n_phases, step_mm * length, False)
        for line in range(n_lines):
            place = start + (first_line + line) * slope
            first = int(min(max(np.floor(place), 0), n))
            end = int(min(np.floor(place + (cols - 1) * step) + 2, n))
            for phase in range(n_phases):
                spread(
                    sums,
                    phase * n_cols + PAD_BEFORE,
                    n_phases * n_cols,
                    flat,
                    line * n_padded + PAD_BEFORE,
                    n_lines * n_padded,
                    n_images,
                    1.0,
                    place + phase * step,
                    n_phases * step,
                    first,
                    end,
                )


def _n_phases(rays: NDArray[np.float64]) -> int:
    return int(np.ceil(SHORTEST_STEP / min(_fan(ray)[3] for ray in rays)))


def _bunches(
    rays: NDArray[np.float64], rows: int, volume: _Array
) -> Iterator[tuple[slice, NDArray[np.floating], slice]]:
    """Yield some rows, what the slices next to them give to each, (rows, slices), and which slices these are."""
    n_z = volume.shape[1]
    n = max(TOGETHER // len(volume), 1)
    for first in range(0, rows, n):
        some = slice(first, min(first + n, rows))
        heights = rays[0, 1, 0] + np.arange(some.start, some.stop) * rays[0, 3, 0]
        low, high = np.clip([np.floor(heights.min()), np.floor(heights.max()) + 2], 0, n_z).astype(int)
        weights = np.maximum(1 - np.abs(heights[:, None] - np.arange(low, high)), 0)
        yield some, weights.astype(volume.dtype), slice(low, high)


def forward(
    volume: _Array,
    projections: _Array,
    rays: NDArray[np.float64],
    is_parallel: bool,  # noqa: ARG001 - as all kernels; only parallel beams come here
    step_mm: float,
) -> None:
    """Fill `projections`; the arrays are those of `joseph_plain`."""
    n_channels, _, n_y, n_x = volume.shape
    _, n_views, rows, cols = projections.shape
    n_phases = _n_phases(rays)
    for some, weights, slices in _bunches(rays, rows, volume):
        images = np.tensordot(weights, volume[:, slices], axes=(1, 1)).reshape(-1, n_y, n_x)
        views = np.zeros((n_views, len(images), cols), volume.dtype)
        for axis, n_lines, n in ((1, n_y, n_x), (2, n_x, n_y)):
            lines = np.zeros((len(images), n_lines, PAD_BEFORE + n + PAD_AFTER), volume.dtype)
            lines[:, :, PAD_BEFORE : PAD_BEFORE + n] = images if axis == 1 else images.swapaxes(1, 2)
            parts = [slice(first, first + VIEWS_A_TASK) for first in range(0, n_views, VIEWS_A_TASK)]
            in_threads(_forward, [(views[part], lines, rays[part], axis, step_mm, n_phases) for part in parts])
        projections[:, :, some] = views.reshape(n_views, -1, n_channels, cols).transpose(2, 0, 1, 3)


def _add(
    images: _Array, views: _Array, rays: NDArray[np.float64], axis: int, step_mm: float, n_phases: int, first: int
) -> None:
    """Add to some lines of images, `first` and those after it, what all views bring."""
    towards = (images if axis == 1 else images.swapaxes(1, 2))[:, first : first + LINES_A_TASK]
    n = towards.shape[2]
    lines = np.zeros((*towards.shape[:2], PAD_BEFORE + n + PAD_AFTER), images.dtype)
    _adjoint(lines, views, rays, axis, step_mm, n_phases, first)
    towards += lines[:, :, PAD_BEFORE : PAD_BEFORE + n]


def adjoint(
    volume: _Array,
    projections: _Array,
    rays: NDArray[np.float64],
    is_parallel: bool,  # noqa: ARG001
    step_mm: float,
) -> None:
    """Add to `volume` what `forward` transposed makes of all views; the arrays are those of `joseph_plain`."""
    n_channels, _, n_y, n_x = volume.shape
    _, n_views, rows, cols = projections.shape
    n_phases = _n_phases(rays)
    for some, weights, slices in _bunches(rays, rows, volume):
        views = np.ascontiguousarray(projections[:, :, some].transpose(1, 2, 0, 3)).reshape(n_views, -1, cols)
        images = np.zeros((views.shape[1], n_y, n_x), volume.dtype)
        for axis, n_lines in ((1, n_y), (2, n_x)):
            starts = range(0, n_lines, LINES_A_TASK)
            in_threads(_add, [(images, views, rays, axis, step_mm, n_phases, first) for first in starts])
        by_channel = images.reshape(-1, n_channels, n_y, n_x)
        volume[:, slices] += np.tensordot(weights, by_channel, axes=(0, 0)).swapaxes(0, 1)
