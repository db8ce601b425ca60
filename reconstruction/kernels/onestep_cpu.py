"""`onestep_plain` on the CPU, in single precision: some dozens of rays or voxels at a time, so that all stays in cache.

Loops run over rays innermost, without branches, so that the compiler takes eight of them at once; the exponential is a
polynomial for the same reason.

# Ref: 2^f as a polynomial, and its exponent set as bits: Schraudolph 1999, Neural Comput. 11, 853, for the idea.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconstruction import symmetric
from reconstruction.kernels.onestep_plain import CLIPPING_SWEEPS, DARK_COUNTS, Nodes, Rays
from reconstruction.kernels.threads import in_threads, n_threads

TOGETHER = 128
"""Rays, or voxels, that go through the kernels together."""
TASKS_A_THREAD = 4
LOG2_E = math.log2(math.e)
_NODES = np.cos((np.arange(7) + 0.5) * math.pi / 7) / 2
C0, C1, C2, C3, C4, C5, C6 = (np.float32(c) for c in np.polyfit(_NODES, 2.0**_NODES, 6)[::-1])
"""2^f for -1/2 <= f <= 1/2, to the last bit or two."""
ROUNDER = np.float32(1.5 * 2**23)
"""Added and taken away again, it leaves the nearest whole number."""

_Array = NDArray[np.floating]
_place = njit(cache=True)(symmetric.place)


def _shares(n: int, at_least: int) -> list[tuple[int, int]]:
    """Cut n into parts for the threads to take in turns, none of them smaller than so many."""
    n_parts = max(min(TASKS_A_THREAD * n_threads(), n // at_least), 1)
    edges = [n * part // n_parts for part in range(n_parts + 1)]
    return list(itertools.pairwise(edges))


def slopes(paths: _Array, rays: Rays, nodes: Nodes, views: slice) -> tuple[float, float]:
    """As `onestep_plain.slopes`; all arrays are contiguous."""
    first, _, stride = views.indices(rays.counts.shape[1])
    shares = _shares(paths.shape[1], _views_together(paths))
    sums = np.zeros((len(shares), 2))
    arguments = paths, rays, nodes, _by_node(nodes), first, stride
    in_threads(_slopes, [(*arguments, *share, sums[k]) for k, share in enumerate(shares)])
    return math.fsum(sums[:, 0]), math.fsum(sums[:, 1])


def curvature(out: _Array, paths: _Array, rays: Rays, nodes: Nodes) -> None:
    """As `onestep_plain.curvature`."""
    by_material = np.ascontiguousarray(nodes.attenuation.T[:, None] * nodes.weights)
    arguments = out, paths, rays, nodes, by_material, _by_node(nodes)
    in_threads(_curvature, [(*arguments, *share) for share in _shares(paths.shape[1], _views_together(paths))])


def _by_node(nodes: Nodes) -> _Array:
    """Return the power of 2 that each material lets through at each node, per mm g/cm3: (n_nodes, n_materials)."""
    return (-LOG2_E * nodes.attenuation).astype(np.float32)


def _views_together(paths: _Array) -> int:
    return -(-TOGETHER // paths.shape[2])


@njit(cache=True, nogil=True)
def _kept(kept, paths, by_node, bits, view, start, n):  # noqa: ANN001, ANN202
    """Fill rows of `kept`, one per node, with what the materials let through along n rays."""
    n_materials = len(paths)
    scale = bits.view(np.float32)
    for node in range(len(kept)):
        row = kept[node]
        along, slope = paths[0, view], by_node[node, 0]
        for r in range(n):
            row[r] = slope * along[start + r]
        for material in range(1, n_materials):
            along, slope = paths[material, view], by_node[node, material]
            for r in range(n):
                row[r] += slope * along[start + r]
        for r in range(n):
            power = min(max(row[r], np.float32(-120)), np.float32(120))
            whole = (power + ROUNDER) - ROUNDER
            bits[r] = (np.int32(whole) + np.int32(127)) << np.int32(23)
            row[r] = power - whole
        for r in range(n):
            f = row[r]
            row[r] = (C0 + f * (C1 + f * (C2 + f * (C3 + f * (C4 + f * (C5 + f * C6)))))) * scale[r]


@njit(cache=True, nogil=True, error_model="numpy")
def _slopes(paths, rays, nodes, by_node, first, stride, low, high, sums):  # noqa: ANN001, ANN202
    """Do views `low` to `high` of `paths`, which are every `stride`-th of the rays' from `first` on."""
    n_materials, _, n_rays = paths.shape
    counts, opened, dark, shares = rays
    weights, attenuation = nodes
    n_bins, n_nodes = weights.shape
    kept = np.empty((n_nodes, TOGETHER), np.float32)
    bits = np.empty(TOGETHER, np.int32)
    pull = np.empty((n_bins, TOGETHER), np.float32)
    slope = np.empty((n_materials, TOGETHER), np.float32)
    along = np.empty(TOGETHER, np.float32)
    objective, squared = 0.0, 0.0
    for view in range(low, high):
        data_view = first + view * stride
        open_view = data_view if opened.shape[1] > 1 else 0
        dark_view = data_view if dark.shape[1] > 1 else 0
        share_view = data_view if shares.shape[1] > 1 else 0
        for start in range(0, n_rays, TOGETHER):
            n = min(TOGETHER, n_rays - start)
            _kept(kept, paths, by_node, bits, view, start, n)
            for k in range(n_bins):
                row = pull[k]
                row[:] = 0
                for node in range(n_nodes):
                    weight, through = weights[k, node], kept[node]
                    for r in range(n):
                        row[r] += weight * through[r]
                y, full, floor = counts[k, data_view], opened[k, open_view], dark[k, dark_view]
                counted = shares[k if len(shares) > 1 else 0, share_view]
                for r in range(n):
                    at = start + r
                    expected = full[at] * row[r] + floor[at] + np.float32(DARK_COUNTS)
                    excess = expected - y[at]
                    part = excess / expected
                    squared += np.float64(counted[at] * part * excess)
                    if y[at] > 0:
                        objective += counted[at] * (y[at] * math.log(np.float64(y[at]) / expected) + excess)
                    else:
                        objective += counted[at] * excess
                    row[r] = part * full[at] * counted[at]
            slope[:] = 0
            for node in range(n_nodes):
                along[:] = 0
                for k in range(n_bins):
                    weight, row = weights[k, node], pull[k]
                    for r in range(n):
                        along[r] += weight * row[r]
                through = kept[node]
                for r in range(n):
                    along[r] *= through[r]
                for material in range(n_materials):
                    mu, row = attenuation[node, material], slope[material]
                    for r in range(n):
                        row[r] -= mu * along[r]
            for material in range(n_materials):
                target, row = paths[material, view], slope[material]
                for r in range(n):
                    target[start + r] = row[r]
    sums[0], sums[1] = objective, squared


