"""Voxel-driven back-projection on the CPU: along a column of voxels in z, u and the magnification are constant.

`backproject_plain` says what is computed, voxel by voxel; `backproject_columns` computes the same faster: it blends
the two detector columns next to a voxel column once, and then walks along z, where v is linear. On a processor with
AVX-512 the walk takes sixteen voxels at a time: all sixteen lie between 32 neighbouring rows, so that two vector loads
and one permutation per neighbour replace the gathers that the compiler would emit.

All take the same arrays. Zeros surround the detector: the interpolation falls off to zero within one pixel of its
edge, and what lies further outside adds nothing.

# Ref: Feldkamp, Davis and Kress 1984, J. Opt. Soc. Am. A 1, 612: weighted back-projection of filtered projections.
# Ref: vpermi2ps and its lanes: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, VPERMI2PS.
"""

# ruff: noqa: ARG001 - numba wants the names of an intrinsic's arguments, and only its generator reads them

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

LANES = 16
ROWS_BEFORE = 40
"""Zeros below the first row: sixteen voxels that touch the detector start less than 32 rows below it."""
ROWS_AFTER = 64
"""Zeros above its last row: a chunk that starts on the detector reads 32 rows from there."""
MAX_STEEPNESS = 2.0
"""Rows per voxel up to which sixteen voxels and their neighbours fit into 32 rows: 15 dv + 1 < 31."""
TILE = 8

HAS_PERMUTE = bool(llvmlite.binding.get_host_cpu_features().get("avx512f", False))


