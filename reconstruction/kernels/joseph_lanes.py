"""Interpolation along a line at steps that are all alike, eight values at a time, and its transpose.

`read` adds to sums[k] what a line of values has at position start + k * step, `spread` is its exact transpose. With a
step near 1 eight neighbouring positions lie between few neighbouring values, so each value is loaded as a vector from
its own offset and weighted by what the triangle around it has there: no gathers, no permutations, only vector loads
that any processor has. The further the step is from 1, the more such taps are needed; their number is chosen per line.
Numba's own vectoriser makes scalar code of such loops (17.8 ns for eight values instead of 1.2), hence the
intrinsics that emit the vectors.

Positions count from the first value, which stands PAD_BEFORE zeros into its line; behind the last one there are
PAD_AFTER zeros. So nothing tests for the ends.

# Ref: Joseph 1982, IEEE Trans. Med. Imaging 1, 192: linear interpolation between the neighbours of a ray.
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

LANES = 8
PAD_BEFORE = 24
"""Eight values that begin at the first one reach less far down, for steps of `SHORTEST_STEP` and more."""
PAD_AFTER = 40
SHORTEST_STEP = 0.7
"""Below this, a line is to be cut into several of every second, third ... value."""

F64, I32, I64 = ir.DoubleType(), ir.IntType(32), ir.IntType(64)


class _Vectors:
    """Writes LLVM code for vectors of `lanes` floats."""

    def __init__(self, builder: Any, scalar: Any, lanes: int) -> None:
        self.builder, self.scalar, self.lanes = builder, scalar, lanes
        self.type = ir.VectorType(scalar, lanes)
        self.zero, self.one = (ir.Constant(self.type, [value] * lanes) for value in (0.0, 1.0))

    def ramp(self, first: int) -> Any:
        """Return numbers that rise by one from lane to lane."""
        return ir.Constant(self.type, [float(first + lane) for lane in range(self.lanes)])

    def everywhere(self, value: Any) -> Any:
        """Return a scalar, rounded to the vectors' precision, in all lanes."""
        value = value if value.type == self.scalar else self.builder.fptrunc(value, self.scalar)
        undefined = ir.Constant(self.type, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(I32, 0))
        lanes = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, lanes)

    def plus(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(a, b, flags=("fast",))

    def minus(self, a: Any, b: Any) -> Any:
        return self.builder.fsub(a, b, flags=("fast",))

    def times(self, a: Any, b: Any) -> Any:
        return self.builder.fmul(a, b, flags=("fast",))

    def smaller(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered("<", a, b, flags=("fast",)), a, b)

    def larger(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered(">", a, b, flags=("fast",)), a, b)

    def triangle(self, a: Any) -> Any:
        """Return 1 - |a|, or 0 where that is negative."""
        return self.larger(self.minus(self.one, self.larger(a, self.minus(self.zero, a))), self.zero)

    def interpolate(self, values: list[Any], offset: Any, sums: Any) -> Any:
        """Add to `sums` what lies `offset` behind the first of the values, which are 1 apart."""
        rises = [self.minus(above, here) for here, above in pairwise(values)]
        if len(values) == 3:  # all offsets lie before or behind the middle one
            offset = self.minus(offset, self.one)
            whole = self.builder.bitcast(offset, ir.VectorType(ir.IntType(8 * self._align), self.lanes))
            is_before = self.builder.icmp_signed("<", whole, ir.Constant(whole.type, [0] * self.lanes))
            rise = self.builder.select(is_before, rises[0], rises[1])
            return self.plus(self.plus(sums, values[1]), self.times(offset, rise))
        total = self.plus(sums, values[0])
        for j, rise in enumerate(rises):
            share = self.minus(offset, ir.Constant(self.type, [float(j)] * self.lanes))
            share = self.larger(share, self.zero) if j > 0 else share
            share = self.smaller(share, self.one) if j < len(rises) - 1 else share
            total = self.plus(total, self.times(share, rise))
        return total

    def load(self, pointer: Any, index: Any) -> Any:
        return self.builder.load(self._place(pointer, index), align=self._align)

    def store(self, value: Any, pointer: Any, index: Any) -> None:
        self.builder.store(value, self._place(pointer, index), align=self._align)

    @property
    def _align(self) -> int:
        return 4 if self.scalar == ir.FloatType() else 8

    def _place(self, pointer: Any, index: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(pointer, [index]), self.type.as_pointer())


def _plus(builder: Any, index: Any, offset: int) -> Any:
    return builder.add(index, ir.Constant(I64, offset))


def _lowest(builder: Any, excess: Any, at_once: int) -> Any:
    """Return how far the lowest of some steps of 1 + `excess` falls behind as many steps of 1: 0 or less."""
    zero = ir.Constant(F64, 0.0)
    behind = builder.fmul(excess, ir.Constant(F64, at_once - 1.0))
    return builder.select(builder.fcmp_ordered("<", excess, zero), behind, zero)


def _split(builder: Any, position: Any) -> tuple[Any, Any]:
    """Return a position's integer part and its decimals; none lies further down than the padding."""
    shifted = builder.fadd(position, ir.Constant(F64, float(PAD_BEFORE)))
    whole = builder.fptosi(shifted, I64)  # cutting off rounds down, since it is positive
    return _plus(builder, whole, -PAD_BEFORE), builder.fsub(shifted, builder.sitofp(whole, F64))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


def _reader(lanes: int, taps: int, n_vectors: int = 1) -> Any:
    """Return the intrinsic that reads with so many taps for so many vectors of so many positions at once."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, sums_at, sums_stride, line, line_at, line_stride, n_lines, start, step, first, end = args
        vectors = _Vectors(builder, context.get_value_type(signature.args[0].dtype), lanes)
        sums = _pointer(context, builder, signature.args[0], sums)
        line = _pointer(context, builder, signature.args[3], line)
        at_once = lanes * n_vectors
        excess = builder.fsub(step, ir.Constant(F64, 1.0))
        lowest = _lowest(builder, excess, at_once)
        position = builder.fadd(start, builder.fmul(builder.sitofp(first, F64), step))
        position = cgutils.alloca_once_value(builder, builder.fadd(position, lowest))
        stride = builder.fmul(step, ir.Constant(F64, float(at_once)))
        ramps = [
            vectors.minus(
                vectors.times(vectors.ramp(n * lanes), vectors.everywhere(excess)), vectors.everywhere(lowest)
            )
            for n in range(n_vectors)
        ]
        with cgutils.for_range_slice(builder, first, end, ir.Constant(I64, at_once), intp=I64) as (k, _):
            base, rest = _split(builder, builder.load(position))
            builder.store(builder.fadd(builder.load(position), stride), position)
            rest = vectors.everywhere(rest)
            offsets = [vectors.plus(rest, ramp) for ramp in ramps]  # from 0 to taps - 1
            with cgutils.for_range(builder, n_lines, intp=I64) as loop:
                at = builder.add(builder.add(line_at, builder.mul(loop.index, line_stride)), base)
                to = builder.add(builder.add(sums_at, builder.mul(loop.index, sums_stride)), k)
                for n, offset in enumerate(offsets):
                    values = [vectors.load(line, _plus(builder, at, n * lanes + j)) for j in range(taps)]
                    there = _plus(builder, to, n * lanes)
                    vectors.store(vectors.interpolate(values, offset, vectors.load(sums, there)), sums, there)
        return context.get_dummy_value()

    def read(
        typingctx: Any,
        sums: Any,
        sums_at: Any,
        sums_stride: Any,
        line: Any,
        line_at: Any,
        line_stride: Any,
        n_lines: Any,
        start: Any,
        step: Any,
        first: Any,
        end: Any,
    ) -> Any:
        i64, f64 = types.int64, types.float64
        return types.void(sums, i64, i64, line, i64, i64, i64, f64, f64, i64, i64), emit

    return intrinsic(read)


def _spreader(taps: int, n_sides: int, n_vectors: int = 1) -> Any:
    """Return the intrinsic that spreads with so many taps to one line, or to two by their shares."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, sums_at, sums_stride, line, left_at, right_at, line_stride, n_lines = args[:8]
        left_share, right_share, start, step, first, end = args[8:]
        vectors = _Vectors(builder, context.get_value_type(signature.args[0].dtype), LANES)
        sums = _pointer(context, builder, signature.args[0], sums)
        line = _pointer(context, builder, signature.args[3], line)
        sides = [(left_at, vectors.everywhere(left_share)), (right_at, vectors.everywhere(right_share))][:n_sides]
        at_once = LANES * n_vectors
        one = ir.Constant(F64, 1.0)
        per_step = builder.fdiv(one, step)
        lowest = _lowest(builder, builder.fsub(per_step, one), at_once)
        position = builder.fsub(builder.fsub(builder.sitofp(first, F64), one), start)  # of the last row that is too low
        position = cgutils.alloca_once_value(builder, builder.fadd(builder.fmul(position, per_step), lowest))
        stride = builder.fmul(per_step, ir.Constant(F64, float(at_once)))
        ramps = [
            vectors.times(vectors.ramp(n * LANES), vectors.everywhere(builder.fsub(step, one)))
            for n in range(n_vectors)
        ]
        ahead = [vectors.everywhere(builder.fmul(step, ir.Constant(F64, float(j)))) for j in range(taps)]
        # a row that lies `rest` below `position` stands (1 - rest + lowest) steps above the voxel below the first one
        above = builder.fsub(builder.fmul(builder.fadd(one, lowest), step), one)
        with cgutils.for_range_slice(builder, first, end, ir.Constant(I64, at_once), intp=I64) as (z, _):
            base, rest = _split(builder, builder.load(position))
            builder.store(builder.fadd(builder.load(position), stride), position)
            nearest = vectors.everywhere(builder.fsub(above, builder.fmul(rest, step)))
            offsets = [vectors.plus(nearest, ramp) for ramp in ramps]
            shares = [[vectors.triangle(vectors.plus(offset, far)) for far in ahead] for offset in offsets]
            with cgutils.for_range(builder, n_lines, intp=I64) as loop:
                at = _plus(builder, builder.add(builder.add(sums_at, builder.mul(loop.index, sums_stride)), base), 1)
                to = builder.add(builder.mul(loop.index, line_stride), z)
                for n in range(n_vectors):
                    value = vectors.zero
                    for j, share in enumerate(shares[n]):
                        row = vectors.load(sums, _plus(builder, at, n * LANES + j))
                        value = vectors.plus(value, vectors.times(share, row))
                    for side, weight in sides:
                        there = _plus(builder, builder.add(to, side), n * LANES)
                        vectors.store(
                            vectors.plus(vectors.load(line, there), vectors.times(weight, value)), line, there
                        )
        return context.get_dummy_value()

    def spread(
        typingctx: Any,
        sums: Any,
        sums_at: Any,
        sums_stride: Any,
        line: Any,
        left_at: Any,
        right_at: Any,
        line_stride: Any,
        n_lines: Any,
        left_share: Any,
        right_share: Any,
        start: Any,
        step: Any,
        first: Any,
        end: Any,
    ) -> Any:
        i64, f64 = types.int64, types.float64
        return types.void(sums, i64, i64, line, i64, i64, i64, i64, f64, f64, f64, f64, i64, i64), emit

    return intrinsic(spread)


_read_3, _read_5, _read_9, _read_single = _reader(LANES, 3), _reader(LANES, 5), _reader(LANES, 9), _reader(1, 2)
_read_3_twice = _reader(LANES, 3, 2)
_spread_3, _spread_4, _spread_7 = (_spreader(taps, 1) for taps in (3, 4, 7))
_share_3, _share_4, _share_7 = (_spreader(taps, 2) for taps in (3, 4, 7))
_share_3_twice = _spreader(3, 2, 2)


@njit(nogil=True, cache=True)
def read(
    sums: NDArray[np.floating],
    sums_at: int,
    sums_stride: int,
    line: NDArray[np.floating],
    line_at: int,
    line_stride: int,
    n_lines: int,
    start: float,
    step: float,
    first: int,
    end: int,
) -> None:
    """Add to each of sums[first:end] what a line has at start + k * step, and to up to seven more whatever.

    `sums` and `line` are seen flat; element `_at` is the first one of the first of `n_lines`, the next one lies
    `_stride` further on. `step` is positive, and all positions are above -1 and below the number of values.
    """
    spread_of_lanes = (LANES - 1) * abs(step - 1)
    if (2 * LANES - 1) * abs(step - 1) <= 1:
        _read_3_twice(sums, sums_at, sums_stride, line, line_at, line_stride, n_lines, start, step, first, end)
    elif spread_of_lanes <= 1:
        _read_3(sums, sums_at, sums_stride, line, line_at, line_stride, n_lines, start, step, first, end)
    elif spread_of_lanes <= 3:
        _read_5(sums, sums_at, sums_stride, line, line_at, line_stride, n_lines, start, step, first, end)
    elif spread_of_lanes <= LANES - 1:
        _read_9(sums, sums_at, sums_stride, line, line_at, line_stride, n_lines, start, step, first, end)
    else:
        _read_single(sums, sums_at, sums_stride, line, line_at, line_stride, n_lines, start, step, first, end)


@njit(nogil=True, cache=True)
def _reach(step: float, at_once: int) -> float:
    """Return between how many sums the eight values of a line lie, with those that touch them."""
    return 2 / step + (at_once - 1) * abs(1 / step - 1)


@njit(nogil=True, cache=True)
def spread(
    sums: NDArray[np.floating],
    sums_at: int,
    sums_stride: int,
    line: NDArray[np.floating],
    line_at: int,
    line_stride: int,
    n_lines: int,
    share: float,
    start: float,
    step: float,
    first: int,
    end: int,
) -> None:
    """Add `share` times what `read` transposed makes of the sums to line[first:end], and to up to seven more.

    Outside of [0, rows) the sums are zero, and `step` is at least `SHORTEST_STEP`.
    """
    reach = _reach(step, LANES)
    if reach <= 3:
        _spread_3(
            sums, sums_at, sums_stride, line, line_at, 0, line_stride, n_lines, share, 0.0, start, step, first, end
        )
    elif reach <= 4:
        _spread_4(
            sums, sums_at, sums_stride, line, line_at, 0, line_stride, n_lines, share, 0.0, start, step, first, end
        )
    else:
        _spread_7(
            sums, sums_at, sums_stride, line, line_at, 0, line_stride, n_lines, share, 0.0, start, step, first, end
        )


@njit(nogil=True, cache=True)
def share(
    sums: NDArray[np.floating],
    sums_at: int,
    sums_stride: int,
    line: NDArray[np.floating],
    left_at: int,
    right_at: int,
    line_stride: int,
    n_lines: int,
    left: float,
    right: float,
    start: float,
    step: float,
    first: int,
    end: int,
) -> None:
    """Do as `spread` to two lines at once, by their shares."""
    reach = _reach(step, LANES)
    if _reach(step, 2 * LANES) <= 3:
        _share_3_twice(
            sums,
            sums_at,
            sums_stride,
            line,
            left_at,
            right_at,
            line_stride,
            n_lines,
            left,
            right,
            start,
            step,
            first,
            end,
        )
    elif reach <= 3:
        _share_3(
            sums,
            sums_at,
            sums_stride,
            line,
            left_at,
            right_at,
            line_stride,
            n_lines,
            left,
            right,
            start,
            step,
            first,
            end,
        )
    elif reach <= 4:
        _share_4(
            sums,
            sums_at,
            sums_stride,
            line,
            left_at,
            right_at,
            line_stride,
            n_lines,
            left,
            right,
            start,
            step,
            first,
            end,
        )
    else:
        _share_7(
            sums,
            sums_at,
            sums_stride,
            line,
            left_at,
            right_at,
            line_stride,
            n_lines,
            left,
            right,
            start,
            step,
            first,
            end,
        )
