"""Steps of total variation on the CPU: each reads and writes every array once, row by row along x.

`tv_plain` says what is computed, in the same arguments. Rows of voxels are shared out over the cores. The norms that
couple channels need the singular values of a (channel, direction) matrix at every voxel: they come from the eigenvalues
of its 3 x 3 Gram matrix G, and the projection is the matrix times a function of G, written as Newton's interpolation
over the eigenvalues; its divided differences have closed forms here, so that equal eigenvalues do no harm. All of it is
done a row at a time, without branches, so that the compiler can take several voxels at once.

# Ref: eigenvalues of a symmetric 3 x 3 matrix: Smith 1961, Commun. ACM 4, 168.
# Ref: functions of a matrix by interpolation over its spectrum: Higham 2008, Functions of Matrices, section 1.2.2.
# Ref: projection onto the l1 ball: Duchi et al. 2008, ICML, fig. 1.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconstruction.kernels.tv_plain import ANYWHERE, NUCLEAR, PER_CHANNEL, PER_COMPONENT, SPECTRAL

N_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
ROWS_PER_TASK = 256
"""Fewer rows than this are not worth a thread."""
NEARLY_RANK_ONE = 1e-3
POWERS = 5
"""Multiplications that make the largest eigenvalue's vector right to rounding, where it dominates so."""
TINY = 1e-300
_NODES = np.cos((np.arange(13) + 0.5) * math.pi / 13)
THIRD_OF_ANGLE = tuple(np.polyfit(_NODES, np.cos(np.arccos((_NODES + 1) ** 2 / 2 - 1) / 3), 12).tolist())
"""cos(acos(r) / 3), the largest root of 4 t^3 - 3 t = r, as a polynomial of sqrt(2 (1 + r)) - 1: right to 2e-12."""
_pool = ThreadPoolExecutor(max(N_CORES - 1, 1), thread_name_prefix="tv")

Volume = NDArray[np.floating[Any]]


def primal(
    out: Volume,
    base: Volume,
    dual: Volume,
    step: float,
    is_non_negative: bool,
    weights: Volume,
    tangent: Volume | None,
) -> None:
    """Fill `out` with base - step K^T dual, or with 0 where that is negative and must not be."""
    floor = base.dtype.type(0 if is_non_negative else -np.inf)
    arguments = base, dual, base.dtype.type(step), floor, weights, tangent
    _over_rows(lambda first, end: _primal(out, *arguments, first, end), out.shape)


def dual(
    p: Volume,
    q: Volume,
    u: Volume,
    step: float,
    shrink: float,
    momentum: float,
    ball: int,
    radius: float,
    weights: Volume,
    tangent: Volume | None,
) -> None:
    """Step from `q` along K u, shrink, project: the new `p`. Then `q` goes past it by `momentum` times its change."""
    scalar = u.dtype.type
    arguments = u, scalar(step), scalar(shrink), scalar(momentum), ball, scalar(radius), weights, tangent
    _over_rows(lambda first, end: _dual(p, q, *arguments, _scratch(ball, u), first, end), u.shape)


def value(u: Volume, ball: int, corner: float, weights: Volume, tangent: Volume | None) -> float:
    """Return the sum over the voxels of the norm of K u whose dual ball is given, rounded off below `corner`."""
    arguments = u, ball, float(corner), weights, tangent
    return math.fsum(_over_rows(lambda first, end: _value(*arguments, _scratch(ball, u), first, end), u.shape))


def _scratch(ball: int, u: Volume) -> Volume | None:
    """Return a row's room for Gram matrices and singular values, where the norm needs them.

    Kernels are compiled apart for None, here and for the tangent: most need neither, and compile faster.
    """
    return np.empty((9, u.shape[-1])) if ball in (SPECTRAL, NUCLEAR) else None