def with_margins(filtered: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make the rows innermost and put zeros around them: (n_views, n_bins, rows, cols) to (..., cols, padded rows)."""
    n_views, n_bins, rows, cols = filtered.shape
    columns = np.zeros((n_views, n_bins, cols, ROWS_BEFORE + rows + ROWS_AFTER), np.float32)
    columns[..., ROWS_BEFORE : ROWS_BEFORE + rows] = filtered.swapaxes(-1, -2)
    return columns


@njit(parallel=True, fastmath=True, cache=True)
def backproject_plain(
    volume: NDArray[np.float32],
    projections: NDArray[np.float32],
    poses: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    z: NDArray[np.float64],
    detector: NDArray[np.float64],
) -> None:
    """Add weighted back-projections to `volume`: the loop as the formula has it.

    Parameters
    ----------
    volume : (y, x, n_bins, z) float32
        Added to. z is padded to a multiple of 16.
    projections : (n_views, n_bins, cols, ROWS_BEFORE + rows + ROWS_AFTER) float32
        Filtered, with zeros around the rows.
    poses : (n_views, 3) float64
        Cosine and sine of the angle, and the view's weight.
    x, y, z : (n,) float64
        Voxel centres, in units of the detector's pitch.
    detector : (5,) float64
        Source to axis and source to detector in units of the pitch; column and row of the ray through the axis
        (in pixels); number of rows.
    """
    source_to_object, source_to_detector, centre_col, centre_row = detector[0], detector[1], detector[2], detector[3]
    n_views, n_bins, n_cols, _ = projections.shape
    first, last = -1.0, detector[4]
    for iy in prange(len(y)):
        for ix in range(len(x)):
            for view in range(n_views):
                cos, sin, weight = poses[view, 0], poses[view, 1], poses[view, 2]
                distance = source_to_object - x[ix] * sin + y[iy] * cos
                magnification = source_to_detector / distance
                col = (x[ix] * cos + y[iy] * sin) * magnification + centre_col
                if not (col > -1.0 and col < n_cols):
                    continue
                weight *= (source_to_object / distance) ** 2
                left = int(np.floor(col))
                right_share = col - left
                for iz in range(len(z)):
                    row = z[iz] * magnification + centre_row
                    if not (row > first and row < last):
                        continue
                    low = int(np.floor(row))
                    high_share = row - low
                    k = ROWS_BEFORE + low
                    for b in range(n_bins):
                        value = 0.0
                        if left >= 0:
                            low_value, high_value = projections[view, b, left, k], projections[view, b, left, k + 1]
                            value += (1 - right_share) * ((1 - high_share) * low_value + high_share * high_value)
                        if left + 1 < n_cols:
                            low_value = projections[view, b, left + 1, k]
                            high_value = projections[view, b, left + 1, k + 1]
                            value += right_share * ((1 - high_share) * low_value + high_share * high_value)
                        volume[iy, ix, b, iz] += weight * value


def _emit_walk(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Emit the loop that `_type_walk` describes."""
    if not HAS_PERMUTE:  # the caller never comes here then, and LLVM could not translate it
        return context.get_dummy_value()
    volume, voxel, projections, left, right, left_share, right_share, row0, step, start, end = args
    f32, f64, i32, i64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)
    f32x, i32x = ir.VectorType(f32, LANES), ir.VectorType(i32, LANES)
    permute = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(f32x, [f32x, i32x, f32x]), "llvm.x86.avx512.vpermi2var.ps.512"
    )
    voxels = builder.gep(context.make_array(signature.args[0])(context, builder, volume).data, [voxel])
    rows = context.make_array(signature.args[2])(context, builder, projections).data

    def spread(value: Any) -> Any:
        first = builder.insert_element(ir.Constant(f32x, ir.Undefined), value, ir.Constant(i32, 0))
        return builder.shuffle_vector(first, ir.Constant(f32x, ir.Undefined), ir.Constant(i32x, [0] * LANES))

    def vector_at(pointer: Any, index: Any) -> Any:
        return builder.bitcast(builder.gep(pointer, [index]), f32x.as_pointer())

    def times(a: Any, b: Any) -> Any:
        return builder.fmul(a, b, flags=("fast",))

    def plus(a: Any, b: Any) -> Any:
        return builder.fadd(a, b, flags=("fast",))

    left_rows, right_rows = builder.gep(rows, [left]), builder.gep(rows, [right])
    left_shares, right_shares = spread(left_share), spread(right_share)

    def blended(index: Any) -> Any:
        from_left = times(left_shares, builder.load(vector_at(left_rows, index), align=4))
        return plus(from_left, times(right_shares, builder.load(vector_at(right_rows, index), align=4)))

    lane_steps = times(ir.Constant(f32x, [float(lane) for lane in range(LANES)]), spread(builder.fptrunc(step, f32)))
    one = ir.Constant(i32x, [1] * LANES)
    with cgutils.for_range_slice(builder, start, end, ir.Constant(i64, LANES), intp=i64) as (k, _):
        first_row = plus(row0, times(builder.sitofp(k, f64), step))
        base = builder.fptosi(first_row, i64)  # rows are counted from the padding's first: never negative
        offset = builder.fptrunc(builder.fsub(first_row, builder.sitofp(base, f64)), f32)
        position = plus(spread(offset), lane_steps)
        low = builder.fptosi(position, i32x)
        share = builder.fsub(position, builder.sitofp(low, f32x), flags=("fast",))
        near, far = blended(base), blended(builder.add(base, ir.Constant(i64, LANES)))
        low_value = builder.call(permute, [near, low, far])
        high_value = builder.call(permute, [near, builder.add(low, one), far])
        value = plus(low_value, times(share, builder.fsub(high_value, low_value, flags=("fast",))))
        pointer = vector_at(voxels, k)
        builder.store(plus(builder.load(pointer, align=4), value), pointer, align=4)
    return context.get_dummy_value()


def _type_walk(
    typingctx: Any,
    volume: Any,
    voxel: Any,
    projections: Any,
    left: Any,
    right: Any,
    left_share: Any,
    right_share: Any,
    row0: Any,
    step: Any,
    start: Any,
    end: Any,
) -> Any:
    """For each k from `start` to `end`, sixteen at a time: add to element voxel + k of `volume`.

    What is added stands at row0 + k * step between the rows that begin at elements `left` and `right` of
    `projections`. Offsets instead of slices, because each slice of Numba counts a reference.
    """
    i64, f32, f64 = types.int64, types.float32, types.float64
    return types.void(volume, i64, projections, i64, i64, f32, f32, f64, f64, i64, i64), _emit_walk


