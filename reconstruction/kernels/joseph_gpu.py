"""Joseph's projector on the GPU: how `joseph.cu` is launched.

# Ref: see the source.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.kernels import stored
from reconstruction.scan_geometry import UPRIGHT_SLOPE, ScanGeometry

SOURCE = Path(__file__).with_name("joseph.cu")
VIEWS_PER_LAUNCH = 64
"""As in the source, like `HEIGHT`; a test compares them."""
HEIGHT = 4
THREADS = 256
NAMES = "zyx"
ACROSS = ((1, 2), (0, 2), (0, 1))
"""The two axes that rays along an axis (z, y or x) cross."""


class Launch(NamedTuple):
    """What is done together: views with rays along one axis.

    Attributes
    ----------
    axis : int
        0, 1 or 2: z, y or x.
    views : (n_views, 28) float32
        What the source calls `View`, on the device.
    """

    axis: int
    views: Any


class Plan(NamedTuple):
    """All launches of a scan, and whether its detector columns stand parallel to z."""

    launches: tuple[Launch, ...]
    is_upright: bool


def forward(
    volume: backend.Array,
    projections: backend.Array,
    rays: NDArray[np.float64],
    is_parallel: bool,
    step_mm: float,
    *,
    is_half: bool = False,
) -> None:
    """Fill `projections` with line integrals through `volume`.

    Parameters
    ----------
    volume : (n_channels, z, y, x) float32, on the device
    projections : (n_channels, n_views, rows, cols) float32, on the device, contiguous
    rays : (n_views, 4, 3) float64, on the host
        As in `joseph_plain.forward`.
    is_half : bool
        Hold the voxels in half precision (11 bits) while they are read: half the bytes.

    Channels that go through together and rays along x need a copy of their part of the volume.
    """
    _refuse_doubles(volume, projections)
    n_channels, n_views, rows, cols = projections.shape
    plan = _plan_of(rays, is_parallel, volume.shape[1:], rows, cols)
    threads = _threads(cols, rows)
    scale = stored.scale_of(volume, is_half=is_half)
    for group in stored.channel_groups(n_channels):
        defines = group.defines(is_half=is_half)
        kernel = backend.cuda_kernel(SOURCE, "forward", defines)
        packed, packed_axis = None, -1
        for axis, views in plan.launches:
            if packed is None or (axis == 2) != (packed_axis == 2):
                # Rays side by side cross the last axis of the layout, which must be the contiguous one.
                turned = volume.swapaxes(2, 3) if axis == 2 else volume
                packed = None  # before the next one is made
                packed = stored.interleaved(turned, group, scale, is_half=is_half)
                packed_axis = axis
            backend.set_constant(SOURCE, "views", views, defines)
            n_z, n_y, n_x = packed.shape[:3]
            strides = {0: (n_y * n_x, n_x, 1), 1: (n_x, n_y * n_x, 1), 2: (n_x, n_y * n_x, 1)}[axis]
            sizes = {0: (n_z, n_y, n_x), 1: (n_y, n_z, n_x), 2: (n_y, n_z, n_x)}[axis]
            counts = (group.n_channels, n_views, rows, cols, *sizes, *strides, *_is_after(axis))
            blocks = stored.blocks((cols, rows, len(views)), threads)
            arguments = (projections[group.channels], packed, scale, *map(np.int32, counts), np.float32(step_mm))
            kernel(blocks, threads, arguments)


def adjoint(
    volume: backend.Array,
    projections: backend.Array,
    rays: NDArray[np.float64],
    is_parallel: bool,
    step_mm: float,
    *,
    is_half: bool = False,
) -> None:
    """Add to `volume` what `forward` transposed makes of `projections`; the same result whenever it runs.

    Both arrays are contiguous here, and otherwise those of `forward`. The pixels of `VIEWS_PER_LAUNCH` views are copied
    at a time.
    """
    _refuse_doubles(volume, projections)
    n_channels, n_views, rows, cols = projections.shape
    plan = _plan_of(rays, is_parallel, volume.shape[1:], rows, cols)
    scale = stored.scale_of(projections, is_half=is_half)
    pixel_threads = _threads(cols, rows)
    voxel_threads = _threads(volume.shape[3], volume.shape[2])
    for group in stored.channel_groups(n_channels):
        defines = group.defines(is_half=is_half)
        for axis, views in plan.launches:
            packed = backend.namespace(projections).empty(
                (len(views), rows, cols, group.width), np.float16 if is_half else np.float32
            )
            backend.set_constant(SOURCE, "views", views, defines)
            counts = (group.n_channels, n_views, rows, cols, *_is_after(axis))
            backend.cuda_kernel(SOURCE, "pack", defines)(
                stored.blocks((cols, rows, len(views)), pixel_threads),
                pixel_threads,
                (packed, projections[group.channels], scale, *map(np.int32, counts)),
            )
            is_columnwise = plan.is_upright and axis != 0
            kernel = f"adjoint_{'upright_' if is_columnwise else ''}{NAMES[axis]}"
            counts = (len(views), group.n_channels, rows, cols, *volume.shape[1:])
            backend.cuda_kernel(SOURCE, kernel, defines)(
                stored.blocks(volume.shape[:0:-1], (*voxel_threads[:2], HEIGHT if is_columnwise else 1)),
                voxel_threads,
                (volume[group.channels], packed, scale, *map(np.int32, counts), np.float32(step_mm)),
            )


def _refuse_doubles(*arrays: backend.Array) -> None:
    for array in arrays:
        if array.dtype != np.float32:
            raise WrongUsage(
                f"an array of the GPU holds {array.dtype}; allowed: float32", hint="use the CPU for float64"
            )


def _threads(n_fast: int, n_slow: int) -> tuple[int, int, int]:
    """Return a block of threads, less high where there is little."""
    high = min(8, 1 << (n_slow - 1).bit_length())
    return (THREADS // high, high, 1) if n_fast > 32 else (32, high, 1)


def _is_after(axis: int) -> tuple[bool, bool]:
    """Whether the axis comes after each of those it crosses: of equal components the first counts as the largest."""
    a, b = ACROSS[axis]
    return axis > a, axis > b


def _plan_of(rays: NDArray[np.float64], is_parallel: bool, shape: tuple[int, int, int], rows: int, cols: int) -> Plan:
    return _plan(np.ascontiguousarray(rays, np.float64).tobytes(), bool(is_parallel), tuple(shape), rows, cols)


@functools.lru_cache(maxsize=256)
def _plan(rays_bytes: bytes, is_parallel: bool, shape: tuple[int, int, int], rows: int, cols: int) -> Plan:
    """Share the views out to launches; kept, for iterative methods go through the same subsets again and again."""
    rays = np.frombuffer(rays_bytes).reshape(-1, 4, 3).copy()
    leans = np.abs(rays[:, 3, 1:]).max(axis=1) / np.linalg.norm(rays[:, 3], axis=1)
    is_upright = bool((leans <= UPRIGHT_SLOPE).all())
    if is_upright:
        rays[:, 3, 1:] = 0
    matrices = _matrices(rays, is_parallel, shape, rows, cols)
    along = directions(rays, is_parallel, rows, cols)
    launches = []
    for axis in (0, 1, 2):
        views = np.flatnonzero(_has_rays_along(along, axis, rows, cols))
        records = _records(rays, along, matrices, is_parallel, axis, shape, rows, cols)
        for first in range(0, len(views), VIEWS_PER_LAUNCH):
            chosen = views[first : first + VIEWS_PER_LAUNCH]
            numbers = chosen.astype(np.int32).view(np.float32)  # the bits of an int, in an array of floats
            launches.append(Launch(axis, backend.to_device(np.column_stack([records[chosen], numbers]))))
    return Plan(tuple(launches), is_upright)


def _matrices(
    rays: NDArray[np.float64], is_parallel: bool, shape: tuple[int, int, int], rows: int, cols: int
) -> NDArray[np.float64]:
    """Return the projection matrices of (z, y, x, 1) in voxels; refuse a grid that a source stands in."""
    source, first, u, v = rays.swapaxes(0, 1)
    matrices = ScanGeometry(
        source_mm=source,
        detector_mm=first + (cols - 1) / 2 * u + (rows - 1) / 2 * v,
        u_mm=u,
        v_mm=v,
        rows=rows,
        cols=cols,
        is_parallel=is_parallel,
    ).matrices()
    corners = np.stack(np.meshgrid(*((-1.0, n) for n in shape), [1.0], indexing="ij")).reshape(4, -1)
    depths = matrices[:, 2] @ corners
    if depths.min() <= 0:
        view = int(depths.min(axis=1).argmin())
        raise WrongUsage(
            f"the grid reaches the source of view {view}; allowed: grids between sources and detectors",
            hint="ask for fewer or smaller voxels",
        )
    return matrices


def directions(rays: NDArray[np.float64], is_parallel: bool, rows: int, cols: int) -> NDArray[np.float64]:
    """Return the rays' directions as polynomials of column and row from the middle: (n_views, 3 [1, col, row], 3)."""
    source, first, u, v = rays.swapaxes(0, 1)
    if is_parallel:
        return np.stack([-source, 0 * source, 0 * source], axis=1)
    return np.stack([first + (cols - 1) / 2 * u + (rows - 1) / 2 * v - source, u, v], axis=1)


