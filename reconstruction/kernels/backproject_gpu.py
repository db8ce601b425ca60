"""Voxel-driven back-projection on the GPU: how `backproject.cu` is launched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reconstruction import backend
from reconstruction.kernels import stored

SOURCE = Path(__file__).with_name("backproject.cu")
VIEWS_PER_LAUNCH = 64
"""As in the source, like `MARGINS`; a test compares them."""
MARGINS = 3
HEIGHT = {1: 8, 2: 8, 4: 4}
"""Voxels above each other in a thread, for each number of channels that go through together."""
BLOCK = (32, 8, 1)


def backproject(
    volume: backend.Array,
    projections: backend.Array,
    matrices: NDArray[np.float64],
    weights: NDArray[np.float64],
    *,
    is_half: bool = False,
) -> None:
    """Add to `volume` the weighted back-projection of some views: weight / c^2 times the pixels around (a/c, b/c).

    Parameters
    ----------
    volume : (n_channels, z, y, x) float32, on the device, contiguous
    projections : (n_views, n_channels, rows, cols) float32, on the device
        Zero outside of the detector.
    matrices : (n_views, 3, 4) float64
        Of the voxel's indices (x, y, z) with a 1 behind them they make (a, b, c).
    weights : (n_views,) float64
    is_half : bool
        Hold the pixels in half precision (11 bits) while they are read: half the bytes.
    """
    n_views, n_channels, rows, cols = projections.shape
    views = _views(matrices, weights)
    # Along z neither the column nor the magnification changes where the columns stand upright.
    is_upright = bool((matrices[:, (0, 2), 2] == 0).all())
    scale = stored.scale_of(projections, is_half=is_half)
    for group in stored.channel_groups(n_channels):
        defines = group.defines(is_half=is_half)
        kernel = backend.cuda_kernel(SOURCE, "upright" if is_upright else "general", defines)
        blocks = stored.blocks(volume.shape[:0:-1], (*BLOCK[:2], HEIGHT[group.width]))
        for start in range(0, n_views, VIEWS_PER_LAUNCH):
            chosen = slice(start, min(start + VIEWS_PER_LAUNCH, n_views))
            images = _with_margins(projections[chosen], group, scale, is_half=is_half)
            backend.set_constant(SOURCE, "views", views[chosen], defines)
            counts = (chosen.stop - start, group.n_channels, rows, cols, *volume.shape[1:])
            kernel(blocks, BLOCK, (volume[group.channels], images, scale, *map(np.int32, counts)))


def _views(matrices: NDArray[np.float64], weights: NDArray[np.float64]) -> backend.Array:
    """Return what the source calls `View`, on the device."""
    records = np.concatenate([matrices.reshape(len(matrices), 12), np.reshape(weights, (-1, 1))], axis=1)
    return backend.to_device(records.astype(np.float32))


def _with_margins(images: backend.Array, group: stored.ChannelGroup, scale: Any, *, is_half: bool) -> Any:
    """Return (n_views, rows + MARGINS, cols + MARGINS, width) with zeros around."""
    xp = backend.namespace(images)
    n_views, _, rows, cols = images.shape
    values = stored.interleaved(images.swapaxes(0, 1), group, scale, is_half=is_half)
    padded = xp.zeros((n_views, rows + MARGINS, cols + MARGINS, group.width), values.dtype)
    padded[:, 1 : rows + 1, 1 : cols + 1] = values
    return padded
