"""The joint bilateral mean on the CPU, row by row along x: `bilateral_plain` says what is computed."""

from __future__ import annotations

import itertools

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconstruction.kernels.threads import in_threads, n_threads

Image = NDArray[np.floating]


def joint_mean(
    images: Image, guide: Image, offsets: NDArray[np.integer], near: NDArray[np.floating]
) -> tuple[Image, Image]:
    """Return the means, and how many independent voxels each of them is worth; see `bilateral_plain`."""
    images, guide = np.ascontiguousarray(images), np.ascontiguousarray(guide, images.dtype)
    means, worth = np.empty_like(images), np.empty(images.shape[1:], images.dtype)
    n_rows = images.shape[1] * images.shape[2]
    edges = np.linspace(0, n_rows, min(n_threads(), n_rows) + 1).astype(int)
    arrays = means, worth, images, guide, np.asarray(offsets, np.int64), np.asarray(near, images.dtype)
    in_threads(_rows, [(*arrays, first, end) for first, end in itertools.pairwise(edges.tolist())])
    return means, worth


@njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy")
def _rows(means, worth, images, guide, offsets, near, first, end):  # noqa: ANN001, ANN202
    """Do rows `first` to `end` of all rows along x."""
    n_channels, n_z, n_y, n_x = images.shape
    one, none = near.dtype.type(1), near.dtype.type(0)
    weights, total, squares = np.empty(n_x, near.dtype), np.empty(n_x, near.dtype), np.empty(n_x, near.dtype)
    for row in range(first, end):
        z, y = row // n_y, row % n_y
        total[:] = 0
        squares[:] = 0
        means[:, z, y] = 0
        for o in range(len(offsets)):
            z_there, y_there, by = z + offsets[o, 0], y + offsets[o, 1], offsets[o, 2]
            if z_there < 0 or z_there >= n_z or y_there < 0 or y_there >= n_y or abs(by) >= n_x:
                continue
            low, n = max(-by, 0), n_x - abs(by)
            nearness = near[o]
            weight = weights[:n]
            weight[:] = 0
            for g in range(len(guide)):
                here, there = guide[g, z, y, low : low + n], guide[g, z_there, y_there, low + by : low + by + n]
                for x in range(n):
                    weight[x] += (here[x] - there[x]) * (here[x] - there[x])
            sums, sums2 = total[low : low + n], squares[low : low + n]
            for x in range(n):
                like = max(one - weight[x], none)
                like *= like
                like *= like
                like *= like
                weight[x] = nearness * like
                sums[x] += weight[x]
                sums2[x] += weight[x] * weight[x]
            for channel in range(n_channels):
                out = means[channel, z, y, low : low + n]
                there = images[channel, z_there, y_there, low + by : low + by + n]
                for x in range(n):
                    out[x] += weight[x] * there[x]
        for x in range(n_x):
            worth[z, y, x] = total[x] * total[x] / squares[x]
        for channel in range(n_channels):
            for x in range(n_x):
                means[channel, z, y, x] /= total[x]