@njit(cache=True, nogil=True, error_model="numpy")
def _curvature(out, paths, rays, nodes, by_material, by_node, low, high):  # noqa: ANN001, ANN202
    """Do views `low` to `high`."""
    n_materials, _, n_rays = paths.shape
    counts, opened, dark, shares = rays
    weights = nodes.weights
    n_bins, n_nodes = weights.shape
    kept = np.empty((n_nodes, TOGETHER), np.float32)
    bits = np.empty(TOGETHER, np.int32)
    column = np.empty((n_materials, TOGETHER), np.float32)
    through = np.empty(TOGETHER, np.float32)
    for view in range(low, high):
        open_view = view if opened.shape[1] > 1 else 0
        dark_view = view if dark.shape[1] > 1 else 0
        share_view = view if shares.shape[1] > 1 else 0
        for start in range(0, n_rays, TOGETHER):
            n = min(TOGETHER, n_rays - start)
            _kept(kept, paths, by_node, bits, view, start, n)
            out[:, view, start : start + n] = 0
            for k in range(n_bins):
                through[:] = 0
                column[:] = 0
                for node in range(n_nodes):
                    weight, row = weights[k, node], kept[node]
                    for r in range(n):
                        through[r] += weight * row[r]
                    for material in range(n_materials):
                        weight, sums = by_material[material, k, node], column[material]
                        for r in range(n):
                            sums[r] += weight * row[r]
                y, full, floor = counts[k, view], opened[k, open_view], dark[k, dark_view]
                counted = shares[k if len(shares) > 1 else 0, share_view]
                for r in range(n):
                    at = start + r
                    expected = full[at] * through[r] + floor[at] + np.float32(DARK_COUNTS)
                    raised = max(y[at] / expected, np.float32(1))
                    through[r] = counted[at] * full[at] * full[at] * raised / expected
                entry = 0
                for i in range(n_materials):
                    for j in range(i, n_materials):
                        target, one, other = out[entry, view], column[i], column[j]
                        for r in range(n):
                            target[start + r] += through[r] * one[r] * other[r]
                        entry += 1


