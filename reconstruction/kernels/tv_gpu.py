"""Steps of total variation on the GPU: how `tv.cu` is launched.

`tv_plain` says what is computed, in the same arguments. It also computes what the kernels do not: the balls of singular
values, arrays that are not float32, and the value.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reconstruction import backend
from reconstruction.backend import Array
from reconstruction.kernels import stored, tv_plain

SOURCE = Path(__file__).with_name("tv.cu")
BLOCK = (64, 4, 1)
BALLS = (tv_plain.ANYWHERE, tv_plain.PER_COMPONENT, tv_plain.PER_CHANNEL, tv_plain.FROBENIUS)
"""Those that the source knows, by the same numbers; a test compares them."""

value = tv_plain.value


def primal(
    out: Array, base: Array, dual: Array, step: float, is_non_negative: bool, weights: Array, tangent: Array | None
) -> None:
    """Fill `out` with base - step K^T dual, or with 0 where that is negative and must not be."""
    if out.dtype != np.float32:
        tv_plain.primal(out, base, dual, step, is_non_negative, weights, tangent)
        return
    floor = np.float32(0 if is_non_negative else -np.inf)
    _launch("primal", out.shape, (out, base, dual, weights), tangent, (np.float32(step), floor))


def dual(
    p: Array,
    q: Array,
    u: Array,
    step: float,
    shrink: float,
    momentum: float,
    ball: int,
    radius: float,
    weights: Array,
    tangent: Array | None,
) -> None:
    """Step from `q` along K u, shrink, project: the new `p`. Then `q` goes past it by `momentum` times its change."""
    if u.dtype != np.float32 or ball not in BALLS:
        tv_plain.dual(p, q, u, step, shrink, momentum, ball, radius, weights, tangent)
        return
    steps = np.float32(step), np.float32(shrink), np.float32(momentum), np.int32(ball), np.float32(radius)
    _launch("dual", u.shape, (p, q, u, weights), tangent, steps)


def _launch(
    name: str,
    shape: tuple[int, ...],
    arrays: tuple[Array, ...],
    tangent: Array | None,
    numbers: tuple[np.float32 | np.int32, ...],
) -> None:
    weights = arrays[-1]
    blocks = stored.blocks(shape[:0:-1], BLOCK)
    sizes = map(np.int32, (tangent is not None, *shape))
    kernel = backend.cuda_kernel(SOURCE, name)
    kernel(blocks, BLOCK, (*arrays, weights if tangent is None else tangent, *sizes, *numbers))