def _has_rays_along(along: NDArray[np.float64], axis: int, rows: int, cols: int) -> NDArray[np.bool_]:
    """Tell which views can have rays along the axis; too many do no harm."""
    reach_col, reach_row = (cols - 1) / 2, (rows - 1) / 2
    corners = np.stack(
        [along[:, 0] + i * reach_col * along[:, 1] + j * reach_row * along[:, 2] for i in (-1, 1) for j in (-1, 1)]
    )
    largest = np.abs(corners).max(axis=0)
    changes_sign = corners.min(axis=0) * corners.max(axis=0) <= 0
    least = np.where(changes_sign, 0.0, np.abs(corners).min(axis=0))
    return (largest[:, [axis]] * (1 + 1e-5) >= least[:, ACROSS[axis]]).all(axis=1)


def _records(
    rays: NDArray[np.float64],
    along: NDArray[np.float64],
    matrices: NDArray[np.float64],
    is_parallel: bool,
    axis: int,
    shape: tuple[int, int, int],
    rows: int,
    cols: int,
) -> NDArray[np.float32]:
    """Return the polynomials and matrices of the source's `View`: (n_views, 27)."""
    middle = (shape[axis] - 1) / 2
    source, first, u, v = rays.swapaxes(0, 1)
    parts = [along[:, :, axis]]
    for across in ACROSS[axis]:
        if is_parallel:
            pixels = np.stack([first + (cols - 1) / 2 * u + (rows - 1) / 2 * v, u, v], axis=1)
            to_middle = np.array([middle, 0, 0]) - pixels[:, :, axis]
            at = pixels[:, :, across] * along[:, :1, axis] + to_middle * along[:, :1, across]
        else:
            at = source[:, [across]] * along[:, :, axis] + (middle - source[:, [axis]]) * along[:, :, across]
        parts += [along[:, :, across], at]
    order = [axis, *ACROSS[axis], 3]
    moved = matrices.copy()
    moved[:, :, 3] += middle * matrices[:, :, axis]
    return np.concatenate([*parts, moved[:, :, order].reshape(-1, 12)], axis=1).astype(np.float32)
