"""Voxel-driven back-projection on the CPU: every voxel takes from every view what its shadow falls on.

`backproject_plain` says what is computed, voxel by voxel, for any projection matrices. Where detector columns stand
upright, a column of voxels casts its shadow along z: its detector column and its weight are constant, and the rows are
evenly spaced. `_add_columns` blends the two detector columns next to it once, and then walks along z eight voxels at a
time. With rows a step of s + e apart, s whole and e small, voxel k of the eight lies between two of the few rows
b + s k, b + s k + 1, ... that all eight have in common; their shares are hats cut by minima and maxima. So nothing is
gathered and nothing permuted, and the same shares serve all bins.

Zeros surround the detector: the interpolation falls off to zero within one pixel of its edge, and what lies further
outside adds nothing.

# Ref: Feldkamp, Davis and Kress 1984, J. Opt. Soc. Am. A 1, 612: weighted back-projection of filtered projections.
# Ref: the walk along z: Treibig, Hager, Hofmann, Hornegger and Wellein 2013, Int. J. High Perform. Comput. Appl. 27,
#      162, who find the gathers to be what back-projection on a CPU costs most.
"""

# ruff: noqa: ARG001 - numba wants the names of an intrinsic's arguments, and only its generator reads them

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from reconstruction.kernels.backproject_slices import backproject_slices, is_parallel
from reconstruction.kernels.threads import in_threads

LANES = 8
ROWS_BEFORE = 16
"""Zeros below the first row: eight voxels of which one touches the detector start at most 12 rows below it."""
ROWS_AFTER = 24
"""Zeros above its last row: eight voxels that start on the detector read at most 13 rows further."""
ROWS_TOGETHER = 32
"""Rows are blended so many at a time."""
FEW_ROWS, MOST_ROWS = 3, 6
"""Neighbouring rows from which a voxel may take its value: as many as eight voxels drift by, and two."""
TILE_Y, TILE_X = 4, 32
"""Columns of voxels that are summed together, so that they and what they read stay in the cache."""
COARSE_STEP = 1.5
"""Rows per voxel from which voxels are looked up one by one."""
VIEWS_TOGETHER = 4
"""Views that a column of one bin takes from in turn, while it is in the cache; of several bins, fewer."""
MOST_Z = 512
"""Voxels of a column that are summed together, for the same reason."""