_walk: Any = intrinsic(_type_walk)


@njit(parallel=True, fastmath=True, cache=True)
def backproject_columns(
    volume: NDArray[np.float32],
    projections: NDArray[np.float32],
    poses: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    z: NDArray[np.float64],
    detector: NDArray[np.float64],
    is_permuting: bool,
) -> None:
    """Do as `backproject_plain`, column by column in tiles; `is_permuting` needs `can_permute`."""
    source_to_object, source_to_detector, centre_col, centre_row = detector[0], detector[1], detector[2], detector[3]
    n_views, n_bins, n_cols, n_padded = projections.shape
    n_z = volume.shape[3]
    voxel = z[1] - z[0] if len(z) > 1 else 1.0
    n_tiles_x = (len(x) + TILE - 1) // TILE
    n_tiles_y = (len(y) + TILE - 1) // TILE
    for tile in prange(n_tiles_x * n_tiles_y):
        column = np.zeros(n_padded, np.float32)
        y_first, x_first = tile // n_tiles_x * TILE, tile % n_tiles_x * TILE
        for view in range(n_views):
            cos, sin, weight = poses[view, 0], poses[view, 1], poses[view, 2]
            for iy in range(y_first, min(y_first + TILE, len(y))):
                for ix in range(x_first, min(x_first + TILE, len(x))):
                    distance = source_to_object - x[ix] * sin + y[iy] * cos
                    magnification = source_to_detector / distance
                    col = (x[ix] * cos + y[iy] * sin) * magnification + centre_col
                    if not (col > -1.0 and col < n_cols):
                        continue
                    step = voxel * magnification
                    row0 = z[0] * magnification + centre_row
                    first = max(int(np.floor((-1.0 - row0) / step)) + 1, 0)
                    end = min(int(np.ceil((detector[4] - row0) / step)), n_z)
                    if first >= end:
                        continue
                    left = int(np.floor(col))
                    scale = weight * (source_to_object / distance) ** 2
                    left_share = np.float32(scale * (1 - (col - left))) if left >= 0 else np.float32(0)
                    right_share = np.float32(scale * (col - left)) if left + 1 < n_cols else np.float32(0)
                    left_col, right_col = max(left, 0), min(left + 1, n_cols - 1)
                    row0 += ROWS_BEFORE
                    for b in range(n_bins):
                        if is_permuting:
                            bin_start = (view * n_bins + b) * n_cols
                            _walk(
                                volume,
                                ((iy * len(x) + ix) * n_bins + b) * n_z,
                                projections,
                                (bin_start + left_col) * n_padded,
                                (bin_start + right_col) * n_padded,
                                left_share,
                                right_share,
                                row0,
                                step,
                                first // LANES * LANES,
                                end,
                            )
                            continue
                        lowest, highest = int(row0 + first * step), int(row0 + (end - 1) * step) + 2
                        for k in range(np.uint64(lowest), np.uint64(highest)):
                            column[k] = (
                                left_share * projections[view, b, left_col, k]
                                + right_share * projections[view, b, right_col, k]
                            )
                        for k in range(np.uint64(first), np.uint64(end)):
                            row = np.float32(row0 + k * step)
                            low = np.uint32(row)
                            share = row - np.float32(low)
                            low_value = column[low]
                            volume[iy, ix, b, k] += low_value + share * (column[low + np.uint32(1)] - low_value)


def can_permute(steepness: float) -> bool:
    """Whether sixteen voxels fit between 32 rows at this many rows per voxel, and the processor can permute them."""
    return HAS_PERMUTE and steepness < MAX_STEEPNESS
