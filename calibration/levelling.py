"""What an upright detector would have seen where a tilted one stood: images resampled from one plane to the other.

Source and centre of the detector stay; only its columns and rows are turned back, so that columns run square to the
axis of rotation. What is done with an upright detector's images needs to know of no tilts then.

# Ref: one plane seen from one point is mapped to another by a homography: Hartley and Zisserman 2004, Multiple View
#      Geometry, chapter 2; between pixels the image is a cubic of Catmull and Rom: Keys 1981, IEEE Trans. Acoust. 29,
#      1153.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from calibration.geometry import TILTS, Geometry


def upright(geometry: Geometry) -> Geometry:
    """Return the same geometry without tilts."""
    return replace(geometry, **dict.fromkeys(TILTS, 0.0)) if geometry.is_tilted else geometry


def level(images: NDArray[np.floating], geometry: Geometry) -> NDArray[np.floating]:
    """Return images as the upright detector would have seen them; those of an upright one come back as they are.

    Parameters
    ----------
    images : (..., rows, cols) float
    geometry : Geometry
        Of the detector that saw them.

    Returns
    -------
    (..., rows, cols) float, of the same kind
        Beyond the edge of the tilted detector the image goes on as it is at the edge.
    """
    if not geometry.is_tilted:
        return images
    matrix = _matrix(geometry).astype(images.dtype)
    flat = images.reshape(-1, geometry.rows * geometry.cols)
    return np.ascontiguousarray((matrix @ flat.T).T).reshape(images.shape)


@lru_cache(maxsize=2)
def _matrix(geometry: Geometry) -> Any:
    """Return the sparse matrix (rows * cols, rows * cols) that makes upright images; sixteen neighbours for each."""
    rows, cols = geometry.rows, geometry.cols
    pose = upright(geometry).views(0.0)
    row, col = np.indices((rows, cols)).reshape(2, -1, 1)
    u_mm, v_mm = (col - (cols - 1) / 2) * pose.u_mm, (row - (rows - 1) / 2) * pose.v_mm
    met = geometry.views(0.0).shadows_px(pose.detector_mm + u_mm + v_mm)[0]
    col_shares, cols_met = _cubic_neighbours(met[:, 0] + (cols - 1) / 2, cols)
    row_shares, rows_met = _cubic_neighbours(met[:, 1] + (rows - 1) / 2, rows)
    shares = row_shares[:, :, None] * col_shares[:, None, :]
    places = rows_met[:, :, None] * cols + cols_met[:, None, :]
    starts = np.arange(0, shares.size + 1, 16)
    return scipy.sparse.csr_array((shares.ravel(), places.ravel(), starts), shape=(rows * cols, rows * cols))


def _cubic_neighbours(at: NDArray[np.float64], n: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the shares and the places of the four nodes around each point: (n_points, 4) twice."""
    at = np.clip(at, 0, n - 1)
    low = np.floor(at)
    t = (at - low)[:, None]
    shares = np.concatenate(
        [
            ((2 - t) * t - 1) * t / 2,
            ((3 * t - 5) * t * t + 2) / 2,
            ((4 - 3 * t) * t + 1) * t / 2,
            (t - 1) * t * t / 2,
        ],
        axis=1,
    )
    return shares, np.clip(low.astype(np.intp)[:, None] + np.arange(-1, 3), 0, n - 1)
