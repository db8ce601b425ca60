"""Voxel-driven back-projection on the GPU: how `backproject.cu` is launched."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reconstruction import backend

SOURCE = Path(__file__).with_name("backproject.cu")
Z_PER_THREAD = 8
"""As in the source; a test compares the two."""
BLOCK = (32, 8, 1)


class Launch(NamedTuple):
    """How many blocks of threads, and the kernel's arguments after its three arrays."""

    blocks: tuple[int, int, int]
    threads: tuple[int, int, int]
    arguments: tuple[np.int32 | np.float32, ...]


def launch(
    projections_shape: tuple[int, int, int, int],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    z: NDArray[np.float64],
    detector: NDArray[np.float64],
) -> Launch:
    """Lay the work out; `x`, `y`, `z` and `detector` are those of `backproject_cpu.backproject_plain`."""
    n_views, n_bins, rows, cols = projections_shape
    voxel = next((axis[1] - axis[0] for axis in (x, y, z) if len(axis) > 1), 1.0)
    blocks = (-(-len(x) // BLOCK[0]), -(-len(y) // BLOCK[1]), -(-len(z) // Z_PER_THREAD) * n_bins)
    counts = (n_views, n_bins, rows, cols, len(z), len(y), len(x))
    positions = (x[0], y[0], z[0], voxel, *detector[:4])
    return Launch(blocks, BLOCK, (*map(np.int32, counts), *map(np.float32, positions)))


def backproject(volume: Any, projections: Any, poses: Any, *axes: NDArray[np.float64]) -> None:
    """Add weighted back-projections to `volume`; the first three are float32 arrays on the device.

    Parameters
    ----------
    volume : (n_bins, z, y, x) float32
    projections : (n_views, n_bins, rows, cols) float32
    poses : (n_views, 3) float32
    axes
        x, y, z and detector, as in `launch`.
    """
    plan = launch(projections.shape, *axes)
    kernel = backend.cuda_kernel(SOURCE, "backproject")
    kernel(plan.blocks, plan.threads, (volume, projections, poses, *plan.arguments))