def backproject(
    volume: NDArray[np.float32],
    projections: NDArray[np.float32],
    matrices: NDArray[np.float64],
    weights: NDArray[np.floating],
) -> None:
    """Add to each voxel, of each view, weight / c^2 times the value at its shadow.

    Parameters
    ----------
    volume : (n_bins, z, y, x) float32
        Added to.
    projections : (n_views, n_bins, rows, cols) float32
    matrices : (n_views, 3, 4) float64
        Of a voxel's (x, y, z, 1), in numbers of voxels, they make (a, b, c): the shadow falls on column a / c and row
        b / c; where c is not above 0, there is none.
    weights : (n_views,) float
    """
    matrices = np.ascontiguousarray(matrices, np.float64)
    weights = np.ascontiguousarray(weights, np.float64)
    n_bins, n_z, n_y, n_x = volume.shape
    if n_z < LANES and is_parallel(matrices):
        backproject_slices(volume, projections, matrices, weights)
        return
    if not is_upright(matrices):
        in_threads(backproject_plain, [(volume, projections, matrices, weights, z, z + 1) for z in range(n_z)])
        return
    columns = _with_margins(projections)
    rows = projections.shape[2]
    tile_y, tile_x = TILE_Y, max(4 * TILE_X // max(n_bins, 4), LANES)
    n_tiles_x = -(-n_x // tile_x)

    def of_tile(tile: int) -> None:
        y, x = tile // n_tiles_x * tile_y, tile % n_tiles_x * tile_x
        for z in range(0, n_z, MOST_Z):
            part = (z, min(z + MOST_Z, n_z), y, min(y + tile_y, n_y), x, min(x + tile_x, n_x))
            _add_columns(volume, columns, rows, matrices, weights, *part)

    in_threads(of_tile, [(tile,) for tile in range(-(-n_y // tile_y) * n_tiles_x)])


def is_upright(matrices: NDArray[np.float64]) -> bool:
    """Whether a column of voxels falls on one detector column, and its higher end on the higher rows."""
    return bool((matrices[:, [0, 2], 2] == 0).all() and (matrices[:, 1, 2] > 0).all())


def _with_margins(projections: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make the rows innermost and put zeros around them: (n_views, n_bins, rows, cols) to (..., cols, padded rows)."""
    n_views, n_bins, rows, cols = projections.shape
    n_padded = -(-(ROWS_BEFORE + rows + ROWS_AFTER) // ROWS_TOGETHER) * ROWS_TOGETHER
    columns = np.empty((n_views, n_bins, cols, n_padded), np.float32)
    in_threads(_turn, [(projections[view], columns[view]) for view in range(n_views)])
    return columns


@njit(cache=True, nogil=True)
def _turn(images: NDArray[np.float32], columns: NDArray[np.float32]) -> None:
    n_bins, rows, cols = images.shape
    columns[:, :, :ROWS_BEFORE] = 0
    columns[:, :, ROWS_BEFORE + rows :] = 0
    for b in range(n_bins):
        for first in range(0, cols, 16):
            for row in range(rows):
                for col in range(first, min(first + 16, cols)):
                    columns[b, col, ROWS_BEFORE + row] = images[b, row, col]


@njit(cache=True, nogil=True)
def backproject_plain(
    volume: NDArray[np.floating],
    projections: NDArray[np.floating],
    matrices: NDArray[np.float64],
    weights: NDArray[np.float64],
    z_first: int,
    z_end: int,
) -> None:
    """Do as `backproject` for some layers of voxels: the loop as the formula has it."""
    n_views, n_bins, n_rows, n_cols = projections.shape
    for z in range(z_first, z_end):
        for y in range(volume.shape[2]):
            for view in range(n_views):
                m = matrices[view]
                for x in range(volume.shape[3]):
                    c = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
                    if not c > 0:
                        continue
                    col = (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / c
                    row = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / c
                    if not (col > -1 and col < n_cols and row > -1 and row < n_rows):
                        continue
                    left, low = int(np.floor(col)), int(np.floor(row))
                    for i in range(max(low, 0), min(low + 2, n_rows)):
                        for j in range(max(left, 0), min(left + 2, n_cols)):
                            share = (1 - abs(row - i)) * (1 - abs(col - j)) * weights[view] / (c * c)
                            for b in range(n_bins):
                                volume[b, z, y, x] += share * projections[view, b, i, j]


def _walk(stride: int, n_rows: int) -> Any:
    """Make the loop along z for voxels whose rows stand `stride` and `drift` apart, with `drift` small.

    It adds to eight voxels of each bin of `sums`, for each i from `start` to `end`, what stands at the rows
    bases[i] + above[i] + (stride + drift) * (0 ... 7) of that bin in `blended`.
    """
    f32, i64 = ir.FloatType(), ir.IntType(64)
    f32x = ir.VectorType(f32, LANES)
    fast = ("fast",)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, first_sum, n_z, blended, view, n_padded, n_bins, bases, above, drift, start, end = args

        def data(index: int, array: Any) -> Any:
            return context.make_array(signature.args[index])(context, builder, array).data

        voxels = builder.gep(data(0, sums), [first_sum])
        rows = builder.gep(data(3, blended), [builder.mul(view, builder.mul(n_bins, n_padded))])
        n_chunks = builder.udiv(n_z, ir.Constant(i64, LANES))
        bases, above = (builder.gep(data(*of), [builder.mul(view, n_chunks)]) for of in ((7, bases), (8, above)))

        def constant(value: float) -> Any:
            return ir.Constant(f32x, [value] * LANES)

        def spread(value: Any) -> Any:
            first = builder.insert_element(ir.Constant(f32x, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            return builder.shuffle_vector(first, ir.Constant(f32x, ir.Undefined), lanes)

        def element(pointer: Any, index: Any) -> Any:
            return builder.load(builder.gep(pointer, [index]))

        def vector_at(index: Any, pointer: Any) -> Any:
            return builder.bitcast(builder.gep(pointer, [index]), f32x.as_pointer())

        def at_least_0(value: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", value, constant(0), fast), value, constant(0))

        def at_most_1(value: Any) -> Any:
            return builder.select(builder.fcmp_ordered("<", value, constant(1), fast), value, constant(1))

        lanes = ir.Constant(f32x, [float(lane) for lane in range(LANES)])
        drifts = builder.fmul(lanes, spread(drift), flags=fast)

        def shares_of(chunk: Any) -> list[Any]:
            """How much each of the neighbouring rows counts: differences of how far a voxel has passed each."""
            t = builder.fadd(spread(element(above, chunk)), drifts, flags=fast)
            passed = [constant(1), at_most_1(t)]
            for i in range(1, n_rows - 1):
                beyond = at_least_0(builder.fsub(t, constant(float(i)), flags=fast))
                passed.append(beyond if i == n_rows - 2 else at_most_1(beyond))
            shares = [builder.fsub(low, high, flags=fast) for low, high in pairwise(passed)]
            return [*shares, passed[-1]]

        def add(k: Any, base: Any, shares: list[Any]) -> None:
            value = builder.load(vector_at(k, voxels), align=4)
            for i, share in enumerate(shares):
                index = builder.add(base, ir.Constant(i64, i))
                if stride == 1:
                    neighbour = builder.load(vector_at(index, rows), align=4)
                else:
                    neighbour = spread(element(rows, index))
                value = builder.fadd(value, builder.fmul(share, neighbour, flags=fast), flags=fast)
            builder.store(value, vector_at(k, voxels), align=4)

        def chunks() -> Any:
            return cgutils.for_range_slice(builder, start, end, ir.Constant(i64, 1), intp=i64)

        def place(chunk: Any) -> tuple[Any, Any]:
            return builder.mul(chunk, ir.Constant(i64, LANES)), builder.sext(element(bases, chunk), i64)

        is_one_bin = builder.icmp_signed("==", n_bins, ir.Constant(i64, 1))
        with builder.if_else(is_one_bin) as (one, several):
            with one, chunks() as (chunk, _):
                add(*place(chunk), shares_of(chunk))
            with several, chunks() as (chunk, _):
                (k, base), shares = place(chunk), shares_of(chunk)
                with cgutils.for_range(builder, n_bins, intp=i64) as bins:
                    shift, shift_rows = builder.mul(bins.index, n_z), builder.mul(bins.index, n_padded)
                    add(builder.add(k, shift), builder.add(base, shift_rows), shares)
        return context.get_dummy_value()

    def declare(
        typingctx: Any,
        sums: Any,
        first_sum: Any,
        n_z: Any,
        blended: Any,
        view: Any,
        n_padded: Any,
        n_bins: Any,
        bases: Any,
        above: Any,
        drift: Any,
        start: Any,
        end: Any,
    ) -> Any:
        i64 = types.int64
        return types.void(sums, i64, i64, blended, i64, i64, i64, bases, above, types.float32, i64, i64), emit

    return intrinsic(declare)


_walk_close: Any = _walk(1, FEW_ROWS)
_walk_along: Any = _walk(1, MOST_ROWS)
_walk_slowly: Any = _walk(0, MOST_ROWS)


@njit(cache=True, nogil=True, error_model="numpy")
def _cast_shadows(
    shadows: NDArray[np.float64],
    matrix: NDArray[np.float64],
    z_first: int,
    y_first: int,
    y_end: int,
    x_first: int,
    x_end: int,
) -> None:
    """Fill `shadows` (5, n_columns): magnification, column, row of the lowest voxel, rows per voxel, voxels per row."""
    n_x = x_end - x_first
    for y in range(y_first, y_end):
        at = (y - y_first) * n_x
        a, b, c = matrix[0, 1] * y + matrix[0, 3], matrix[1, 1] * y + matrix[1, 3], matrix[2, 1] * y + matrix[2, 3]
        b += matrix[1, 2] * z_first
        for x in range(n_x):
            depth = matrix[2, 0] * (x_first + x) + c
            magnification = 1 / depth
            shadows[0, at + x] = magnification
            shadows[1, at + x] = (matrix[0, 0] * (x_first + x) + a) * magnification
            shadows[2, at + x] = (matrix[1, 0] * (x_first + x) + b) * magnification
            shadows[3, at + x] = matrix[1, 2] * magnification
            shadows[4, at + x] = depth / matrix[1, 2]


@njit(cache=True, nogil=True, error_model="numpy")
def _step_along(
    sums: NDArray[np.float32], blended: NDArray[np.float32], row0: float, step: float, first: int, end: int
) -> None:
    for k in range(np.uint64(first), np.uint64(end)):
        row = np.float32(row0 + k * step)
        low = np.uint32(row)
        share = row - np.float32(low)
        for b in range(len(sums)):
            low_value = blended[b, low]
            sums[b, k] += low_value + share * (blended[b, low + np.uint32(1)] - low_value)


@njit(cache=True, nogil=True)
def _add_tile(
    volume: NDArray[np.float32],
    sums: NDArray[np.float32],
    z_first: int,
    n_z: int,
    y_first: int,
    n_y: int,
    x_first: int,
    n_x: int,
) -> None:
    """Add columns, (n_y * n_x, n_bins, z), to their place in the volume, eight layers at a time."""
    layers = np.zeros((LANES, n_x), np.float32)
    for b in range(sums.shape[1]):
        for y in range(n_y):
            for z in range(0, n_z, LANES):
                for x in range(n_x):
                    for k in range(np.uint64(LANES)):
                        layers[k, x] = sums[y * n_x + x, b, np.uint64(z) + k]
                for k in range(min(LANES, n_z - z)):
                    for x in range(np.uint64(n_x)):
                        volume[b, z_first + z + k, y_first + y, np.uint64(x_first) + x] += layers[k, x]


@njit(cache=True, nogil=True, error_model="numpy")
def _add_columns(
    volume: NDArray[np.float32],
    columns: NDArray[np.float32],
    n_rows: int,
    matrices: NDArray[np.float64],
    weights: NDArray[np.float64],
    z_first: int,
    z_end: int,
    y_first: int,
    y_end: int,
    x_first: int,
    x_end: int,
) -> None:
    """Do as `backproject` for the columns of a tile, from `columns` (n_views, n_bins, cols, padded rows)."""
    n_views, n_bins, n_cols, n_padded = columns.shape
    n_z, n_x = z_end - z_first, x_end - x_first
    n_columns = (y_end - y_first) * n_x
    n_chunks = (n_z + LANES - 1) // LANES + 1  # one more, lest all columns fall on the same lines of the cache
    n_z_padded = n_chunks * LANES
    most_together = max(VIEWS_TOGETHER // n_bins, 1)
    blended = np.zeros((most_together, n_bins, n_padded), np.float32)
    bases, above = np.zeros((most_together, n_chunks), np.int32), np.zeros((most_together, n_chunks), np.float32)
    shadows = np.zeros((most_together, 5, n_columns))
    spans = np.zeros((most_together, 2), np.int64)
    sums = np.zeros((n_columns, n_bins, n_z_padded), np.float32)
    for first_view in range(0, n_views, most_together):
        n_together = min(most_together, n_views - first_view)
        for i in range(n_together):
            _cast_shadows(shadows[i], matrices[first_view + i], z_first, y_first, y_end, x_first, x_end)
        for column in range(n_columns):
            for i in range(n_together):
                view = first_view + i
                magnification, col, row0 = shadows[i, 0, column], shadows[i, 1, column], shadows[i, 2, column]
                step, per_step = shadows[i, 3, column], shadows[i, 4, column]
                spans[i, 0] = spans[i, 1] = 0
                if not (magnification > 0 and col > -1.0 and col < n_cols):
                    continue
                first = max(int(np.floor((-1.0 - row0) * per_step)) + 1, 0)
                end = min(int(np.ceil((n_rows - row0) * per_step)), n_z)
                if first >= end:
                    continue
                left = int(np.floor(col))
                scale = weights[view] * magnification * magnification
                left_share = np.float32(scale * (1 - (col - left))) if left >= 0 else np.float32(0)
                right_share = np.float32(scale * (col - left)) if left + 1 < n_cols else np.float32(0)
                left_col, right_col = max(left, 0), min(left + 1, n_cols - 1)
                row0 += ROWS_BEFORE
                stride = 1 if step >= 0.5 else 0
                if step < COARSE_STEP:
                    first = first // LANES * LANES
                lowest_lane = min(step - stride, 0.0) * (LANES - 1)
                lowest = int(row0 + first * step + lowest_lane) // ROWS_TOGETHER * ROWS_TOGETHER
                highest = int(row0 + (end - 1) * step) + LANES + MOST_ROWS
                highest = (highest + ROWS_TOGETHER - 1) // ROWS_TOGETHER * ROWS_TOGETHER
                for b in range(n_bins):
                    for k in range(np.uint64(lowest), np.uint64(highest)):
                        blended[i, b, k] = (
                            left_share * columns[view, b, left_col, k] + right_share * columns[view, b, right_col, k]
                        )
                spans[i, 0], spans[i, 1] = first, end
                for chunk in range(np.uint32(first // LANES), np.uint32((end + LANES - 1) // LANES)):
                    row = row0 + np.float64(np.int32(chunk)) * (LANES * step)
                    base = np.int32(row + lowest_lane)  # never negative: there are zeros before
                    bases[i, chunk], above[i, chunk] = base, np.float32(row - base)
            at = column * n_bins * n_z_padded
            for i in range(n_together):
                first, end, step = spans[i, 0], spans[i, 1], shadows[i, 3, column]
                if first >= end:
                    continue
                if step >= COARSE_STEP:  # few voxels, far apart
                    _step_along(sums[column], blended[i], shadows[i, 2, column] + ROWS_BEFORE, step, first, end)
                    continue
                start, stop = first // LANES, (end + LANES - 1) // LANES
                drift = np.float32(step - (1 if step >= 0.5 else 0))
                if step < 0.5:
                    _walk_slowly(sums, at, n_z_padded, blended, i, n_padded, n_bins, bases, above, drift, start, stop)
                elif abs(drift) <= (FEW_ROWS - 2) / (LANES - 1):
                    _walk_close(sums, at, n_z_padded, blended, i, n_padded, n_bins, bases, above, drift, start, stop)
                else:
                    _walk_along(sums, at, n_z_padded, blended, i, n_padded, n_bins, bases, above, drift, start, stop)
    _add_tile(volume, sums, z_first, n_z, y_first, y_end - y_first, x_first, n_x)