def _over_rows(work: Callable[[int, int], Any], shape: tuple[int, ...]) -> list[Any]:
    """Call `work(first, end)` for shares of all rows of a volume, one share to a core."""
    n_rows = shape[-3] * shape[-2]
    n_shares = max(min(N_CORES, n_rows // ROWS_PER_TASK), 1)
    edges = [n_rows * share // n_shares for share in range(n_shares + 1)]
    others = [_pool.submit(work, first, end) for first, end in itertools.pairwise(edges[1:])]
    return [work(edges[0], edges[1]), *(other.result() for other in others)]


@njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy")
def _across_component(dual, tangent, channel, direction, z, y, out):  # noqa: ANN001, ANN202
    """Fill `out` with one component of (I - t t^T) p along a row."""
    for x in range(out.shape[0]):
        along = (
            tangent[0, z, y, x] * dual[channel, 0, z, y, x]
            + tangent[1, z, y, x] * dual[channel, 1, z, y, x]
            + tangent[2, z, y, x] * dual[channel, 2, z, y, x]
        )
        out[x] = dual[channel, direction, z, y, x] - tangent[direction, z, y, x] * along


@njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy")
def _primal(out, base, dual, step, floor, weights, tangent, first, end):  # noqa: ANN001, ANN202
    """Do rows `first` to `end` of `primal`."""
    n_channels, n_z, n_y, n_x = base.shape
    buffers = np.empty((5, n_x), base.dtype)
    sums = np.empty(n_x, base.dtype)
    for channel in range(n_channels):
        scale = step * weights[channel]
        for row in range(first, end):
            z, y = row // n_y, row % n_y
            if tangent is not None:
                along_x, here_y, before_y, here_z, before_z = buffers[0], buffers[1], buffers[2], buffers[3], buffers[4]
                _across_component(dual, tangent, channel, 2, z, y, along_x)
                _across_component(dual, tangent, channel, 1, z, y, here_y)
                _across_component(dual, tangent, channel, 1, z, max(y - 1, 0), before_y)
                _across_component(dual, tangent, channel, 0, z, y, here_z)
                _across_component(dual, tangent, channel, 0, max(z - 1, 0), y, before_z)
            else:
                along_x = dual[channel, 2, z, y]
                here_y, before_y = dual[channel, 1, z, y], dual[channel, 1, z, max(y - 1, 0)]
                here_z, before_z = dual[channel, 0, z, y], dual[channel, 0, max(z - 1, 0), y]
            if n_x > 1:
                sums[0] = -along_x[0]
                for x in range(1, n_x - 1):
                    sums[x] = along_x[x - 1] - along_x[x]
                sums[n_x - 1] = along_x[n_x - 2]
            else:
                sums[0] = 0
            # a last voxel has no step ahead, a first one none behind
            y_ahead, y_behind = base.dtype.type(y < n_y - 1), base.dtype.type(y > 0)
            z_ahead, z_behind = base.dtype.type(z < n_z - 1), base.dtype.type(z > 0)
            source, target = base[channel, z, y], out[channel, z, y]
            for x in range(n_x):
                transposed = (
                    sums[x]
                    + (y_behind * before_y[x] - y_ahead * here_y[x])
                    + (z_behind * before_z[x] - z_ahead * here_z[x])
                )
                target[x] = max(source[x] - scale * transposed, floor)


@njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy")
def _gradient_row(u, weights, tangent, z, y, rows):  # noqa: ANN001, ANN202
    """Fill `rows`, (n_channels, 3, n_x), with K u along a row."""
    n_channels, n_z, n_y, n_x = u.shape
    z_next, y_next = min(z + 1, n_z - 1), min(y + 1, n_y - 1)
    for channel in range(n_channels):
        weight = weights[channel]
        here, above, behind = u[channel, z, y], u[channel, z_next, y], u[channel, z, y_next]
        for x in range(n_x):
            rows[channel, 0, x] = weight * (above[x] - here[x])
            rows[channel, 1, x] = weight * (behind[x] - here[x])
        for x in range(n_x - 1):
            rows[channel, 2, x] = weight * (here[x + 1] - here[x])
        rows[channel, 2, n_x - 1] = 0
        if tangent is not None:
            for x in range(n_x):
                along = (
                    tangent[0, z, y, x] * rows[channel, 0, x]
                    + tangent[1, z, y, x] * rows[channel, 1, x]
                    + tangent[2, z, y, x] * rows[channel, 2, x]
                )
                for direction in range(3):
                    rows[channel, direction, x] -= tangent[direction, z, y, x] * along


@njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy")
def _dual(p, q, u, step, shrink, momentum, ball, radius, weights, tangent, scratch, first, end):  # noqa: ANN001, ANN202
    """Do rows `first` to `end` of `dual`."""
    n_channels, _, n_y, n_x = u.shape
    rows = np.empty((n_channels, 3, n_x), u.dtype)
    norms = np.empty(n_x, u.dtype)
    stride = step * shrink
    for row in range(first, end):
        z, y = row // n_y, row % n_y
        _gradient_row(u, weights, tangent, z, y, rows)
        for channel in range(n_channels):
            for direction in range(3):
                past = q[channel, direction, z, y]
                for x in range(n_x):
                    rows[channel, direction, x] = shrink * past[x] + stride * rows[channel, direction, x]
        if scratch is not None:
            _project_singular(rows, scratch[:6], scratch[6:], ball, np.float64(radius))
        elif ball == PER_COMPONENT:
            for channel in range(n_channels):
                for direction in range(3):
                    for x in range(n_x):
                        rows[channel, direction, x] = max(min(rows[channel, direction, x], radius), -radius)
        elif ball != ANYWHERE:
            n_together = 1 if ball == PER_CHANNEL else n_channels
            for channel in range(0, n_channels, n_together):
                _scale_to_ball(rows[channel : channel + n_together], norms, radius)
        for channel in range(n_channels):
            for direction in range(3):
                old, past = p[channel, direction, z, y], q[channel, direction, z, y]
                for x in range(n_x):
                    new = rows[channel, direction, x]
                    past[x] = new + momentum * (new - old[x])
                    old[x] = new


@njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy")
def _scale_to_ball(rows, norms, radius):  # noqa: ANN001, ANN202
    """Scale every voxel's matrix so that its Euclidean norm is at most `radius`."""
    n_channels, _, n_x = rows.shape
    norms[:] = 0
    for channel in range(n_channels):
        for x in range(n_x):
            norms[x] += rows[channel, 0, x] ** 2 + rows[channel, 1, x] ** 2 + rows[channel, 2, x] ** 2
    for x in range(n_x):
        norms[x] = radius / max(np.sqrt(norms[x]), radius)
    for channel in range(n_channels):
        for direction in range(3):
            for x in range(n_x):
                rows[channel, direction, x] *= norms[x]


@njit(cache=True, nogil=True, error_model="numpy")
def _gram_row(rows, gram):  # noqa: ANN001, ANN202
    """Fill `gram` with the six different elements of J^T J: 00, 11, 22, 01, 02, 12."""
    n_channels, _, n_x = rows.shape
    gram[:] = 0
    for channel in range(n_channels):
        for x in range(n_x):
            a, b, c = np.float64(rows[channel, 0, x]), np.float64(rows[channel, 1, x]), np.float64(rows[channel, 2, x])
            gram[0, x] += a * a
            gram[1, x] += b * b
            gram[2, x] += c * c
            gram[3, x] += a * b
            gram[4, x] += a * c
            gram[5, x] += b * c


@njit(cache=True, nogil=True, error_model="numpy")
def _times_row(rows, matrix):  # noqa: ANN001, ANN202
    """Multiply every voxel's matrix from the right by a symmetric one, of which `matrix` has six elements."""
    n_channels, _, n_x = rows.shape
    for channel in range(n_channels):
        for x in range(n_x):
            a, b, c = rows[channel, 0, x], rows[channel, 1, x], rows[channel, 2, x]
            rows[channel, 0, x] = a * matrix[0, x] + b * matrix[3, x] + c * matrix[4, x]
            rows[channel, 1, x] = a * matrix[3, x] + b * matrix[1, x] + c * matrix[5, x]
            rows[channel, 2, x] = a * matrix[4, x] + b * matrix[5, x] + c * matrix[2, x]


@njit(cache=True, nogil=True, error_model="numpy")
def _project_singular(rows, gram, singular, ball, radius):  # noqa: ANN001, ANN202
    """Project every voxel's matrix onto a ball of singular values."""
    _gram_row(rows, gram)
    _projector_row(gram, singular, ball, radius)
    _times_row(rows, gram)


@njit(cache=True, nogil=True, error_model="numpy")
def _without_largest(gram, x, largest):  # noqa: ANN001, ANN202
    """Return the two smaller eigenvalues, where both are so small that the cubic's roots lose them in rounding."""
    g0, g1, g2, g01, g02, g12 = gram[0, x], gram[1, x], gram[2, x], gram[3, x], gram[4, x], gram[5, x]
    a, b, c = g0, g01, g02
    if g1 >= g0 and g1 >= g2:
        a, b, c = g01, g1, g12
    elif g2 >= g0:
        a, b, c = g02, g12, g2
    for _ in range(POWERS):
        a, b, c = (g0 * a + g01 * b + g02 * c), (g01 * a + g1 * b + g12 * c), (g02 * a + g12 * b + g2 * c)
        a, b, c = a / largest, b / largest, c / largest
    size = a * a + b * b + c * c
    rayleigh = g0 * a * a + g1 * b * b + g2 * c * c + 2 * (g01 * a * b + g02 * a * c + g12 * b * c)
    scale = rayleigh / (size * size)
    g0, g1, g2 = g0 - scale * a * a, g1 - scale * b * b, g2 - scale * c * c
    g01, g02, g12 = g01 - scale * a * b, g02 - scale * a * c, g12 - scale * b * c
    half_trace = (g0 + g1 + g2) / 2
    minors = g0 * g1 - g01 * g01 + g0 * g2 - g02 * g02 + g1 * g2 - g12 * g12
    half_gap = math.sqrt(max(half_trace * half_trace - minors, 0.0))
    return half_trace + half_gap, half_trace - half_gap


@njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy")
def _singular_row(gram, singular, is_exact):  # noqa: ANN001, ANN202
    """Fill `singular`, (3, n_x), with the roots of the Gram matrices' eigenvalues, the largest first.

    Unless `is_exact`, the smaller ones are off by up to 1e-4 of the largest where that is much larger than both.
    """
    n_x = gram.shape[1]
    largest, middle, smallest = singular[0], singular[1], singular[2]
    mean, size, below, above = np.empty(n_x), np.empty(n_x), np.empty(n_x), np.empty(n_x)
    for x in range(n_x):
        mean[x] = (gram[0, x] + gram[1, x] + gram[2, x]) / 3
        a, b, c = gram[0, x] - mean[x], gram[1, x] - mean[x], gram[2, x] - mean[x]
        d, e, f = gram[3, x], gram[4, x], gram[5, x]
        size[x] = np.sqrt((a * a + b * b + c * c + 2 * (d * d + e * e + f * f)) / 6)
        determinant = a * (b * c - f * f) - d * (d * c - f * e) + e * (d * f - b * e)
        cosine = min(max(determinant / max(2 * size[x] * size[x] * size[x], TINY), -1.0), 1.0)
        below[x], above[x] = np.sqrt(2 * (1 + cosine)) - 1, np.sqrt(2 * (1 - cosine)) - 1
        largest[x] = THIRD_OF_ANGLE[0]
        smallest[x] = THIRD_OF_ANGLE[0]
    for k in range(1, len(THIRD_OF_ANGLE)):
        coefficient = THIRD_OF_ANGLE[k]
        for x in range(n_x):
            largest[x] = largest[x] * below[x] + coefficient
            smallest[x] = smallest[x] * above[x] + coefficient
    for x in range(n_x):
        largest[x] = mean[x] + 2 * size[x] * largest[x]
        smallest[x] = mean[x] - 2 * size[x] * smallest[x]
        middle[x] = 3 * mean[x] - largest[x] - smallest[x]
    if is_exact:
        for x in range(n_x):
            if largest[x] > 0 and middle[x] < NEARLY_RANK_ONE * largest[x]:
                middle[x], smallest[x] = _without_largest(gram, x, largest[x])
    for x in range(n_x):
        largest[x] = np.sqrt(max(largest[x], 0.0))
        middle[x] = np.sqrt(max(middle[x], 0.0))
        smallest[x] = np.sqrt(max(smallest[x], 0.0))


@njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy")
def _projector_row(gram, singular, ball, radius):  # noqa: ANN001, ANN202
    """Replace each Gram matrix J^T J by the matrix that takes J onto the ball.

    That is f(G) with f(t) = min(1, limit / sqrt(t)) for the largest singular value, and the identity less f(G) for the
    sum of the singular values, with `limit` what all of them are to lose.
    """
    _singular_row(gram, singular, ball == NUCLEAR)
    for x in range(gram.shape[1]):
        a, b, c = singular[0, x], singular[1, x], singular[2, x]
        shift = max(max(a - radius, (a + b - radius) / 2), (a + b + c - radius) / 3)
        limit = max(shift, TINY) if ball == NUCLEAR else radius
        a_out, b_out, c_out = max(a, limit), max(b, limit), max(c, limit)
        # divided differences of f between a^2, b^2 and c^2
        ab = 1.0 if b >= limit else min((a_out - limit) / max(a - b, TINY), 1.0)
        bc = 1.0 if c >= limit else min((b_out - limit) / max(b - c, TINY), 1.0)
        first = limit / a_out
        second = -limit * ab / max(a_out * b_out * (a + b), TINY)
        behind = -limit * bc / max(b_out * c_out * (b + c), TINY)
        apart = (a + b + c) * limit / max(a_out * b_out * c_out * (a + b) * (b + c) * (a + c), TINY)
        third = apart if c >= limit else (second - behind) / max(a * a - c * c, TINY)
        # f(G) = first I + second (G - a^2 I) + third (G - a^2 I) (G - b^2 I)
        # as it stands: multiplied out it would cancel where eigenvalues coincide
        g01, g02, g12 = gram[3, x], gram[4, x], gram[5, x]
        a0, a1, a2 = gram[0, x] - a * a, gram[1, x] - a * a, gram[2, x] - a * a
        b0, b1, b2 = gram[0, x] - b * b, gram[1, x] - b * b, gram[2, x] - b * b
        m0 = first + second * a0 + third * (a0 * b0 + g01 * g01 + g02 * g02)
        m1 = first + second * a1 + third * (a1 * b1 + g01 * g01 + g12 * g12)
        m2 = first + second * a2 + third * (a2 * b2 + g02 * g02 + g12 * g12)
        m01 = second * g01 + third * (a0 * g01 + g01 * b1 + g02 * g12)
        m02 = second * g02 + third * (a0 * g02 + g01 * g12 + g02 * b2)
        m12 = second * g12 + third * (g01 * g02 + a1 * g12 + g12 * b2)
        is_inside = ball == NUCLEAR and shift <= 0
        sign, one = (-1.0, 1.0) if ball == NUCLEAR else (1.0, 0.0)
        gram[0, x] = 1.0 if is_inside else one + sign * m0
        gram[1, x] = 1.0 if is_inside else one + sign * m1
        gram[2, x] = 1.0 if is_inside else one + sign * m2
        gram[3, x] = 0.0 if is_inside else sign * m01
        gram[4, x] = 0.0 if is_inside else sign * m02
        gram[5, x] = 0.0 if is_inside else sign * m12


@njit(cache=True, nogil=True, error_model="numpy")
def _rounded(norm, corner):  # noqa: ANN001, ANN202
    return norm * norm / (2 * corner) if norm < corner else norm - corner / 2


@njit(cache=True, nogil=True, error_model="numpy")
def _value(u, ball, corner, weights, tangent, scratch, first, end):  # noqa: ANN001, ANN202
    """Do rows `first` to `end` of `value`."""
    n_channels, _, n_y, n_x = u.shape
    rows = np.empty((n_channels, 3, n_x), u.dtype)
    total = 0.0
    for row in range(first, end):
        _gradient_row(u, weights, tangent, row // n_y, row % n_y, rows)
        if ball == PER_COMPONENT:
            for channel in range(n_channels):
                for direction in range(3):
                    for x in range(n_x):
                        total += _rounded(abs(np.float64(rows[channel, direction, x])), corner)
            continue
        if scratch is not None:
            gram, singular = scratch[:6], scratch[6:]
            _gram_row(rows, gram)
            _singular_row(gram, singular, ball == SPECTRAL)
            for x in range(n_x):
                others = singular[1, x] + singular[2, x] if ball == SPECTRAL else 0.0
                total += _rounded(singular[0, x] + others, corner)
            continue
        n_together = 1 if ball == PER_CHANNEL else n_channels
        for channel in range(0, n_channels, n_together):
            for x in range(n_x):
                square = 0.0
                for other in range(channel, channel + n_together):
                    for direction in range(3):
                        square += np.float64(rows[other, direction, x]) ** 2
                total += square / (2 * corner) if ball == ANYWHERE else _rounded(np.sqrt(square), corner)
    return total