def step(
    x: _Array,
    extrapolated: _Array,
    gradient: _Array,
    hessian: _Array,
    floor: NDArray[np.float64],
    stiffness: float,
    momentum: float,
    is_non_negative: bool,
) -> None:
    """As `onestep_plain.step`; all arrays are contiguous."""
    n = len(x)
    flat = [array.reshape(len(array), -1) for array in (x, extrapolated, gradient, hessian)]
    arguments = (*flat, np.asarray(floor, np.float64), float(stiffness), float(momentum), is_non_negative, n)
    in_threads(_step, [(*arguments, *share) for share in _shares(flat[0].shape[1], TOGETHER)])


@njit(cache=True, nogil=True, error_model="numpy")
def _step(x, extrapolated, gradient, hessian, floor, stiffness, momentum, is_non_negative, n, low, high):  # noqa: ANN001, ANN202
    """Do voxels `low` to `high`: factors L D L' of some dozens of matrices at a time."""
    n_packed = len(hessian)
    matrix = np.empty((n_packed, TOGETHER))
    lower = np.empty((n_packed, TOGETHER))
    away = np.empty((n, TOGETHER))
    for start in range(low, high, TOGETHER):
        m = min(TOGETHER, high - start)
        for entry in range(n_packed):
            row, source = matrix[entry], hessian[entry]
            for v in range(m):
                row[v] = stiffness * source[start + v]
        for i in range(n):
            row = matrix[_place(i, i, n)]
            for v in range(m):
                row[v] += floor[i]
        for i in range(n):
            for j in range(i + 1):
                row, source = lower[_place(i, j, n)], matrix[_place(i, j, n)]
                for v in range(m):
                    row[v] = source[v]
                for k in range(j):
                    one, other = lower[_place(i, k, n)], lower[_place(j, k, n)]
                    middle = lower[_place(k, k, n)]
                    for v in range(m):
                        row[v] -= one[v] * other[v] * middle[v]
                if j < i:
                    middle = lower[_place(j, j, n)]
                    for v in range(m):
                        row[v] /= middle[v]
        for i in range(n):
            row, source = away[i], gradient[i]
            for v in range(m):
                row[v] = source[start + v]
            for k in range(i):
                factor, other = lower[_place(i, k, n)], away[k]
                for v in range(m):
                    row[v] -= factor[v] * other[v]
        for i in range(n):
            row, middle = away[i], lower[_place(i, i, n)]
            for v in range(m):
                row[v] /= middle[v]
        for back in range(n):
            i = n - 1 - back
            row = away[i]
            for k in range(i + 1, n):
                factor, other = lower[_place(k, i, n)], away[k]
                for v in range(m):
                    row[v] -= factor[v] * other[v]
        if is_non_negative:
            _bound(matrix, gradient, extrapolated, away, n, start, m)
        for i in range(n):
            here, ahead, row = x[i], extrapolated[i], away[i]
            for v in range(m):
                at = start + v
                old = here[at]
                new = np.float32(ahead[at] - row[v])
                further = np.float32(new + momentum * (new - old))
                if is_non_negative:
                    new = max(new, np.float32(0))
                    further = max(further, np.float32(0))
                ahead[at] = further
                here[at] = new


@njit(cache=True, nogil=True, error_model="numpy")
def _bound(matrix, gradient, place, away, n, start, m):  # noqa: ANN001, ANN202
    """Change steps that lead below 0 to the best that do not."""
    for v in range(m):
        at = start + v
        is_below = False
        for i in range(n):
            if place[i, at] - away[i, v] < 0:
                is_below = True
                away[i, v] = place[i, at]
        if not is_below:
            continue
        for _ in range(CLIPPING_SWEEPS):
            for i in range(n):
                pull = np.float64(gradient[i, at])
                for j in range(n):
                    entry = _place(i, j, n)
                    pull -= matrix[entry, v] * away[j, v]
                away[i, v] = min(away[i, v] + pull / matrix[_place(i, i, n), v], np.float64(place[i, at]))
